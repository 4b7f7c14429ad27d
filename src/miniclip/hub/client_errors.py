"""One-line errors in place of those that the huggingface_hub client raises."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

CLIENT_PACKAGES = {"huggingface_hub", "hf_xet", "httpx", "httpx2"}


class HubUnavailableError(ConnectionError):
    """The Hub cannot be reached or is not working; the message is a short reason."""


@contextlib.contextmanager
def one_line_errors(page: str, revision: str | None, *, writing: bool = False) -> Iterator[None]:
    """Replace the client's errors by one line that tells what to do.

    Args:
        page: path of the repository's page on the Hub, such as `org/name` or `datasets/org/name`.
        revision: the requested revision.
        writing: whether the block uploads; refusals then concern the permission to write.

    Raises:
        HubUnavailableError: the network is down, or the server fails.
        FileNotFoundError: no such repository, revision or file.
        PermissionError: the repository is gated, or the token is missing or not sufficient.
        ValueError: the Hub refuses the metadata of an upload.
    """
    try:
        yield
    except Exception as error:
        replacement = _translate(error, page, revision, writing)
        if replacement is None:
            raise
        raise replacement from None


def first_line(error: object) -> str:
    """Return the first line of an error's message without the system's number, or the name of its type."""
    lines = re.sub(r"\[Errno -?\d+\] ", "", str(error)).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _translate(error: BaseException, page: str, revision: str | None, writing: bool) -> Exception | None:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        return _translate(error.__cause__, page, revision, writing)  # the client wraps the cause in longer advice
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnavailableError("HF_HUB_OFFLINE is set")
    if isinstance(error, HfHubHTTPError):
        return _translate_response(error, page, revision, writing)
    if isinstance(error, json.JSONDecodeError | KeyError):
        return HubUnavailableError("the server is not a Hugging Face Hub")
    if writing and isinstance(error, ValueError):
        return ValueError(f"{page}: {' '.join(str(error).split())}")
    from_client = type(error).__module__.split(".")[0] in CLIENT_PACKAGES or isinstance(error, RuntimeError)
    if from_client or (isinstance(error, OSError) and error.errno is None):  # an error of the disk has a number
        return HubUnavailableError(first_line(error))
    return None


def _translate_response(error: HfHubHTTPError, page: str, revision: str | None, writing: bool) -> Exception:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    hub, url = constants.ENDPOINT, f"{constants.ENDPOINT}/{page}"
    status, message = error.response.status_code, first_line(error.server_message or error)
    no_repository = isinstance(error, RepositoryNotFoundError)
    if status in (408, 429) or status >= 500:
        return HubUnavailableError(f"HTTP error {status}")
    if writing and status == 401:
        return PermissionError(
            f"{page}: not logged in to {hub}: run `hf auth login` with a token that has write access, or set HF_TOKEN"
        )
    if writing and (status == 403 or no_repository):
        return PermissionError(
            f"{page}: no write access ({message}): check the name, or run `hf auth login` with another token"
        )
    if isinstance(error, GatedRepoError):
        return PermissionError(
            f"{page}: gated repository: accept its licence on {url}, then run `hf auth login` or set HF_TOKEN"
        )
    if no_repository:
        return FileNotFoundError(
            f"{page}: no such repository on {hub}, or it is private: check the spelling; for a private one run "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{page}: no branch, tag or commit {revision!r}: {url}/tree/main lists them")
    if status in (401, 403):
        return PermissionError(f"{page}: {hub} refused access ({message}): run `hf auth login` or set HF_TOKEN")
    if status == 404:
        return FileNotFoundError(f"{page}: not found on {hub} ({message})")
    return OSError(f"{page}: {hub} returned HTTP status {status} ({message})")
