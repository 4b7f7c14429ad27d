"""Model card of a checkpoint on the Hub: a README.md with metadata, a usage example, results and the architecture.

Metadata: https://huggingface.co/docs/hub/model-cards. Values are escaped, so that none breaks the YAML, a table or the
code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

TAGS = ("clip", "contrastive-learning", "image-retrieval")
MARKDOWN = frozenset("\\`*_[]<>|#~&$")  # characters with a meaning in a line or a table cell

# setting of a tower: label of its row
ROWS = {
    "kind": "kind",
    "model": "architecture in timm",
    "blocks": "blocks of each stage",
    "channels": "channels after the stem",
    "image_size": "image size (pixels)",
    "patch_size": "patch size (pixels)",
    "context_length": "context length (tokens)",
    "vocab_size": "vocabulary size",
    "layers": "layers",
    "width": "width",
    "heads": "heads",
    "activation": "activation",
    "causal": "causal",
    "pooling": "pooling",
}
RESIZE = {"shortest": "resize of the short side and centre crop", "squash": "resize of both sides to the image size"}


def model_card(
    name: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    *,
    parameters: int | None = None,
    license: str | None = None,
    tags: Iterable[str] = (),
) -> str:
    """Return the text of a model card.

    Args:
        name: name that `miniclip.load` opens, such as `org/name`.
        config: configuration from `CLIPConfig.to_dict`; missing settings are left out.
        metrics: numbers by name, or groups of them, as `miniclip.evaluation` returns them:
            `{"text_to_image": {"R@1": 66.6}, "image_to_text": {"R@1": 82.1}}` becomes a table of two rows, and
            `{"accuracy": 63.2}` a table of one row.
        parameters: number of parameters.
        license: identifier of the licence on the Hub, such as `mit`.
        tags: additional tags for the Hub's search.

    Returns:
        Markdown, preceded by YAML metadata.
    """
    from huggingface_hub import ModelCard, ModelCardData

    metadata = ModelCardData(
        library_name="miniclip",
        pipeline_tag="zero-shot-image-classification",
        tags=[*TAGS, *tags],
        license=license or None,
    )
    body = _body(name, config, metrics or {}, parameters)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"))


def _body(name: str, config: Mapping[str, Any], metrics: Mapping[str, Any], parameters: int | None) -> str:
    towers = {f"{tower} tower": config[tower] for tower in ("image", "text") if isinstance(config.get(tower), Mapping)}
    settings = [
        (label, {name: tower[key] for name, tower in towers.items() if key in tower}) for key, label in ROWS.items()
    ]
    sections = [
        f"# {_text(name)}",
        _summary(config, parameters),
        _usage(name, needs_timm=towers.get("image tower", {}).get("kind") == "timm"),
        "## Evaluation" if metrics else "",
        _table(_rows(metrics)),
        "## Architecture" if towers else "",
        _table([(label, cells) for label, cells in settings if cells]),
        _preprocessing(config),
    ]
    return "\n\n".join(section for section in sections if section)


def _summary(config: Mapping[str, Any], parameters: int | None) -> str:
    dimensions = f" of {_cell(config['embed_dim'])} dimensions" if "embed_dim" in config else ""
    count = f" It has {_cell(parameters)} parameters." if parameters else ""
    return (
        "A CLIP model for `miniclip`. An image tower and a text tower map images and captions to one embedding "
        f"space{dimensions}, in which matching pairs are close.{count}"
    )


def _usage(name: str, needs_timm: bool) -> str:
    install = 'The image tower needs `pip install "miniclip[timm]"`.\n\n' if needs_timm else ""
    return (
        f"## Usage\n\n{install}```python\nimport miniclip\n\n"
        f"model = miniclip.load({name!r})\n"
        'model.classify("photo.jpg", ["a dog", "a cat"])  # (1, 2) probabilities\n```'
    )


def _preprocessing(config: Mapping[str, Any]) -> str:
    steps = []
    if "resize" in config:
        steps.append(RESIZE.get(str(config["resize"]), _cell(config["resize"])))
    if "interpolation" in config:
        steps.append(f"{_cell(config['interpolation'])} interpolation")
    if "mean" in config and "std" in config:
        mean, std = (", ".join(f"{x:.4g}" for x in config[key]) for key in ("mean", "std"))
        steps.append(f"mean ({mean}) and standard deviation ({std})")
    return f"Preprocessing (`model.preprocess`): {'; '.join(steps)}." if steps else ""


def _rows(values: Mapping[str, Any], label: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """Return one row with the values that are not groups, then the rows of each group."""
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    rows: list[tuple[str, Mapping[str, Any]]] = [(label, plain)] if plain else []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _rows(value, f"{label}, {key}" if label else str(key))
    return rows


def _table(rows: list[tuple[str, Mapping[str, Any]]]) -> str:
    """Return a Markdown table of labelled rows, each with its cells by column; missing cells are empty."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(column for _, cells in rows for column in cells))
    lines = [["", *map(_text, columns)], ["---", *("---:" for _ in columns)]]
    for label, cells in rows:
        lines.append([_text(label), *(_cell(cells[column]) if column in cells else "" for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return f"{float(value):.2f}" if abs(float(value)) >= 1 else f"{float(value):.4g}"
    return _text(str(value))


def _text(value: object) -> str:
    """Return a value as one line of Markdown that shows its characters literally."""
    printable = "".join(character for character in str(value) if character.isprintable() or character.isspace())
    line = " ".join(printable.split())
    return "".join("\\" + character if character in MARKDOWN else character for character in line)
