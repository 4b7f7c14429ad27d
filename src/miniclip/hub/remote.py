"""The Hugging Face Hub: files fetched into its cache, checked, and used again without a network; a folder pushed.

One request lists a repository at a revision and names the commit. What is chosen of the list, and is not there yet,
comes through huggingface_hub, into its cache and in its layout, which other libraries share:

    models--org--name/refs/main               the commit that `main` was, last time
                      snapshots/<commit>/…    the files, as links to
                      blobs/<hash>            their contents
                      listings/<commit>.json  ours: all files of the commit, so that half a download is known as half

huggingface_hub is imported where it is used: `import miniclip` does without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import quote

from miniclip.errors import CheckpointError
from miniclip.utils.atomic import write_atomically
from miniclip.utils.checks import did_you_mean

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

COMMIT = re.compile("[0-9a-f]{40}")
SHA256 = re.compile("[0-9a-f]{64}")
CLIENTS = {"huggingface_hub", "hf_xet", "httpx", "httpx2"}  # whose exceptions speak of the network or of the Hub

Choose = Callable[[list[str]], list[str]]
Kind = Literal["model", "dataset"]
T = TypeVar("T")


class _NoAnswerError(ConnectionError):
    """The Hub cannot be reached, or is not well; the message is the short reason."""


def fetch(
    repo: str,
    choose: Choose,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    kind: Kind = "model",
) -> Path:
    """A folder with the chosen files of a repository on the Hub; what is not in the cache is downloaded.

    Where the Hub cannot be reached (HF_HUB_OFFLINE, no network, a server that fails) the cache answers, without a
    word, if it holds all of the files at this revision. A commit whose files are there asks nothing of the network.

    Args:
        repo: its name, `org/name`.
        choose: picks, of the names of all files, those that are wanted; `/` stands between folders. It may raise what
            it likes where nothing fits. Without a network it is given the list as it was, or, where another library
            filled the cache, the files that are there.
        revision: a branch, a tag or a commit; None: `main`.
        cache_dir: None: huggingface_hub's, by HF_HUB_CACHE or HF_HOME.
        kind: of the repository.

    Returns:
        The commit's folder in the cache, with the files below it under their own names.

    Raises:
        FileNotFoundError: no such repository, revision or file, or it is private.
        PermissionError: the repository is gated, or the token is not accepted.
        ConnectionError: there is no network, and the cache does not hold all.
        CheckpointError: what was downloaded is not what the Hub announced; it is removed.
        ValueError: this cannot be the name of a repository or of a revision.
    """
    revision = revision or "main"
    cache = _open(repo, revision, cache_dir, kind)
    known = cache.listing(revision) if COMMIT.fullmatch(revision) else None  # a commit never changes
    if known and cache.has(revision, _pick(repo, revision, choose, known)):
        return cache.snapshot(revision)
    try:
        commit, hashes = _list(repo, revision, kind)
        reason = ""
    except _NoAnswerError as error:
        reason = str(error)
    if reason:
        return _cached(cache, repo, revision, choose, reason)
    for name in _pick(repo, revision, choose, list(hashes)):
        _download(cache, repo, commit, name, hashes[name], kind)
        cache.write_listing(commit, list(hashes))  # beside a first file, never alone: others expect a snapshot
    cache.write_ref(revision, commit)  # last: until all has come, the revision stays what it was
    return cache.snapshot(commit)


def fetch_file(repo: str, name: str, *, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """One file of a model repository on the Hub; see `fetch`."""
    return fetch(repo, lambda _: [name], revision=revision, cache_dir=cache_dir) / name


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    message: str = "Upload with miniclip",
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a folder to a model repository on the Hub, in one commit.

    Args:
        folder: all of its files, those in sub-folders too; hidden ones stay behind. What the repository has besides
            stays as it is.
        repo: its name, `org/name`; made where it is missing, and then `private` or not.
        private: see `repo`; an existing repository stays as it is.
        message: of the commit.
        revision: a branch, made where it is missing; None: `main`.
        token: None: the one of `hf auth login` or HF_TOKEN.

    Returns:
        The page of the repository.

    Raises:
        FileNotFoundError: the folder is missing or empty.
        PermissionError: not logged in, or not with a token that may write there.
        ConnectionError: there is no network.
        ValueError: the name cannot be a repository's, or the Hub finds the README's front matter wrong.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    _check_names(repo, revision or "main")
    folder = Path(folder)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise FileNotFoundError(f"{folder}: {'no files in it' if folder.is_dir() else 'no such folder'}; push what?")
    api = HfApi(library_name="miniclip", token=token)
    try:
        with _plain_errors(repo, revision, writing=True):
            repo = _prepare(api, repo, private, revision)
            # One commit by hand: upload_folder, in newer versions, makes several, and a reader could see half.
            api.create_commit(
                repo,
                [CommitOperationAdd(name.as_posix(), folder / name) for name in names],
                commit_message=message,
                revision=revision,
            )
    except _NoAnswerError as error:
        raise ConnectionError(
            f"{repo}: nothing was pushed, for {constants.ENDPOINT} cannot be reached ({error}): connect, without "
            "HF_HUB_OFFLINE, and push again"
        ) from None
    return f"{constants.ENDPOINT}/{repo}" + (f"/tree/{quote(revision, safe='')}" if revision else "")


@dataclasses.dataclass(frozen=True)
class _Cache:
    """A repository's folder in the cache; see this file's head."""

    folder: Path

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def has(self, commit: str, names: list[str]) -> bool:
        return all((self.snapshot(commit) / name).is_file() for name in names)

    def commit(self, revision: str) -> str | None:
        """The commit that a revision is, or was when it was fetched last."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return commit if COMMIT.fullmatch(commit) else None

    def write_ref(self, revision: str, commit: str) -> None:
        if self.commit(revision) != commit:
            self._write(self.folder / "refs" / revision, commit)

    def listing(self, commit: str) -> list[str] | None:
        """The names of all files of a commit, if they are known."""
        try:
            names = json.loads((self.folder / "listings" / f"{commit}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None

    def write_listing(self, commit: str, names: list[str]) -> None:
        if self.listing(commit) != names:
            self._write(self.folder / "listings" / f"{commit}.json", json.dumps(names, indent=1))

    def _write(self, path: Path, text: str) -> None:
        with contextlib.suppress(OSError):  # a cache that may only be read is as good for this time
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _open(repo: str, revision: str, cache_dir: str | Path | None, kind: Kind) -> _Cache:
    from huggingface_hub import constants

    _check_names(repo, revision)
    root = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()
    return _Cache(root / "--".join([f"{kind}s", *repo.split("/")]))


def _check_names(repo: str, revision: str) -> None:
    """Both become paths of files: nothing that leads elsewhere may pass.

    Raises:
        ValueError: one of them cannot be a name.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_url(repo, "a name")  # which holds it to the Hub's rules
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a repository on the Hub ('org/name'): {_one_line(error)}") from None
    if not _stays_below(revision):
        raise ValueError(f"{revision!r} is no name of a branch, a tag or a commit")


def _stays_below(name: str) -> bool:
    """Whether a file of this name lies below the folder that the name is joined to, on any system."""
    path = PureWindowsPath(name)  # which knows both slashes, and drives
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def _list(repo: str, revision: str, kind: Kind) -> tuple[str, dict[str, str | None]]:
    """The commit that a revision is now; and its files, with the sha256 of each whose hash the Hub tells."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="miniclip")
    with _plain_errors(_path(repo, kind), revision):
        ask = api.model_info if kind == "model" else api.dataset_info
        info = _ask(lambda limit: ask(repo, revision=revision, files_metadata=True, timeout=limit))
    if not COMMIT.fullmatch(info.sha or ""):
        raise _NoAnswerError("what answers there is no Hub")
    files = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or []}
    return str(info.sha), {name: files[name] for name in sorted(files) if _stays_below(name)}


def _pick(repo: str, revision: str, choose: Choose, listing: list[str]) -> list[str]:
    """What is chosen of a list that is known to be complete.

    Raises:
        FileNotFoundError: nothing, or a file that is not there.
    """
    names = list(choose(list(listing)))
    for name in names:
        if name not in listing:
            raise FileNotFoundError(f"{repo}: no file {name!r} at revision {revision!r}{did_you_mean(name, listing)}")
    if not names:
        has = ", ".join(listing) or "none"
        raise FileNotFoundError(f"{repo}: none of the files at revision {revision!r} is of use; there are: {has}")
    return names


def _cached(cache: _Cache, repo: str, revision: str, choose: Choose, reason: str) -> Path:
    """What `fetch` returns without a network."""
    commit = cache.commit(revision)
    if commit is None or not cache.snapshot(commit).is_dir():
        raise _unreachable(repo, f"nothing of revision {revision!r} is in the cache", reason)
    folder = cache.snapshot(commit)
    listing = cache.listing(commit)
    if listing is not None:
        names = _pick(repo, revision, choose, listing)
    else:  # another library's download: what else the repository has is not known
        present = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        problem = f"of revision {revision!r} the cache has only {', '.join(present) or 'links to nothing'}"
        try:
            names = list(choose(present))
        except (OSError, ValueError, LookupError) as error:
            raise _unreachable(repo, f"{problem} ({_one_line(error)})", reason) from None
        if not names:
            raise _unreachable(repo, problem, reason)
    missing = [name for name in names if not cache.has(commit, [name])]
    if missing:
        raise _unreachable(repo, f"not in the cache: {', '.join(missing)}", reason)
    return folder


def _unreachable(repo: str, problem: str, reason: str) -> ConnectionError:
    from huggingface_hub import constants

    return ConnectionError(
        f"{repo}: {problem}; and {constants.ENDPOINT} cannot be reached ({reason}): connect once, and set "
        "HF_HUB_OFFLINE only after that; or set HF_ENDPOINT to a mirror; or pass the path of a local copy"
    )


def _path(repo: str, kind: Kind) -> str:
    """What follows the Hub's address in that of the repository's page."""
    return repo if kind == "model" else f"{kind}s/{repo}"


def _download(cache: _Cache, repo: str, commit: str, name: str, sha256: str | None, kind: Kind) -> None:
    """Get one file into the cache, if it is not there, and hold it to the hash that the Hub gave.

    Raises:
        ConnectionError: it did not arrive.
        CheckpointError: its content is another; it is removed.
    """
    from huggingface_hub import hf_hub_download

    if cache.has(commit, [name]):
        return
    path = cache.snapshot(commit) / name
    blobs = cache.folder / "blobs"
    before = {blob.name for blob in blobs.iterdir()} if blobs.is_dir() else set()
    try:
        with _plain_errors(_path(repo, kind), commit):
            hf_hub_download(
                repo, name, repo_type=kind, revision=commit, cache_dir=cache.folder.parent, library_name="miniclip"
            )
    except _NoAnswerError as error:
        raise _unreachable(repo, f"{name} did not arrive", str(error)) from None
    blob = path.readlink().name if path.is_symlink() else ""
    expected = sha256 or (blob if SHA256.fullmatch(blob) else None)  # large files' contents are named by their hash
    if expected and expected not in before:
        _verify(path, f"{repo}: {name}", expected)


def _verify(path: Path, what: str, expected: str) -> None:
    found = None
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    finally:  # after Ctrl-C too: what was not seen to be right is not kept
        if found != expected:
            while path.is_symlink():
                path, link = path.parent / path.readlink(), path
                link.unlink()
            path.unlink(missing_ok=True)
    if found != expected:
        raise CheckpointError(
            f"{what}: damaged on the way: its sha256 is {found}, expected {expected}; it was removed: download it again"
        )


def _prepare(api: HfApi, repo: str, private: bool, revision: str | None) -> str:
    """Make a repository and its branch where they are missing; its full name."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        _ask(lambda limit: api.model_info(repo, revision=revision, timeout=limit))
        return repo
    except RepositoryNotFoundError:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    except RevisionNotFoundError:
        pass
    if revision:
        api.create_branch(repo, branch=revision, exist_ok=True)
    return repo


def _ask(call: Callable[[float], T]) -> T:
    """Call with the time limit of one request (HF_HUB_ETAG_TIMEOUT), and wait twice as long at most.

    A request's limit counts for each address of a host, and not for finding them, so without a network it can take
    minutes: the call is left behind in a thread then.

    Raises:
        TimeoutError: it took too long.
    """
    from huggingface_hub import constants

    limit = float(constants.HF_HUB_ETAG_TIMEOUT)
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call(limit))
        except BaseException as error:  # all of them are raised again, where the result is asked for
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(2 * limit)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {2 * limit:g} seconds") from None


@contextlib.contextmanager
def _plain_errors(repo: str, revision: str | None, writing: bool = False) -> Iterator[None]:
    """Raise what a client of the Hub raises as one line that says what to do, or as `_NoAnswerError`."""
    try:
        yield
    except Exception as error:
        plain = _plain(error, repo, revision, writing)
        if plain is None:
            raise
        raise plain from None


def _plain(error: BaseException, repo: str, revision: str | None, writing: bool) -> Exception | None:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        return _plain(error.__cause__, repo, revision, writing)  # the client's own words for what happened
    if isinstance(error, OfflineModeIsEnabled):
        return _NoAnswerError("HF_HUB_OFFLINE is set")
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repo, revision, writing)
    if isinstance(error, json.JSONDecodeError | KeyError):
        return _NoAnswerError("what answers there is no Hub")
    if writing and isinstance(error, ValueError):
        return ValueError(f"{repo}: {' '.join(str(error).split())}")
    of_client = type(error).__module__.split(".")[0] in CLIENTS or isinstance(error, RuntimeError)  # hf_xet's
    if of_client or (isinstance(error, OSError) and error.errno is None):  # with a number: the disk's
        return _NoAnswerError(_one_line(error))
    return None


def _refusal(error: HfHubHTTPError, repo: str, revision: str | None, writing: bool) -> Exception:
    """What the Hub's answer means to the user."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    hub, page = constants.ENDPOINT, f"{constants.ENDPOINT}/{repo}"
    status, said = error.response.status_code, _one_line(error.server_message or error)
    missing = isinstance(error, RepositoryNotFoundError)
    if status in (408, 429) or status >= 500:
        return _NoAnswerError(f"HTTP error {status}")
    if writing and status == 401:
        return PermissionError(
            f"{repo}: not logged in to {hub}: `hf auth login` with a token that may write, or set HF_TOKEN"
        )
    if writing and (status == 403 or missing):
        return PermissionError(
            f"{repo}: this login may not write there ({said}): check the name, or `hf auth login` with a token that may"
        )
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{repo}: gated: accept its licence on {page}, then `hf auth login` or set HF_TOKEN")
    if missing:
        return FileNotFoundError(
            f"{repo}: no such repository on {hub}, or a private one: check the spelling; if it is private, "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo}: no branch, tag or commit {revision!r}: see those it has on {page}/tree/main")
    if status in (401, 403):
        return PermissionError(f"{repo}: {hub} refuses ({said}): `hf auth login` with a token that may read it")
    if status == 404:
        return FileNotFoundError(f"{repo}: not found on {hub} ({said})")
    return OSError(f"{repo}: {hub} answered {status} ({said})")


def _one_line(error: object) -> str:
    """What an error says, without its further lines."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
