"""Addresses of the page, over HTTP: answers, errors as JSON, no file outside the index, and many people at once."""

import copy
import io
import json
import os
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra demo")

from miniclip import Index
from miniclip.demo import gallery
from miniclip.demo.gallery import Gallery
from miniclip.demo.guard import Access
from miniclip.errors import DataError
from tests.demo.conftest import LIMITS, running
from tests.demo.test_thumbnails import bomb

TEXTS = ["a red circle", "a blue square", "a green star", "2*heart - circle", "a dog"]


@pytest.fixture(scope="module")
def client(page):
    with httpx.Client(base_url=page, timeout=60) as client:
        yield client


def search(client, **body):
    response = client.post("/api/search", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def ids(answer):
    return [hit["id"] for hit in answer["hits"]]


def refused(response, status=400):
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return response.json()["error"]


def test_page_and_its_files_are_sent_with_their_types(client):
    kinds = {"/": "text/html", "/style.css": "text/css", "/app.js": "text/javascript", "/icon.svg": "image/svg+xml"}
    for path, kind in kinds.items():
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in response.text.replace("http://www.w3.org", "")  # no resource of another site
        assert "https://" not in response.text


def test_about(client):
    about = client.get("/api/about").json()
    assert (about["model"], about["images"], about["examples"]) == ("runs/toy", 24, ["a red circle", "blue square"])


def test_search_is_that_of_the_model(client, demo_model, demo_index):
    answer = search(client, text="a red circle", count=5)
    vector = demo_model.encode_text("a red circle")[0].numpy()
    scores = demo_index.embeddings.astype(np.float32) @ vector
    best = np.argsort(-scores)[:5]
    names = demo_index.snapshot.names
    assert [hit["name"] for hit in answer["hits"]] == [names[position] for position in best]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(scores[best].tolist(), abs=1e-3)
    assert (answer["total"], answer["texts"]) == (24, ["a red circle"])


def test_search_by_expression_uses_weights(client, demo_model, demo_index):
    answer = search(client, text="2*heart - circle", count=3)
    heart, circle = demo_model.encode_text(["heart", "circle"]).numpy()
    vector = 2 * heart - circle
    scores = demo_index.embeddings.astype(np.float32) @ (vector / np.linalg.norm(vector))
    assert answer["hits"][0]["score"] == pytest.approx(scores.max(), abs=1e-3)
    assert answer["texts"] == ["heart"]


def test_weights_of_a_query_may_be_small(client):
    assert ids(search(client, text="0.00001*heart")) == ids(search(client, text="heart"))


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({"after": "0002-01-01"}, 24),
        ({"after": "2300-01-01"}, 0),
        ({"before": "9000-01-01"}, 24),
        ({"before": "0020-01-01"}, 0),
    ],
)
def test_dates_far_away(client, filters, count):
    """A browser sends the years 2, 20 and 202 while 2024 is typed."""
    assert len(ids(search(client, **filters))) == count


def test_empty_query_shows_images_of_the_whole_index(client):
    answer = search(client, count=4)
    assert len(set(ids(answer))) == 4
    assert {hit["score"] for hit in answer["hits"]} == {None}
    assert len(ids(search(client, count=500))) == 24


def test_more_like_this_and_an_upload_of_the_same_image(client, photos):
    hit = next(hit for hit in search(client, count=24)["hits"] if hit["name"] == "Straße/a <i>é&'.png")
    like = search(client, image={"item": hit["id"]}, count=3)
    assert ids(like)[0] == hit["id"]
    assert like["hits"][0]["score"] == pytest.approx(1, abs=1e-2)
    upload = client.post("/api/uploads", content=(photos / hit["name"]).read_bytes()).json()["upload"]
    assert ids(search(client, image={"upload": upload}, count=3)) == ids(like)
    both = search(client, image={"upload": upload}, text="a red circle", count=3)
    assert both["hits"][0]["score"] < 1


def test_labels_are_those_of_classify(client, demo_model, photos):
    names, template = ["red", "blue", "green"], "a {} circle"
    content = (photos / "00.jpg").read_bytes()
    upload = client.post("/api/uploads", content=content).json()["upload"]
    body = {"image": {"upload": upload}, "labels": names, "template": template}
    answer = client.post("/api/labels", json=body).json()
    assert answer["labels"] == names
    assert answer["probabilities"] == pytest.approx(demo_model.classify(content, names, template)[0].tolist(), abs=1e-4)


def test_explanation_has_images_and_words(client):
    item = ids(search(client, count=1))[0]
    answer = client.post("/api/explain", json={"item": item, "text": "a red circle"}).json()
    assert answer["image"].startswith("data:image/jpeg;base64,")
    assert answer["heat"].startswith("data:image/png;base64,")
    assert [word["text"] for word in answer["words"]] == ["a", "red", "circle"]
    assert -1 <= answer["similarity"] <= 1
    assert "is empty" in refused(client.post("/api/explain", json={"item": item, "text": " "}))


def test_thumbnail_is_a_small_jpeg(client):
    hit = search(client, count=1)["hits"][0]
    response = client.get(f"/api/images/{hit['id']}?side=320")
    image = Image.open(io.BytesIO(response.content))
    assert response.headers["content-type"] == "image/jpeg"
    assert "immutable" in response.headers["cache-control"]
    assert (image.format, image.size) == ("JPEG", (hit["width"], hit["height"]))


@pytest.mark.parametrize(
    "path",
    ["/../pyproject.toml", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc/passwd", "/etc/passwd", "//etc/passwd",
     "/api/images/..%2f00.jpg?side=320", "/api/images/00.jpg?side=320", "/page/app.js", "/locked.html", "/docs",
     "/openapi.json", "/api/images/999999?side=320", "/api/images/-1?side=320", "/api/images/%2Fetc%2Fpasswd?side=320",
     "/api/images/99999999999999999999999?side=320"],
)  # fmt: skip
def test_no_path_leads_to_a_file(client, path):
    response = client.get(path)
    assert response.status_code in (400, 404)
    assert list(response.json()) == ["error"]


def test_file_that_has_changed_since_it_was_indexed_is_not_shown(client, photos, tmp_path):
    secret = tmp_path / "secret.jpg"
    Image.new("RGB", (50, 50), "red").save(secret)
    path = photos / "07.jpg"
    hit = next(hit for hit in search(client, count=24)["hits"] if hit["name"] == "07.jpg")
    moved = path.rename(tmp_path / "07.jpg")
    try:
        path.symlink_to(secret)
        assert "has changed" in refused(client.get(f"/api/images/{hit['id']}?side=1280"))
        path.unlink()
        assert "does not exist" in refused(client.get(f"/api/images/{hit['id']}?side=1280"))
    finally:
        path.unlink(missing_ok=True)
        moved.rename(path)
    assert client.get(f"/api/images/{hit['id']}?side=1280").status_code == 200


def test_file_of_1970_that_has_changed_is_not_shown(demo_model, tmp_path):
    """Its time of change is 0, as that of an image in an archive."""
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.new("RGB", (20, 20), "red").save(path)
    os.utime(path, (0, 0))
    with Index.build(demo_model, path.parent, tmp_path / "photos.index") as index:
        images = Gallery(index)
        item = images.item(1)
        assert images.read(item).size == (20, 20)
        Image.new("RGB", (20, 20), "green").save(path)
        with pytest.raises(DataError, match="has changed since it was indexed"):
            images.read(item)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text": "+ +"}, "query"),
        ({"text": "a - a"}, "cancel"),
        ({"text": "x" * 1001}, "text: string should have at most 1000"),
        ({"image": {"item": 10**6}}, "no such image"),
        ({"image": {"upload": "unknown"}}, "upload it again"),
        ({"image": {}}, "expected an item or an upload"),
        ({"count": 0}, "count"),
        ({"threshold": 3}, "threshold"),
        ({"sql": "1"}, "sql: extra"),
        ({"before": "9999-12-31"}, "before: found '9999-12-31'; expected a date"),
        ({"after": "0001-01-01"}, "after: 0001-01-01 00:00:00 is out of range"),
        ({"before": "soon"}, "before: found 'soon'; expected a date"),
    ],
)
def test_wrong_searches_have_one_message(client, body, message):
    response = client.post("/api/search", json=body)
    assert message in refused(response, 404 if body.get("image") else 400)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "00.jpg", "secret.png"])
def test_query_reads_no_image_file(client, name):
    response = client.post("/api/search", json={"text": f"circle + {name}"})
    assert name in response.json()["texts"]  # it is a text
    assert "files are not opened" in refused(client.post("/api/search", json={"text": f"circle + image:{name}"}))


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "is empty"),
        (b"GIF89a broken", 400, "not an image"),
        (b"<html><script>alert(1)</script></html>", 400, "not an image"),
        (bomb(4_000, 4_000), 400, "more than 1,000,000"),
        (bomb(60_000, 60_000), 400, "more than 1,000,000"),
        (bytes(LIMITS.upload_bytes + 1), 413, "larger than"),
        ((bytes(1000) for _ in range(1000)), 413, "larger than"),  # without a stated length
    ],
    ids=["empty", "broken", "html", "bomb", "large_bomb", "oversized", "oversized_chunks"],
)
def test_bad_uploads_are_refused(client, content, status, message):
    assert message in refused(client.post("/api/uploads", content=content), status)


def test_upload_that_ends_early_prints_nothing(client, page, caplog):
    host, port = page.removeprefix("http://").strip("/").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST /api/uploads HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\nabc".encode())
        client.get("/api/about")  # the server has taken the connection
    assert client.post("/api/search", json={"count": 1}).status_code == 200
    assert not caplog.records


def test_bodies_that_are_not_json_are_refused(client):
    headers = {"content-type": "application/json"}
    refused(client.post("/api/search", content=b"{", headers=headers))
    refused(client.post("/api/search", content=b"[1]", headers=headers))
    refused(client.post("/api/search", content=json.dumps({"text": "a" * 70_000}), headers=headers), 413)
    refused(client.get("/api/search"), 405)


def test_other_sites_are_refused(client):
    body = {"text": "a dog"}
    refused(client.post("/api/search", json=body, headers={"origin": "https://evil.example"}), 403)
    refused(client.post("/api/search", json=body, headers={"host": "evil.example"}), 403)
    refused(client.get("/api/about", headers={"sec-fetch-site": "cross-site"}), 403)
    response = client.options("/api/search", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


def test_token_opens_the_page(make_service):
    with running(make_service(), Access("0.0.0.0", "the-secret-token")) as page, httpx.Client(base_url=page) as client:
        assert "needs its token" in client.get("/").text
        refused(client.get("/api/about"), 401)
        refused(client.post("/api/search", json={}), 401)
        assert client.get("/", params={"token": "the-secret-token"}).status_code == 200
        assert client.get("/api/about").status_code == 200  # by the cookie


def test_twenty_people_at_once_get_the_answers_of_one(client, page):
    expected = {text: search(client, text=text, count=8)["hits"] for text in TEXTS}
    together = threading.Barrier(20)

    def person(number):
        answers = []
        with httpx.Client(base_url=page, timeout=60) as own:
            together.wait(60)
            for turn in range(3):
                text = TEXTS[(number + turn) % len(TEXTS)]
                response = own.post("/api/search", json={"text": text, "count": 8})
                thumbnail = own.get(f"/api/images/{response.json()['hits'][turn]['id']}?side=320")
                answers.append((text, response.status_code, thumbnail.status_code, response.json()["hits"]))
        return answers

    with ThreadPoolExecutor(20) as pool:
        answers = [answer for person_answers in pool.map(person, range(20)) for answer in person_answers]
    assert len(answers) == 60
    for text, status, thumbnail, hits in answers:
        assert (status, thumbnail) == (200, 200)
        assert [hit["id"] for hit in hits] == [hit["id"] for hit in expected[text]]
        scores = [hit["score"] for hit in expected[text]]
        assert [hit["score"] for hit in hits] == pytest.approx(scores, abs=1e-5)


def test_full_queue_answers_503_with_retry_after(make_service):
    service = make_service()
    entered, release = threading.Event(), threading.Event()
    with running(service) as page, httpx.Client(base_url=page) as client:
        service.encoder.submit(lambda *_: entered.set() or release.wait(30))
        assert entered.wait(30)
        for _ in range(LIMITS.waiting):
            service.encoder.submit(lambda *_: None)
        response = client.post("/api/search", json={"text": "a dog"})
        release.set()
        assert "try again" in refused(response, 503)
        assert response.headers["retry-after"] == "1"
        while service.encoder.waiting:  # the thread empties the queue
            pass
        assert client.post("/api/search", json={"text": "a dog"}).status_code == 200


def test_page_follows_an_update_of_the_index(demo_model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "REFRESH_SECONDS", 0)
    shutil.copytree(photos, tmp_path / "photos")
    with Index.build(demo_model, tmp_path / "photos", tmp_path / "index") as index:
        shown = Gallery(index)
        before = shown.sample(100)
        (tmp_path / "photos/00.jpg").unlink()
        Index.build(demo_model, tmp_path / "photos", tmp_path / "index").close()
        after = shown.sample(100)
        assert (len(before), len(after)) == (24, 23)
        assert shown.item(before[0].item.id) is None
        assert shown.item(before[1].item.id) == before[1].item
        assert shown.embedding(before[0].item.id) is None
        rows = dict(zip(index.snapshot.ids.tolist(), index.embeddings, strict=True))
        number = before[1].item.id
        assert shown.embedding(number).tolist() == rows[number].tolist()


def test_page_keeps_its_index_if_another_model_replaces_it(demo_model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "REFRESH_SECONDS", 0)
    (tmp_path / "photos").mkdir()
    shutil.copy(photos / "00.jpg", tmp_path / "photos")
    other = copy.deepcopy(demo_model)
    other.log_scale.data.add_(0.1)
    Index.build(demo_model, tmp_path / "photos", tmp_path / "index").close()
    with Index.open(tmp_path / "index", demo_model) as index:
        shown = Gallery(index)
        shutil.rmtree(tmp_path / "index")
        assert len(shown.sample(100)) == 1
        shutil.copy(photos / "01.jpg", tmp_path / "photos")
        Index.build(other, tmp_path / "photos", tmp_path / "index").close()
        with pytest.warns(UserWarning, match="another model.*the page shows the index as it was"):
            assert len(shown.sample(100)) == 1
        with pytest.raises(ValueError, match="built again with another model"):
            index.refresh()
