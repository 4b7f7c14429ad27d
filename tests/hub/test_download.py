"""Downloads from a fake Hub: chosen files, the cache without a network, checksums, and error messages."""

import hashlib
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, scan_cache_dir

from miniclip.errors import CheckpointError
from miniclip.hub import download
from miniclip.hub.download import fetch

REPO = "org/model"
CONFIG, WEIGHTS = "config.json", "sub/model.safetensors"
FILES = {CONFIG: b'{"a": 1}', WEIGHTS: bytes(range(256)) * 40, "README.md": b"# a model", "other.bin": b"\0" * 9}
SHARDS = {CONFIG: b"{}", "model-1.safetensors": b"1" * 50, "model-2.safetensors": b"2" * 60}


@pytest.fixture(autouse=True)
def _no_retry_delay(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.fixture
def server(hub_server):
    hub_server.repos[REPO] = dict(FILES)
    return hub_server


def both(names: list[str]) -> list[str]:
    return [name for name in names if name in (CONFIG, WEIGHTS)]


def shards(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(".safetensors")]


def everything(names: list[str]) -> list[str]:
    return names


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetch_file(repo: str, name: str, **options) -> Path:
    return fetch(repo, lambda _: [name], **options) / name


def chosen(*names: str) -> dict[str, bytes]:
    return {name: FILES[name] for name in names}


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE) / "models--org--model"


def one_line(error: BaseException) -> str:
    """Return the message; check that it is one line and that no other error is chained to it."""
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    assert "\n" not in str(error)
    return str(error)


def write_cache(commit: str = "c" * 40, files: dict[str, bytes] = FILES, ref: str = "main") -> Path:
    """Write a cache as other libraries do, without a list of the repository's files."""
    (cache() / "refs").mkdir(parents=True)
    (cache() / "refs" / ref).write_text(commit)
    (cache() / "blobs").mkdir()
    for name, content in files.items():
        path = cache() / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = cache() / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        path.symlink_to(Path("../" * (2 + name.count("/"))) / "blobs" / blob.name)
    return cache() / "snapshots" / commit


# -- downloading


def test_downloads_only_the_chosen_files(server):
    offered = []
    folder = fetch(REPO, lambda names: offered.append(names) or both(names))
    assert offered == [sorted(FILES)]
    assert contents(folder) == chosen(CONFIG, WEIGHTS)
    assert folder == cache() / "snapshots" / server.commit(REPO)
    assert (cache() / "refs" / "main").read_text() == server.commit(REPO)
    assert (folder / WEIGHTS).resolve() == cache() / "blobs" / hashlib.sha256(FILES[WEIGHTS]).hexdigest()
    assert sum("GET" in request and "README" in request for request in server.requests) == 0


def test_a_cached_revision_takes_one_request(server):
    folder = fetch(REPO, both)
    server.requests.clear()
    assert fetch(REPO, both) == folder
    assert server.requests == [f"GET /api/models/{REPO}/revision/main"]
    fetch(REPO, everything)
    assert contents(folder) == FILES
    assert len(server.ranges) == len(FILES)  # one download each


def test_cache_dir(server, tmp_path):
    folder = fetch(REPO, both, cache_dir=str(tmp_path / "mine"))
    assert folder.is_relative_to(tmp_path / "mine" / "models--org--model")
    assert contents(folder) == chosen(CONFIG, WEIGHTS)
    assert not cache().exists()


def test_branches_tags_and_commits(server):
    first = server.tag(REPO, "v1")
    server.tag(REPO, "refs/pr/1")
    server.repos[REPO][CONFIG] = b"new"
    assert contents(fetch(REPO, both, revision="v1")) == chosen(CONFIG, WEIGHTS)
    assert contents(fetch(REPO, both, revision="refs/pr/1")) == chosen(CONFIG, WEIGHTS)
    assert fetch_file(REPO, CONFIG).read_bytes() == b"new"
    server.requests.clear()
    assert contents(fetch(REPO, both, revision=first)) == chosen(CONFIG, WEIGHTS)
    assert server.requests == []  # a commit cannot change
    fetch(REPO, everything, revision=first)
    assert server.requests


def test_an_update_downloads_only_changed_files(server):
    old = fetch(REPO, both)
    server.repos[REPO] = {**FILES, CONFIG: b"changed"}
    downloads = len(server.ranges)
    new = fetch(REPO, both)
    assert contents(new) == {CONFIG: b"changed", WEIGHTS: FILES[WEIGHTS]}
    assert contents(old) == chosen(CONFIG, WEIGHTS)
    assert len(server.ranges) == downloads + 1


def test_one_file(server):
    assert fetch_file(REPO, WEIGHTS).read_bytes() == FILES[WEIGHTS]
    with pytest.raises(FileNotFoundError, match=r"org/model: no file 'confg.json' at .*'main'; did you mean 'config\."):
        fetch_file(REPO, "confg.json")


def test_no_suitable_file(server):
    with pytest.raises(
        FileNotFoundError,
        match=r"org/model: no suitable file at revision 'main'; its files: README\.md, config",
    ):
        fetch(REPO, lambda _: [])
    assert not cache().exists()


def test_errors_of_choose_are_raised(server):
    with pytest.raises(KeyError, match="mine"):
        fetch(REPO, lambda names: {}["mine"])


@pytest.mark.parametrize("name", ["../../../../evil", "/tmp/evil", "a/../../evil"])
def test_names_outside_of_the_folder_are_refused(server, tmp_path, name):
    server.repos[REPO][name] = b"!"
    with pytest.raises((ValueError, OSError)):
        fetch(REPO, everything, cache_dir=tmp_path / "a" / "b" / "c")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"!"]
    repository = tmp_path / "a" / "b" / "c" / "models--org--model"
    assert all(path.is_relative_to(repository) for path in written)  # some versions write /x to the snapshot's x
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("commit", ["../../elsewhere", "", None, "0" * 39])
def test_an_invalid_commit_of_the_server(server, monkeypatch, commit):
    monkeypatch.setattr(server, "commit", lambda *_: commit or "x")
    monkeypatch.setattr(server, "files", lambda *_: FILES)
    with pytest.raises(ConnectionError, match=r"the server is not a Hugging Face Hub"):
        fetch(REPO, both)


def test_nothing_is_added_to_the_shared_cache(server):
    fetch(REPO, both)
    assert {path.name for path in cache().iterdir()} <= {"blobs", "refs", "snapshots", "trees"}
    report = scan_cache_dir(constants.HF_HUB_CACHE)
    assert report.warnings == []
    (repo,) = report.repos
    assert (repo.repo_id, repo.nb_files, set(repo.refs)) == (REPO, 2, {"main"})


# -- damaged and interrupted downloads


def test_a_damaged_download_is_refused_and_deleted(server):
    forged = server.forged[WEIGHTS] = FILES[WEIGHTS][::-1]
    with pytest.raises(CheckpointError) as caught:
        fetch(REPO, both)
    message = one_line(caught.value)
    assert message.startswith(f"{REPO}: {WEIGHTS} was damaged")
    assert hashlib.sha256(forged).hexdigest() in message
    assert f"expected {hashlib.sha256(FILES[WEIGHTS]).hexdigest()}" in message
    assert not any(path.read_bytes() == forged for path in (cache() / "blobs").iterdir())
    assert not list(cache().rglob("*.safetensors"))
    server.forged.clear()
    assert contents(fetch(REPO, both)) == chosen(CONFIG, WEIGHTS)


def test_a_server_without_checksums(server):
    server.hashes = False
    assert contents(fetch(REPO, both)) == chosen(CONFIG, WEIGHTS)


def test_file_systems_without_symlinks(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    server.forged[WEIGHTS] = FILES[WEIGHTS][::-1]
    with pytest.raises(CheckpointError, match="damaged"):
        fetch(REPO, both)
    assert not list(cache().rglob("*.safetensors"))
    server.forged.clear()
    folder = fetch(REPO, both)
    assert not (folder / WEIGHTS).is_symlink()
    assert contents(folder) == chosen(CONFIG, WEIGHTS)
    server.close()
    assert fetch(REPO, both) == folder


def test_cached_files_are_not_verified_again(server, monkeypatch):
    fetch(REPO, both)
    verified = []
    monkeypatch.setattr(download.Snapshot, "_verify", lambda self, path, name, expected: verified.append(name))
    fetch(REPO, both)
    assert verified == []
    fetch(REPO, everything)
    assert sorted(verified) == ["README.md", "other.bin"]


def test_an_interrupted_download_is_resumed(server, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.cut[WEIGHTS] = 4000
    try:
        folder = fetch(REPO, both)
    except ConnectionError:  # huggingface_hub 1.0 resumes only in the next call
        folder = fetch(REPO, both)
    assert contents(folder) == chosen(CONFIG, WEIGHTS)
    assert sorted(server.ranges, key=str) == [None, None, "bytes=4000-"]  # two threads download, in any order


def test_a_file_of_another_size(server):
    server.forged[WEIGHTS] = FILES[WEIGHTS][:-1]
    with pytest.raises(ConnectionError) as caught:
        fetch(REPO, both)
    assert one_line(caught.value).startswith(f"{REPO}: the download was interrupted, and ")
    assert "should be of size 10240 but has size 10239" in str(caught.value)


# -- without a network


# name: (cause, text of the reason)
FAILURES = {
    "refused": (lambda server, patch: server.close(), "refused"),
    "HF_HUB_OFFLINE": (lambda server, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True), "HF_HUB_OFFLINE is set"),
    "500": (lambda server, patch: setattr(server, "error", 500), "HTTP error 500"),
    "503": (lambda server, patch: setattr(server, "error", 503), "HTTP error 503"),
    "429": (lambda server, patch: setattr(server, "error", 429), "HTTP error 429"),
    "portal": (lambda server, patch: setattr(server, "portal", True), "the server is not a Hugging Face Hub"),
    "no such host": (lambda server, patch: patch.setattr(constants, "ENDPOINT", "http://hub.invalid"), "("),
    "no protocol": (lambda server, patch: patch.setattr(constants, "ENDPOINT", "hub.invalid"), "protocol"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_cache_is_used_silently_without_a_network(server, monkeypatch, capfd, caplog, failure):
    first = server.tag(REPO, "v1")
    fetch(REPO, both, revision="v1")
    server.repos[REPO][CONFIG] = b"new"
    second = server.commit(REPO)
    fetch(REPO, both)
    capfd.readouterr()
    caplog.clear()
    FAILURES[failure][0](server, monkeypatch)
    logging.getLogger("huggingface_hub").addHandler(caplog.handler)
    for revision, commit in ((None, second), ("main", second), ("v1", first), (first, first)):
        folder = fetch(REPO, both, revision=revision)
        assert folder == cache() / "snapshots" / commit
        assert folder / CONFIG == fetch_file(REPO, CONFIG, revision=revision)
    logging.getLogger("huggingface_hub").removeHandler(caplog.handler)
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []


@pytest.mark.parametrize("failure", FAILURES)
def test_error_without_a_network(server, monkeypatch, failure):
    fetch(REPO, both)
    action, reason = FAILURES[failure]
    action(server, monkeypatch)
    for name, options, problem in (
        (REPO, {"revision": "v9"}, "revision 'v9' is not in the cache"),
        (REPO, {"revision": "0" * 40}, f"revision '{'0' * 40}' is not in the cache"),
        ("org/absent", {}, "revision 'main' is not in the cache"),
        (REPO, {}, "not in the cache: README.md, other.bin"),
    ):
        with pytest.raises(ConnectionError) as caught:
            fetch(name, everything, **options)
        message = one_line(caught.value)
        assert message.startswith(f"{name}: {problem}, and {constants.ENDPOINT} cannot be reached (")
        assert reason in message
        assert "connect to the network" in message
        assert "HF_ENDPOINT" in message
        assert "path of a local copy" in message


def test_no_request_when_offline(server, monkeypatch):
    write_cache()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetch(REPO, both)
    assert server.requests == []


def test_a_name_that_does_not_exist_without_a_network(server):
    fetch(REPO, both)
    server.close()
    with pytest.raises(FileNotFoundError, match=r"no file 'confg.json'.*did you mean 'config.json'"):
        fetch_file(REPO, "confg.json")


def test_a_silent_server(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    server.silent = True
    timeouts, model_info = [], HfApi.model_info

    def noted(self, *arguments, **options):
        timeouts.append(options["timeout"])
        return model_info(self, *arguments, **options)

    monkeypatch.setattr(HfApi, "model_info", noted)
    with pytest.raises(ConnectionError, match=r"cannot be reached \(.*timed out.*\)"):
        fetch(REPO, both)
    assert timeouts == [0.5]


def test_a_cache_that_another_library_filled(server, monkeypatch):
    folder = write_cache(files=chosen(CONFIG, WEIGHTS))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offered = []
    assert fetch(REPO, lambda names: offered.append(names) or names) == folder
    assert offered == [[CONFIG, WEIGHTS]]
    assert fetch(REPO, both, revision="c" * 40) == folder
    with pytest.raises(ConnectionError, match=r"org/model: not in the cache: README\.md, and"):
        fetch_file(REPO, "README.md")

    def unhappy(names):
        raise FileNotFoundError("no merges.txt in it\nor elsewhere")

    for choose, problem in ((unhappy, r" \(no merges\.txt in it\)"), (lambda names: [], "")):
        with pytest.raises(ConnectionError) as caught:
            fetch(REPO, choose)
        assert f"{REPO}: the cache has only {CONFIG}, {WEIGHTS} of revision 'main'" in one_line(caught.value)
        caught.match(problem)


@pytest.mark.parametrize("ref", ["", "../../x", "0" * 39])
def test_a_damaged_ref(server, monkeypatch, ref):
    write_cache()
    (cache() / "refs" / "main").write_text(ref)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"org/model: .* of revision 'main'|revision 'main' is not"):
        fetch(REPO, both)


def test_an_incomplete_download_without_a_network(server):
    """One of two shards is missing, which only the list of files shows."""
    server.repos[REPO] = dict(SHARDS)
    commit = server.commit(REPO)
    server.forged["model-2.safetensors"] = b"3" * 60
    with pytest.raises(CheckpointError, match=r"model-2"):
        fetch(REPO, shards, revision=commit)
    assert contents(cache() / "snapshots" / commit) == {"model-1.safetensors": b"1" * 50}
    server.close()
    (cache() / "refs").mkdir()
    (cache() / "refs" / "main").write_text(commit)
    for revision in (commit, "main"):
        with pytest.raises(ConnectionError, match=r"org/model: not in the cache: model-2\.safetensors, and .*refused"):
            fetch(REPO, shards, revision=revision)


def test_a_failed_update_keeps_the_earlier_revision(server):
    old = fetch(REPO, both)
    server.repos[REPO] = {**FILES, CONFIG: b"changed", WEIGHTS: b"changed too"}
    server.forged[WEIGHTS] = b"hacked  too"
    with pytest.raises(CheckpointError):
        fetch(REPO, both)
    server.close()
    assert fetch(REPO, both) == old
    assert contents(old) == chosen(CONFIG, WEIGHTS)


def test_the_network_fails_during_the_download(server):
    with pytest.raises(ConnectionError) as caught:
        fetch(REPO, lambda names: server.close() or both(names))
    message = one_line(caught.value)
    assert message.startswith(f"{REPO}: the download was interrupted, and {server.url} cannot be reached (")
    assert "refused" in message


# -- refusals


def test_no_such_repository(server):
    server.private.add(REPO)
    for name in ("org/modle", REPO):
        with pytest.raises(FileNotFoundError) as caught:
            fetch(name, both)
        message = one_line(caught.value)
        assert message.startswith(f"{name}: no such repository on {server.url}, or it is private")
        assert "spelling" in message
        assert "hf auth login" in message
    assert not cache().exists()


def test_a_private_repository_with_a_token(server, monkeypatch):
    server.private.add(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert contents(fetch(REPO, both)) == chosen(CONFIG, WEIGHTS)


def test_no_such_revision(server):
    fetch(REPO, both)
    for revision in ("v9", "0" * 40):
        with pytest.raises(FileNotFoundError) as caught:
            fetch(REPO, both, revision=revision)
        assert one_line(caught.value).startswith(f"{REPO}: no branch, tag or commit {revision!r}: ")


def test_a_gated_repository(server):
    server.gated.add(REPO)
    with pytest.raises(PermissionError) as caught:
        fetch(REPO, both)
    message = one_line(caught.value)
    assert message.startswith(f"{REPO}: gated repository: accept its licence on {server.url}/{REPO}")
    assert "hf auth login" in message


def test_a_refused_token(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PermissionError) as caught:
        fetch(REPO, both)
    message = one_line(caught.value)
    assert message.startswith(f"{REPO}: {server.url} refused access (")
    assert "Invalid credentials" in message
    assert "hf auth login" in message


@pytest.mark.parametrize(("status", "kind"), [(403, PermissionError), (404, FileNotFoundError), (418, OSError)])
def test_other_status_codes(server, status, kind):
    fetch(REPO, both)
    server.error = status
    with pytest.raises(OSError, match=f"^{REPO}: .*it hurts") as caught:
        fetch(REPO, both)
    assert type(caught.value) is kind
    one_line(caught.value)


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "../etc", "org/..", "a--b/c", "org/", "https://huggingface.co/org/model"]
)
def test_invalid_repository_names(server, name):
    with pytest.raises(ValueError, match="is not a valid repository name") as caught:
        fetch(name, both)
    one_line(caught.value)
    assert server.requests == []


# -- in separate processes, which read the environment


SCRIPT = """
import json, sys, types
sys.modules["miniclip"] = package = types.ModuleType("miniclip")  # without __init__.py, which imports torch
package.__path__ = [sys.argv[1]]
sys.modules["miniclip.hub"] = hub = types.ModuleType("miniclip.hub")
hub.__path__ = [sys.argv[1] + "/hub"]
from miniclip.hub.download import fetch
before = "huggingface_hub" in sys.modules
print(json.dumps([before, str(fetch("org/model", lambda names: ["config.json", "sub/model.safetensors"]))]))
"""


def test_separate_processes(server, tmp_path):
    settings = server.settings(tmp_path)

    def run(**more: str) -> tuple[list, str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(Path(download.__file__).parents[1])],
            env={**settings, **more},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    (before, folder), _ = run()
    assert not before
    assert contents(Path(folder)) == chosen(CONFIG, WEIGHTS)
    assert Path(folder).is_relative_to(tmp_path / "hub")
    server.requests.clear()
    assert run(HF_HUB_OFFLINE="1") == ([False, folder], "")
    assert server.requests == []
