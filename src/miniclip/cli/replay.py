"""Old data of `miniclip finetune --replay`, and their place in the facts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def require_old_data(spec: str | None, share: float | None) -> None:
    """Check that a share has old data; arguments as in `replay_of`.

    Raises:
        ValueError: it has none.
    """
    if share is not None and not spec:
        raise ValueError(f"--replay-share {share} has no old data: add --replay DATA, or remove it")


def replay_of(spec: str | None, share: float | None) -> dict[str, Any]:
    """Return the entries of a run's `about` for old data; none without old data.

    Args:
        spec: a dataset, which may end with ":" and a split; None: no old data.
        share: the part of every batch that is old; None: the default.

    Raises:
        ValueError: the share is out of its range or has no old data, or the split is one for evaluation.
        TypeError: the share is not a number.
    """
    from miniclip.cli.finetuning.against import spec_and_split  # its imports need torch
    from miniclip.data.opening import absolute_spec
    from miniclip.data.replay import SHARE, require_share

    require_old_data(spec, share)
    if spec is None:
        return {}
    if isinstance(share, bool) or not isinstance(share, float | int | None):
        raise TypeError(f"replay_share is {share!r}; expected a number above 0 and below 1")
    share = SHARE if share is None else share
    require_share(share)
    data, split = spec_and_split(spec, "train")
    if split in ("val", "test"):
        raise ValueError(
            f"--replay {spec}: the model would be trained on images that show what it has lost: use {data}:train"
        )
    return {"replay": f"{absolute_spec(data)}:{split}", "replay_share": share}


def changed_replay(about: Mapping[str, Any], spec: str | None, share: float | None) -> dict[str, Any]:
    """Return the entries of a resumed run's `about` that the flags change; arguments as in `replay_of`."""
    if spec is None and share is None:
        return {}
    return replay_of(spec or about.get("replay"), about.get("replay_share") if share is None else share)


def with_replay(train_data: Any, about: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return training data with the old images that a run's `about` names.

    Args:
        train_data: the new images.
        about: facts of a run.
        options: of `open_data`.
    """
    from miniclip.cli.finetuning.against import spec_and_split
    from miniclip.data import Replay, open_data

    if "replay" not in about:
        return train_data
    spec, split = spec_and_split(about["replay"], "train")
    return Replay(train_data, open_data(spec, split, **options), about["replay_share"])  # type: ignore[arg-type]
