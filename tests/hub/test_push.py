"""Pushes of folders to a fake Hub."""

import time

import pytest
from huggingface_hub import constants

from miniclip.hub.download import fetch
from miniclip.hub.push import push
from tests.hub.test_download import CONFIG, FAILURES, FILES, REPO, WEIGHTS, contents, everything, one_line


@pytest.fixture(autouse=True)
def _no_retry_delay(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.fixture
def server(hub_server):
    hub_server.repos[REPO] = dict(FILES)
    return hub_server


@pytest.fixture
def folder(tmp_path):
    for name, content in {**FILES, ".hidden": b"x", ".git/config": b"x"}.items():
        path = tmp_path / "pushed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "pushed"


@pytest.mark.parametrize("private", [True, False])
def test_push_creates_a_repository(server, folder, private):
    url = push(folder, "writer/new", private=private, message="The first", token="hf_writer")
    assert url == f"{server.url}/writer/new"
    assert server.repos["writer/new"] == FILES
    assert server.messages == ["The first"]  # one commit
    assert ("writer/new" in server.private) == private
    assert set(server.uploads.values()) == {FILES["other.bin"], FILES[WEIGHTS]}


def test_push_then_fetch(server, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    push(folder, "writer/new", private=True)
    assert contents(fetch("writer/new", everything)) == FILES


def test_push_to_an_existing_repository(server, folder):
    server.repos[REPO] = {"kept.txt": b"kept", CONFIG: b"old"}
    assert push(folder, REPO, token="hf_writer") == f"{server.url}/{REPO}"
    assert server.repos[REPO] == {"kept.txt": b"kept", **FILES}


def test_push_without_a_namespace(server, folder):
    assert push(folder, "new", token="hf_writer") == f"{server.url}/writer/new"
    assert server.repos["writer/new"] == FILES


@pytest.mark.parametrize("repo", [REPO, "writer/new"])
def test_push_to_a_branch(server, folder, repo):
    url = push(folder, repo, revision="try/1", token="hf_writer")
    assert url == f"{server.url}/{repo}/tree/try%2F1"
    assert server.files(repo, "try/1") == FILES
    (folder / CONFIG).write_bytes(b"later")
    push(folder, repo, revision="try/1", token="hf_writer")
    assert server.files(repo, "try/1") == {**FILES, CONFIG: b"later"}
    assert server.repos[repo] == (FILES if repo == REPO else {})  # the main branch is unchanged


def test_push_without_a_token(server, folder):
    for repo in (REPO, "writer/new"):
        with pytest.raises(PermissionError) as caught:
            push(folder, repo)
        assert one_line(caught.value).startswith(f"{repo}: not logged in to {server.url}: run `hf auth login`")
    assert server.repos == {REPO: FILES}


def test_push_without_write_access(server, folder):
    server.repos["others/model"] = {}
    for repo in ("others/model", "others/new"):
        with pytest.raises(PermissionError) as caught:
            push(folder, repo, token="hf_writer")
        message = one_line(caught.value)
        assert message.startswith(f"{repo}: no write access (")
        assert "hf auth login" in message
    assert server.repos["others/model"] == {}


@pytest.mark.parametrize("failure", FAILURES)
def test_push_without_a_network(server, folder, monkeypatch, failure):
    action, reason = FAILURES[failure]
    action(server, monkeypatch)
    with pytest.raises(ConnectionError) as caught:
        push(folder, REPO, token="hf_writer")
    message = one_line(caught.value)
    assert message.startswith(f"{REPO}: nothing was uploaded, {constants.ENDPOINT} cannot be reached (")
    assert reason in message


def test_push_of_a_missing_or_empty_folder(server, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, problem in (("empty", "the folder has no files"), ("absent", "no such folder")):
        with pytest.raises(FileNotFoundError, match=f"{name}: {problem}"):
            push(tmp_path / name, REPO, token="hf_writer")
    assert server.requests == []


def test_push_with_invalid_metadata(server, folder):
    (folder / "README.md").write_text("---\nlicense: none-such\n---\n")
    with pytest.raises(ValueError, match=r"org/model: Invalid metadata in README.md.*must be one of") as caught:
        push(folder, REPO, token="hf_writer")
    one_line(caught.value)
    assert server.messages == []
