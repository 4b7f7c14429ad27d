"""Files of the Hub, against a server that speaks as the Hub does: fetched, checked, used offline; folders pushed."""

import hashlib
import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, scan_cache_dir

from miniclip.errors import CheckpointError
from miniclip.hub import remote
from miniclip.hub.remote import fetch, fetch_file, push

REPO = "org/model"
CONFIG, WEIGHTS = "config.json", "sub/model.safetensors"
FILES = {CONFIG: b'{"a": 1}', WEIGHTS: bytes(range(256)) * 40, "README.md": b"# a model", "other.bin": b"\0" * 9}
SHARDS = {CONFIG: b"{}", "model-1.safetensors": b"1" * 50, "model-2.safetensors": b"2" * 60}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
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


def chosen(*names: str) -> dict[str, bytes]:
    return {name: FILES[name] for name in names}


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE) / "models--org--model"


def one_line(error: BaseException) -> str:
    """What the command line would print; checks that no chain of errors comes along."""
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    assert "\n" not in str(error)
    return str(error)


def lay_out(commit: str = "c" * 40, files: dict[str, bytes] = FILES, ref: str = "main") -> Path:
    """A cache as huggingface_hub makes it, with nothing of ours in it."""
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


# -- fetching


def test_the_chosen_files_come_and_no_others(server):
    offered = []
    folder = fetch(REPO, lambda names: offered.append(names) or both(names))
    assert offered == [sorted(FILES)]
    assert contents(folder) == chosen(CONFIG, WEIGHTS)
    assert folder == cache() / "snapshots" / server.commit(REPO)
    assert (cache() / "refs" / "main").read_text() == server.commit(REPO)
    assert (folder / WEIGHTS).resolve() == cache() / "blobs" / hashlib.sha256(FILES[WEIGHTS]).hexdigest()
    assert sum("GET" in request and "README" in request for request in server.requests) == 0


def test_what_is_in_the_cache_costs_one_request(server):
    folder = fetch(REPO, both)
    server.requests.clear()
    assert fetch(REPO, both) == folder
    assert server.requests == [f"GET /api/models/{REPO}/revision/main"]
    fetch(REPO, everything)
    assert contents(folder) == FILES
    assert len(server.ranges) == len(FILES)  # each was downloaded once


def test_a_folder_of_ones_own_for_the_cache(server, tmp_path):
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


def test_a_change_is_fetched_and_what_stayed_is_not(server):
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


def test_nothing_is_chosen(server):
    with pytest.raises(
        FileNotFoundError, match=r"org/model: none of the files .* there are: README\.md, config\.json, "
    ):
        fetch(REPO, lambda _: [])
    assert not cache().exists()


def test_what_choose_raises_is_raised(server):
    with pytest.raises(KeyError, match="mine"):
        fetch(REPO, lambda names: {}["mine"])


def test_names_that_lead_out_of_the_folder_are_not_offered(server):
    evil = ["../../../../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:\\evil", "C:evil"]
    server.repos[REPO] |= dict.fromkeys(evil, b"!")
    assert contents(fetch(REPO, everything)) == FILES


@pytest.mark.parametrize("commit", ["../../elsewhere", "", None, "0" * 39])
def test_a_commit_that_is_none(server, monkeypatch, commit):
    monkeypatch.setattr(server, "commit", lambda *_: commit or "x")
    monkeypatch.setattr(server, "files", lambda *_: FILES)
    with pytest.raises(ConnectionError, match=r"what answers there is no Hub"):
        fetch(REPO, both)


def test_the_cache_stays_one_of_huggingface_hub(server):
    fetch(REPO, both)
    report = scan_cache_dir(constants.HF_HUB_CACHE)
    assert report.warnings == []
    (repo,) = report.repos
    assert (repo.repo_id, repo.nb_files, set(repo.refs)) == (REPO, 2, {"main"})


def test_a_cache_that_may_only_be_read(server, monkeypatch):
    folder = fetch(REPO, both)
    (cache() / "refs" / "main").unlink()

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(remote, "write_atomically", refuse)
    assert fetch(REPO, both) == folder


# -- what arrives is what was announced


@pytest.mark.parametrize("announced", ["in the list", "by the blob's name"])
def test_another_content_is_refused_and_removed(server, announced):
    server.hashes = announced == "in the list"
    forged = server.forged[WEIGHTS] = FILES[WEIGHTS][::-1]
    with pytest.raises(CheckpointError) as caught:
        fetch(REPO, both)
    message = one_line(caught.value)
    assert message.startswith(f"{REPO}: {WEIGHTS}: damaged")
    assert hashlib.sha256(forged).hexdigest() in message
    assert f"expected {hashlib.sha256(FILES[WEIGHTS]).hexdigest()}" in message
    assert not any(path.read_bytes() == forged for path in (cache() / "blobs").iterdir())
    assert not list(cache().rglob("*.safetensors"))
    server.forged.clear()
    assert contents(fetch(REPO, both)) == chosen(CONFIG, WEIGHTS)


def test_where_links_cannot_be_made(server, monkeypatch):
    """As on many a Windows: the files themselves are in the snapshot."""
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


def test_a_hash_that_is_broken_off_keeps_nothing(server, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(REPO, both)
    assert [path.read_bytes() for path in (cache() / "blobs").iterdir()] == [FILES[CONFIG]]
    assert contents(fetch(REPO, both)) == chosen(CONFIG, WEIGHTS)


def test_what_was_there_is_not_hashed_again(server, monkeypatch):
    first = fetch(REPO, both)
    server.repos[REPO] = {**FILES, CONFIG: b"changed"}
    monkeypatch.setattr(remote, "_verify", None)
    assert fetch(REPO, both) != first
    with pytest.raises(TypeError):  # and would have been
        fetch_file(REPO, "other.bin")


def test_a_download_that_breaks_off_goes_on_where_it_was(server, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.cut[WEIGHTS] = 4000
    try:
        folder = fetch(REPO, both)
    except ConnectionError:  # huggingface_hub 1.0 goes on in the next call only
        folder = fetch(REPO, both)
    assert contents(folder) == chosen(CONFIG, WEIGHTS)
    assert server.ranges == [None, None, "bytes=4000-"]


def test_a_file_of_another_size_did_not_arrive(server):
    server.forged[WEIGHTS] = FILES[WEIGHTS][:-1]
    with pytest.raises(ConnectionError) as caught:
        fetch(REPO, both)
    assert one_line(caught.value).startswith(f"{REPO}: {WEIGHTS} did not arrive; and ")
    assert "should be of size 10240 but has size 10239" in str(caught.value)


# -- without a network


# name: (how it comes about, what the reason says)
FAILURES = {
    "refused": (lambda server, patch: server.close(), "refused"),
    "HF_HUB_OFFLINE": (lambda server, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True), "HF_HUB_OFFLINE is set"),
    "500": (lambda server, patch: setattr(server, "error", 500), "HTTP error 500"),
    "503": (lambda server, patch: setattr(server, "error", 503), "HTTP error 503"),
    "429": (lambda server, patch: setattr(server, "error", 429), "HTTP error 429"),
    "portal": (lambda server, patch: setattr(server, "portal", True), "what answers there is no Hub"),
    "no such host": (lambda server, patch: patch.setattr(constants, "ENDPOINT", "http://hub.invalid"), "["),
    "no protocol": (lambda server, patch: patch.setattr(constants, "ENDPOINT", "hub.invalid"), "protocol"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_cache_answers_without_a_word(server, monkeypatch, capfd, caplog, failure):
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
def test_what_is_not_in_the_cache_is_said_in_one_line(server, monkeypatch, failure):
    fetch(REPO, both)
    action, reason = FAILURES[failure]
    action(server, monkeypatch)
    for name, options, problem in (
        (REPO, {"revision": "v9"}, "nothing of revision 'v9' is in the cache"),
        (REPO, {"revision": "0" * 40}, f"nothing of revision '{'0' * 40}' is in the cache"),
        ("org/absent", {}, "nothing of revision 'main' is in the cache"),
        (REPO, {}, "not in the cache: README.md, other.bin"),
    ):
        with pytest.raises(ConnectionError) as caught:
            fetch(name, everything, **options)
        message = one_line(caught.value)
        assert message.startswith(f"{name}: {problem}; and {constants.ENDPOINT} cannot be reached (")
        assert reason in message
        assert "connect once" in message
        assert "HF_ENDPOINT" in message
        assert "path of a local copy" in message


def test_offline_asks_nothing_of_the_network(server, monkeypatch):
    lay_out()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetch(REPO, both)
    assert server.requests == []


def test_a_name_that_the_repository_never_had(server):
    """The list is known from before: more network would not help."""
    fetch(REPO, both)
    server.close()
    with pytest.raises(FileNotFoundError, match=r"no file 'confg.json'.*did you mean 'config.json'"):
        fetch_file(REPO, "confg.json")


def test_a_server_that_never_answers(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    server.silent = True
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"cannot be reached \(.*timed out.*\)"):
        fetch(REPO, both)
    assert time.monotonic() - began < 9  # without the setting, 10


def test_a_call_that_hangs_is_left_behind(server, monkeypatch):
    """As the look-up of a name may, which no time limit of a request counts for."""
    hung = threading.Event()
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.01)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: hung.wait(9))
    with pytest.raises(ConnectionError, match=r"cannot be reached \(no answer within 0\.02 seconds\)"):
        fetch(REPO, both)
    hung.set()


def test_a_cache_that_another_library_filled(server, monkeypatch):
    folder = lay_out(files=chosen(CONFIG, WEIGHTS))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offered = []
    assert fetch(REPO, lambda names: offered.append(names) or names) == folder
    assert offered == [[CONFIG, WEIGHTS]]
    assert fetch(REPO, both, revision="c" * 40) == folder
    with pytest.raises(ConnectionError, match=r"org/model: not in the cache: README\.md; and"):
        fetch_file(REPO, "README.md")

    def unhappy(names):
        raise FileNotFoundError("no merges.txt in it\nor elsewhere")

    for choose, problem in ((unhappy, r" \(no merges\.txt in it\)"), (lambda names: [], "")):
        with pytest.raises(ConnectionError) as caught:
            fetch(REPO, choose)
        assert f"{REPO}: of revision 'main' the cache has only {CONFIG}, {WEIGHTS}" in one_line(caught.value)
        caught.match(problem)


@pytest.mark.parametrize("ref", ["", "../../x", "0" * 39])
def test_a_damaged_ref(server, monkeypatch, ref):
    lay_out()
    (cache() / "refs" / "main").write_text(ref)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="nothing of revision 'main'"):
        fetch(REPO, both)


@pytest.mark.parametrize("listing", ["", "[]", "{}", "[1]", "{", "\udcff"])
def test_a_damaged_listing_is_as_none(server, monkeypatch, listing):
    folder = lay_out()
    (cache() / "listings").mkdir()
    (cache() / "listings" / f"{'c' * 40}.json").write_bytes(listing.encode(errors="surrogateescape"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(REPO, both) == folder


def test_half_a_download_is_known_as_half(server):
    """Of two shards one is there: no `choose` could see from the folder alone that one is missing."""
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
        with pytest.raises(ConnectionError, match=r"org/model: not in the cache: model-2\.safetensors; and .*refused"):
            fetch(REPO, shards, revision=revision)


def test_an_update_that_fails_leaves_what_was(server):
    old = fetch(REPO, both)
    server.repos[REPO] = {**FILES, CONFIG: b"changed", WEIGHTS: b"changed too"}
    server.forged[WEIGHTS] = b"hacked  too"
    with pytest.raises(CheckpointError):
        fetch(REPO, both)
    server.close()
    assert fetch(REPO, both) == old
    assert contents(old) == chosen(CONFIG, WEIGHTS)


def test_a_network_that_goes_between_list_and_file(server):
    with pytest.raises(ConnectionError) as caught:
        fetch(REPO, lambda names: server.close() or both(names))
    message = one_line(caught.value)
    assert message.startswith(f"{REPO}: {CONFIG} did not arrive; and {server.url} cannot be reached (")
    assert "refused" in message


# -- refusals


def test_a_repository_that_is_not_there(server):
    server.private.add(REPO)
    for name in ("org/modle", REPO):
        with pytest.raises(FileNotFoundError) as caught:
            fetch(name, both)
        message = one_line(caught.value)
        assert message.startswith(f"{name}: no such repository on {server.url}, or a private one")
        assert "spelling" in message
        assert "hf auth login" in message
    assert not cache().exists()


def test_a_private_repository_with_a_token(server, monkeypatch):
    server.private.add(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert contents(fetch(REPO, both)) == chosen(CONFIG, WEIGHTS)


def test_a_revision_that_is_not_there(server):
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
    assert message.startswith(f"{REPO}: gated: accept its licence on {server.url}/{REPO}")
    assert "hf auth login" in message


def test_a_token_that_is_not_accepted(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PermissionError) as caught:
        fetch(REPO, both)
    message = one_line(caught.value)
    assert message.startswith(f"{REPO}: {server.url} refuses (")
    assert "Invalid credentials" in message
    assert "hf auth login" in message


@pytest.mark.parametrize(("status", "kind"), [(403, PermissionError), (404, FileNotFoundError), (418, OSError)])
def test_other_answers(server, status, kind):
    fetch(REPO, both)
    server.error = status
    with pytest.raises(OSError, match=f"^{REPO}: .*it hurts") as caught:
        fetch(REPO, both)
    assert type(caught.value) is kind
    one_line(caught.value)


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "../etc", "org/..", "a--b/c", "org/", "https://huggingface.co/org/model"]
)
def test_names_that_no_repository_can_have(server, name):
    with pytest.raises(ValueError, match="is no name of a repository") as caught:
        fetch(name, both)
    one_line(caught.value)
    assert server.requests == []


@pytest.mark.parametrize("revision", ["../x", "/etc/passwd", "a/../../x", "."])
def test_names_that_no_revision_can_have(server, revision):
    with pytest.raises(ValueError, match="is no name of a branch"):
        fetch(REPO, both, revision=revision)


# -- pushing


@pytest.fixture
def folder(tmp_path):
    for name, content in {**FILES, ".hidden": b"x", ".git/config": b"x"}.items():
        path = tmp_path / "pushed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "pushed"


@pytest.mark.parametrize("private", [True, False])
def test_push_makes_a_repository(server, folder, private):
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


def test_push_to_what_is_there(server, folder):
    server.repos[REPO] = {"kept.txt": b"kept", CONFIG: b"old"}
    assert push(folder, REPO, token="hf_writer") == f"{server.url}/{REPO}"
    assert server.repos[REPO] == {"kept.txt": b"kept", **FILES}
    assert not any("create" in request for request in server.requests)


def test_push_without_a_namespace_is_to_ones_own(server, folder):
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
    assert server.repos[repo] == (FILES if repo == REPO else {})  # the main branch is as it was


def test_push_without_a_login(server, folder):
    for repo in (REPO, "writer/new"):
        with pytest.raises(PermissionError) as caught:
            push(folder, repo)
        assert one_line(caught.value).startswith(f"{repo}: not logged in to {server.url}: `hf auth login`")
    assert server.repos == {REPO: FILES}


def test_push_to_others(server, folder):
    server.repos["others/model"] = {}
    for repo in ("others/model", "others/new"):
        with pytest.raises(PermissionError) as caught:
            push(folder, repo, token="hf_writer")
        message = one_line(caught.value)
        assert message.startswith(f"{repo}: this login may not write there (")
        assert "hf auth login" in message
    assert server.repos["others/model"] == {}


@pytest.mark.parametrize("failure", FAILURES)
def test_push_without_a_network(server, folder, monkeypatch, failure):
    action, reason = FAILURES[failure]
    action(server, monkeypatch)
    with pytest.raises(ConnectionError) as caught:
        push(folder, REPO, token="hf_writer")
    message = one_line(caught.value)
    assert message.startswith(f"{REPO}: nothing was pushed, for {constants.ENDPOINT} cannot be reached (")
    assert reason in message


def test_push_of_nothing(server, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, problem in (("empty", "no files in it"), ("absent", "no such folder")):
        with pytest.raises(FileNotFoundError, match=f"{name}: {problem}"):
            push(tmp_path / name, REPO, token="hf_writer")
    assert server.requests == []


def test_push_with_a_readme_that_the_hub_refuses(server, folder):
    (folder / "README.md").write_text("---\nlicense: none-such\n---\n")
    with pytest.raises(ValueError, match=r"org/model: Invalid metadata in README.md.*must be one of") as caught:
        push(folder, REPO, token="hf_writer")
    one_line(caught.value)
    assert server.messages == []


# -- as a user has it: huggingface_hub reads the environment


SCRIPT = """
import json, sys, types
sys.modules["miniclip"] = package = types.ModuleType("miniclip")  # without its __init__, which takes seconds for torch
package.__path__ = [sys.argv[1]]
from miniclip.hub.remote import fetch
before = "huggingface_hub" in sys.modules
print(json.dumps([before, str(fetch("org/model", lambda names: ["config.json", "sub/model.safetensors"]))]))
"""


def test_in_processes_of_their_own(server, tmp_path):
    settings = server.settings(tmp_path)

    def run(**more: str) -> tuple[list, str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(Path(remote.__file__).parent)],
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
