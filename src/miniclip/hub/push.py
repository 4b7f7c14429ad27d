"""Upload of a model and its card to the Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from miniclip.checkpoints import LAYOUTS, Layout
from miniclip.checkpoints.export import export
from miniclip.checkpoints.files import is_checkpoint_file
from miniclip.hub.client_errors import HubUnavailableError, one_line_errors
from miniclip.hub.download import check_repo_name
from miniclip.hub.model_card import model_card
from miniclip.hub.saving import save
from miniclip.inference.model import CLIPModel
from miniclip.utils.checks import did_you_mean


def push_to_hub(
    model: CLIPModel,
    repo: str,
    *,
    layout: Literal["miniclip"] | Layout = "miniclip",
    metrics: Mapping[str, Any] | None = None,
    private: bool = False,
    message: str = "Upload with miniclip",
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a model to the Hub, with a card that describes it, in one commit.

    It replaces a checkpoint that the branch holds. The same commit deletes weights, configurations and tokenizers of
    the top folder that are not written now, since `load` could open them. Other files and subfolders stay.

    Args:
        model: the model.
        repo: `org/name`; created if it does not exist.
        layout: "miniclip", or one of the layouts of weights of `export`.
        metrics: results for the card, as `evaluation.retrieval` returns them.
        private: make a new repository private.
        message: commit message.
        revision: branch, created if it does not exist; None means `main`.
        token: access token; None means that of `hf auth login` or HF_TOKEN.

    Returns:
        The URL of the repository's page.

    Raises:
        PermissionError: not logged in, or the token has no write access.
        ConnectionError: the Hub cannot be reached.
        ValueError: the layout cannot hold this model.
    """
    if layout not in ("miniclip", *LAYOUTS):
        raise ValueError(f"unknown layout {layout!r}{did_you_mean(layout, ('miniclip', *LAYOUTS))}")
    with tempfile.TemporaryDirectory() as folder:
        if layout == "miniclip":
            save(model, folder)
        else:
            export(model, folder, layout=layout, repo=repo)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        card = model_card(repo, model.config.to_dict(), metrics, parameters=parameters)
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        return _upload(folder, repo, private, message, revision, token, delete=is_checkpoint_file)


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    message: str = "Upload with miniclip",
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a folder to a model repository in one commit.

    Args:
        folder: folder whose files are uploaded, hidden ones excepted. Other files of the repository stay.
        repo: `org/name`; created if it does not exist.
        private: make a new repository private.
        message: commit message.
        revision: branch, created if it does not exist; None means `main`.
        token: access token; None means that of `hf auth login` or HF_TOKEN.

    Returns:
        The URL of the repository's page.

    Raises:
        FileNotFoundError: the folder is missing or empty.
        PermissionError: not logged in, or the token has no write access.
        ConnectionError: the Hub cannot be reached.
        ValueError: the repository's name is not valid, or the Hub refuses the card's metadata.
    """
    return _upload(folder, repo, private, message, revision, token)


def _upload(
    folder: str | Path,
    repo: str,
    private: bool,
    message: str,
    revision: str | None,
    token: str | None,
    delete: Callable[[str], bool] | None = None,
) -> str:
    """Upload a folder as `push`; delete the other files of the branch's top folder for which `delete` is true."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    check_repo_name(repo)
    folder = Path(folder)
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not paths:
        raise FileNotFoundError(f"{folder}: {'the folder has no files' if folder.is_dir() else 'no such folder'}")
    api = HfApi(library_name="miniclip", token=token)
    try:
        with one_line_errors(repo, revision, writing=True):
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if revision:
                api.create_branch(repo, branch=revision, exist_ok=True)
            written = {path.as_posix() for path in paths}
            names = api.list_repo_files(repo, revision=revision) if delete else []
            stale = [name for name in names if "/" not in name and name not in written and delete and delete(name)]
            # upload_folder can make several commits, and a reader between them would get an incomplete model
            api.create_commit(
                repo,
                [
                    *(CommitOperationAdd(path.as_posix(), folder / path) for path in paths),
                    *(CommitOperationDelete(name, is_folder=False) for name in stale),
                ],
                commit_message=message,
                revision=revision,
            )
    except HubUnavailableError as error:
        raise ConnectionError(
            f"{repo}: nothing was uploaded, {constants.ENDPOINT} cannot be reached ({error}): connect to the network, "
            "unset HF_HUB_OFFLINE, and push again"
        ) from None
    return f"{constants.ENDPOINT}/{repo}" + (f"/tree/{quote(revision, safe='')}" if revision else "")
