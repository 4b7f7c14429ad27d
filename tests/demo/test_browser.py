"""The page in a real browser: typing, keys, dropped and broken images, labels, explanations, a phone's width."""

import re
import shutil
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test")
expect = sync_api.expect
expect.set_options(timeout=20_000)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
         "--disable-component-update"]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests, with its files in a temporary folder."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, page):
    """The opened page; the test fails at an error of its JavaScript, and at a request to another site."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(20_000)
    errors, requests, tab = [], [], context.new_page()
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page)
    expect(tab.locator("#about")).to_have_text("24 images, runs/toy")
    expect(tab.locator(".card")).to_have_count(24)
    yield tab
    context.close()
    assert not errors
    assert [url for url in requests if not url.startswith((page, "data:", "blob:"))] == []


def drop(tab, path, name):
    """Drop a file on the page."""
    content = list(Path(path).read_bytes())
    transfer = tab.evaluate_handle(
        "([bytes, name]) => { const transfer = new DataTransfer();"
        "transfer.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/jpeg' })); return transfer; }",
        [content, name],
    )
    tab.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    expect(tab.locator("#drop")).to_be_visible()
    tab.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(tab.locator("#drop")).to_be_hidden()


def names(tab):
    return tab.locator(".card .open").evaluate_all("cards => cards.map(card => card.getAttribute('aria-label'))")


def test_typing_searches_without_a_click(tab, demo_model, demo_index):
    tab.keyboard.press("/")
    tab.keyboard.type("a red circle")
    expect(tab).to_have_url(re.compile("q=a.red.circle$"))
    expect(tab.locator("#status")).to_have_text(re.compile(r"The 24 most similar of 24 images, in \d+ ms"))
    scores = demo_index.embeddings.astype("float32") @ demo_model.encode_text("a red circle")[0].numpy()
    best = re.compile(rf"^{re.escape(demo_index.snapshot.names[scores.argmax()])}, similarity ")
    expect(tab.locator(".card .open").first).to_have_attribute("aria-label", best)
    tab.keyboard.type(" - ")  # not finished, so an error; the hits stay
    expect(tab.locator("#problem")).to_contain_text("expected a text")
    assert len(names(tab)) == 24
    tab.keyboard.type("heart")
    expect(tab.locator("#problem")).to_be_hidden()
    tab.reload()  # the address holds the query
    expect(tab.locator("#text")).to_have_value("a red circle - heart")
    expect(tab.locator("#status")).to_contain_text("most similar")
    tab.locator("#text").press("Escape")
    expect(tab.locator("#text")).to_have_value("")
    expect(tab.locator("#status")).to_have_text("24 of 24 images")


def test_keys_move_open_and_close(tab):
    focused = "document.activeElement.closest('.card') && [...document.querySelectorAll('.card')].indexOf(" \
              "document.activeElement.closest('.card'))"  # fmt: skip
    tab.locator("#text").press("ArrowDown")
    assert tab.evaluate(focused) == 0
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate(focused) == 1
    tab.keyboard.press("ArrowDown")
    below = tab.evaluate(focused)
    assert below > 2
    tab.keyboard.press("ArrowUp")
    assert tab.evaluate(focused) in (0, 1, 2)
    tab.keyboard.press("Enter")
    expect(tab.locator("#detail")).to_be_visible()
    first = tab.locator("#detail-name").text_content()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#detail-name").text_content() != first
    tab.keyboard.press("Escape")
    expect(tab.locator("#detail")).to_be_hidden()
    expect(tab.locator(".card:focus-within")).to_have_count(1)
    expect(tab.locator(".open[tabindex='0']")).to_have_count(1)
    tab.keyboard.press("m")
    expect(tab.locator("#chip")).to_be_visible()
    tab.go_back()
    expect(tab.locator("#chip")).to_be_hidden()
    expect(tab.locator(".open[tabindex='0']")).to_have_count(1)  # one stop of the tab key for all images


def test_dropped_image_finds_itself(tab, photos):
    drop(tab, photos / "05.jpg", "<img src=x onerror=alert(1)>.jpg")
    expect(tab.locator("#chip-name")).to_have_text("<img src=x onerror=alert(1)>.jpg")
    expect(tab.locator("#status")).to_contain_text("most similar")
    assert names(tab)[0].startswith("05.jpg, similarity 1.000")
    tab.locator("#chip-open").click()
    expect(tab.locator("#detail-facts")).to_have_text("the query image")
    tab.locator("#labels").fill("red, blue, red")
    expect(tab.locator("#bars li")).to_have_count(2)


def test_broken_and_large_images_are_refused_in_one_line(tab, tmp_path):
    for content, message in ((b"no image", "is not an image that can be read"), (bytes(200_001), "is larger than")):
        (tmp_path / "x.jpg").write_bytes(content)
        tab.locator("#file").set_input_files(tmp_path / "x.jpg")
        expect(tab.locator("#problem")).to_contain_text(message)
        expect(tab.locator("#chip")).to_be_hidden()
    assert len(names(tab)) == 24


def test_detail_explains_and_classifies(tab):
    tab.locator("#text").fill("a red circle")
    expect(tab.locator("#status")).to_contain_text("most similar")
    card = tab.get_by_role("button", name="a <i>é&'.png, similarity")  # shown as text, not as HTML
    card.click()
    expect(tab.locator("#detail-name")).to_have_text("Straße/a <i>é&'.png")
    expect(tab.locator("#explain-text")).to_have_value("a red circle")
    tab.locator("#explain button").click()
    expect(tab.locator("#words span")).to_have_count(3)
    assert tab.locator("#heat").evaluate("image => image.decode().then(() => image.naturalWidth)") >= 448
    tab.locator("#labels").fill("<b>red</b>, blue")
    expect(tab.locator("#bars li")).to_have_count(2)
    assert "<b>red</b>" in tab.locator("#bars").text_content()
    tab.locator("#template").fill("no field")
    expect(tab.locator("#detail-problem")).to_contain_text("expected exactly one {}")
    tab.locator("#like").click()
    expect(tab.locator("#chip-name")).to_have_text("Straße/a <i>é&'.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_has_no_sideways_scroll(tab, scheme):
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 360, "height": 640})
    tab.locator("#toggle").click()
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert tab.evaluate(overflow) <= 0
    colors = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color].join()"
    back, text = (sum(map(int, part.split(",")[:3])) for part in re.findall(r"rgba?\(([^)]*)\)", tab.evaluate(colors)))
    assert (back < text) == (scheme == "dark")
    tab.locator(".card .open").first.click()
    box = tab.locator("#detail").bounding_box()
    assert (box["x"], box["width"]) == (0, 360)
    assert tab.locator("#close").evaluate("button => button.getBoundingClientRect().right <= innerWidth")
    assert tab.evaluate(overflow) <= 0


def test_every_control_has_a_name(tab):
    unnamed = tab.locator("button, input:not([hidden])").evaluate_all(
        "controls => controls.filter(control => !(control.textContent.trim() || control.getAttribute('aria-label') "
        "|| control.labels?.length)).map(control => control.outerHTML)"
    )
    assert unnamed == []


def test_another_page_cannot_use_it(browser, page, tmp_path):
    (tmp_path / "evil.html").write_text(f"<img src='{page}icon.svg'><iframe src='{page}'></iframe>")
    context = browser.new_context()
    tab = context.new_page()
    tab.goto((tmp_path / "evil.html").as_uri())
    results = tab.evaluate(
        """async (page) => {
            const read = await fetch(page + "api/about").then(() => "read", () => "refused");
            const form = { method: "POST", mode: "no-cors", body: "x" };
            await fetch(page + "api/uploads", form).catch(() => null);
            const image = document.querySelector("img");
            return [read, image.complete && image.naturalWidth > 0];
        }""",
        page,
    )
    assert results == ["refused", False]
    assert all("API" not in frame.content() and "Describe" not in frame.content() for frame in tab.frames[1:])
    context.close()
