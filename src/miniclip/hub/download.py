"""Files of a Hub repository, downloaded into huggingface_hub's cache or found there without a network.

The cache and its layout belong to huggingface_hub and are shared with other libraries; nothing is added to them.
huggingface_hub is imported inside functions, so that `import miniclip` does not need it.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Literal

from miniclip.errors import CheckpointError
from miniclip.hub.client_errors import HubUnavailableError, first_line, one_line_errors
from miniclip.utils.checks import did_you_mean

COMMIT = re.compile("[0-9a-f]{40}")

Choose = Callable[[list[str]], list[str]]
RepoType = Literal["model", "dataset"]


def fetch(
    repo: str,
    choose: Choose,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    repo_type: RepoType = "model",
) -> Path:
    """Return a folder with the chosen files of a repository, downloading those that the cache lacks.

    If the Hub cannot be reached (HF_HUB_OFFLINE, no network, a failing server), the cached files of the revision are
    used, provided that all chosen files are cached.

    Args:
        repo: name of the repository, `org/name`.
        choose: selects the needed files from the names of all files; may raise if none is suitable. Without a network
            it gets the cached list of names or, if there is none, the names of the cached files.
        revision: branch, tag or commit; None means `main`.
        cache_dir: folder of the cache; None means that of huggingface_hub (HF_HUB_CACHE or HF_HOME).
        repo_type: "model" or "dataset".

    Returns:
        The snapshot folder of the commit in the cache.

    Raises:
        FileNotFoundError: no such repository, revision or file, or the repository is private.
        PermissionError: the repository is gated, or the token is not accepted.
        ConnectionError: the network is down and a file is not cached, or the download was interrupted.
        CheckpointError: a downloaded file does not have the announced checksum; the file is deleted.
        ValueError: the repository's name is not valid.
    """
    snapshot = Snapshot(
        repo, revision or "main", None if cache_dir is None else Path(cache_dir).expanduser(), repo_type
    )
    check_repo_name(repo)
    if COMMIT.fullmatch(snapshot.revision) and (listing := snapshot.cached_listing()) is not None:
        folder = snapshot.cached(snapshot.select(choose, listing))  # a commit never changes
        if folder is not None:
            return folder
    try:
        commit, checksums = snapshot.list_files()
    except HubUnavailableError as error:
        reason = str(error)
    else:
        return snapshot.download(commit, snapshot.select(choose, list(checksums)), checksums)
    return snapshot.without_network(choose, reason)


def check_repo_name(repo: str) -> None:
    """Raise ValueError unless a string can be the name of a repository."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_url(repo, "config.json")  # validates the name
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is not a valid repository name ('org/name'): {first_line(error)}") from None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Files of a repository at a revision, on the Hub and in the cache."""

    repo: str
    revision: str
    cache_dir: Path | None
    repo_type: RepoType

    def list_files(self) -> tuple[str, dict[str, str | None]]:
        """Return the commit of the revision, and the SHA-256 (or None) of each of its files."""
        from huggingface_hub import HfApi, constants

        api = HfApi(library_name="miniclip")
        repo_info = api.model_info if self.repo_type == "model" else api.dataset_info
        with self._one_line_errors():
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            info = repo_info(self.repo, revision=self.revision, timeout=timeout, files_metadata=True)
        if not COMMIT.fullmatch(info.sha or ""):
            raise HubUnavailableError("the server is not a Hugging Face Hub")
        files = sorted(info.siblings or [], key=lambda file: file.rfilename)
        return str(info.sha), {file.rfilename: file.lfs.sha256 if file.lfs else None for file in files}

    def select(self, choose: Choose, listing: list[str]) -> list[str]:
        """Return the chosen names of a complete list.

        Raises:
            FileNotFoundError: no file is chosen, or one that does not exist.
        """
        names = list(choose(list(listing)))
        for name in names:
            if name not in listing:
                hint = did_you_mean(name, listing)
                raise FileNotFoundError(f"{self.repo}: no file {name!r} at revision {self.revision!r}{hint}")
        if not names:
            files = ", ".join(listing) or "none"
            raise FileNotFoundError(f"{self.repo}: no suitable file at revision {self.revision!r}; its files: {files}")
        return names

    def cached(self, names: list[str]) -> Path | None:
        """Return the snapshot folder if all of these files are cached."""
        from huggingface_hub import try_to_load_from_cache

        folder = None
        for name in names:
            path = try_to_load_from_cache(self.repo, name, self.cache_dir, self.revision, self.repo_type)
            if not isinstance(path, str):
                return None
            folder = Path(path).parents[name.count("/")]
        return folder

    def cached_listing(self) -> list[str] | None:
        """Return the names of all files of the repository if the cache has them."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            files = get_cached_repo_tree(
                self.repo, revision=self.revision, cache_dir=self.cache_dir, repo_type=self.repo_type
            )
        except CachedRepoTreeNotFoundError:
            return None
        return sorted(file.path for file in files)

    def download(self, commit: str, names: list[str], checksums: dict[str, str | None]) -> Path:
        """Return the snapshot folder of a commit after downloading the files that the cache lacks."""
        from huggingface_hub import hf_hub_download, snapshot_download

        pinned = dataclasses.replace(self, revision=commit)
        missing = [name for name in names if pinned.cached([name]) is None]
        if missing:
            try:
                with self._one_line_errors():
                    snapshot_download(
                        self.repo,
                        repo_type=self.repo_type,
                        revision=commit,
                        cache_dir=self.cache_dir,
                        allow_patterns=[glob.escape(name) for name in missing],
                        library_name="miniclip",
                    )
            except HubUnavailableError as error:
                raise self._unreachable("the download was interrupted", str(error)) from None
        folder = pinned.cached(names)
        if folder is None:
            raise self._unreachable("the download is incomplete", "unknown reason")
        for name in missing:
            self._verify(folder / name, name, checksums[name])
        if self.cached(names) != folder:
            # The client moves the cached branch to this commit. It does so last: an interrupted update leaves the
            # cached branch at its earlier, complete commit.
            with suppress(OSError), self._one_line_errors():
                hf_hub_download(
                    self.repo,
                    names[0],
                    repo_type=self.repo_type,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    library_name="miniclip",
                )
        return folder

    def without_network(self, choose: Choose, reason: str) -> Path:
        """Return the snapshot folder from the cache only.

        Raises:
            ConnectionError: a chosen file is not cached.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(
                snapshot_download(
                    self.repo,
                    repo_type=self.repo_type,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    local_files_only=True,
                    allow_patterns=[],
                )
            )
        except LocalEntryNotFoundError:
            raise self._unreachable(f"revision {self.revision!r} is not in the cache", reason) from None
        cached = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        listing = self.cached_listing()
        if listing is not None:
            names = self.select(choose, listing)
        else:  # another library downloaded the files, and the cache does not list the others
            problem = f"the cache has only {', '.join(cached) or 'no files'} of revision {self.revision!r}"
            try:
                names = list(choose(cached))
            except (OSError, ValueError, LookupError) as error:
                raise self._unreachable(f"{problem} ({first_line(error)})", reason) from None
            if not names:
                raise self._unreachable(problem, reason)
        missing = [name for name in names if name not in cached]
        if missing:
            raise self._unreachable(f"not in the cache: {', '.join(missing)}", reason)
        return folder

    def _verify(self, path: Path, name: str, expected: str | None) -> None:
        """Raise CheckpointError, and delete the file, if its checksum is not the announced one."""
        if expected is None:
            return
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != expected:
            path.resolve().unlink()
            path.unlink(missing_ok=True)  # the link to it
            raise CheckpointError(
                f"{self.repo}: {name} was damaged during the download: its SHA-256 is {actual}, expected {expected}; "
                "the file was deleted: download it again"
            )

    def _one_line_errors(self) -> AbstractContextManager[None]:
        return one_line_errors(self.repo if self.repo_type == "model" else f"datasets/{self.repo}", self.revision)

    def _unreachable(self, problem: str, reason: str) -> ConnectionError:
        from huggingface_hub import constants

        return ConnectionError(
            f"{self.repo}: {problem}, and {constants.ENDPOINT} cannot be reached ({reason}): connect to the network "
            "and unset HF_HUB_OFFLINE, set HF_ENDPOINT to a mirror, or pass the path of a local copy"
        )
