"""The page of a checkpoint on the Hub: a README.md that says what the model is, how to use it, what was measured.

Its front matter is for the Hub's search (https://huggingface.co/docs/hub/model-cards), the rest for people. All that
is put in is escaped for the place where it stands: no name and no value can break the YAML, a table or the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

TAGS = ("clip", "contrastive-learning", "image-retrieval")
MARKDOWN = frozenset("\\`*_[]<>|#~&$")  # what means something in a line, or in a table's cell

# a tower's setting, and what its row in the table is called
ROWS = {
    "image_size": "pictures, pixels on a side",
    "patch_size": "patches, pixels on a side",
    "context_length": "context, tokens",
    "vocab_size": "vocabulary, tokens",
    "layers": "layers",
    "width": "width",
    "heads": "heads",
    "activation": "activation",
    "causal": "causal",
    "pooling": "pooling",
}
RESIZE = {"shortest": "the short side resized, then the centre cut out", "squash": "both sides resized at once"}


def model_card(
    name: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    *,
    parameters: int | None = None,
    license: str | None = None,
    tags: Iterable[str] = (),
) -> str:
    """The text of a README.md for a checkpoint.

    Args:
        name: what `miniclip.load` opens it by, as `org/name`.
        config: as `CLIPConfig.to_dict` gives it; what is not in it is left out.
        metrics: numbers by name, or groups of them, as `miniclip.evaluation` returns them:
            `{"text_to_image": {"R@1": 66.6}, "image_to_text": {"R@1": 82.1}}` makes a table of two rows, and
            `{"accuracy": 63.2}` one of a single row.
        parameters: how many the model has.
        license: by the Hub's short name, as `mit`.
        tags: more of them for the Hub's search.

    Returns:
        Markdown, with YAML before it.
    """
    towers = {f"{tower} tower": config[tower] for tower in ("image", "text") if isinstance(config.get(tower), Mapping)}
    rows = [
        (label, {name: tower[key] for name, tower in towers.items() if key in tower}) for key, label in ROWS.items()
    ]
    parts = [
        _front_matter(license, [*TAGS, *tags]),
        f"# {_text(name)}",
        _summary(config, parameters),
        _use(name),
        "## Evaluation" if metrics else "",
        _table(_rows(metrics or {})),
        "## The model" if towers else "",
        _table([(label, cells) for label, cells in rows if cells]),
        _pictures(config),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(license: str | None, tags: list[str]) -> str:
    lines = ["---", "library_name: miniclip", "pipeline_tag: zero-shot-image-classification"]
    lines += ["tags:", *(f"- {_quoted(tag)}" for tag in dict.fromkeys(tags))]
    lines += [f"license: {_quoted(license)}"] if license else []
    return "\n".join([*lines, "---"])


def _summary(config: Mapping[str, Any], parameters: int | None) -> str:
    size = f" of {_cell(config['embed_dim'])} numbers" if "embed_dim" in config else ""
    count = f" It has {_cell(parameters)} parameters." if parameters else ""
    return (
        "A CLIP model for `miniclip`: an image tower and a text tower that bring pictures and captions into one "
        f"space{size}, where those that belong together are close.{count}"
    )


def _use(name: str) -> str:
    return (
        "## Use it\n\n```python\nimport miniclip\n\n"
        f"model = miniclip.load({_quoted(name)})\n"
        'model.classify("photo.jpg", ["a dog", "a cat"])  # (1, 2) probabilities\n```'
    )


def _pictures(config: Mapping[str, Any]) -> str:
    """What happens to a picture before the model sees it."""
    steps = []
    if "resize" in config:
        steps.append(RESIZE.get(str(config["resize"]), _cell(config["resize"])))
    if "interpolation" in config:
        steps.append(f"{_cell(config['interpolation'])} interpolation")
    if "mean" in config and "std" in config:
        mean, std = (", ".join(f"{x:.4g}" for x in config[key]) for key in ("mean", "std"))
        steps.append(f"mean ({mean}) and standard deviation ({std})")
    return f"Pictures, prepared by `model.preprocess`: {'; '.join(steps)}." if steps else ""


def _rows(values: Mapping[str, Any], label: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """A row of what is plain in these values, and after it those of each group among them."""
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    rows: list[tuple[str, Mapping[str, Any]]] = [(label, plain)] if plain else []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _rows(value, f"{label}, {key}" if label else str(key))
    return rows


def _table(rows: list[tuple[str, Mapping[str, Any]]]) -> str:
    """Rows by name, of cells by column: a cell that a row does not have stays empty."""
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
    """A value as one line of Markdown that shows its characters and does nothing else."""
    line = "".join(character for character in " ".join(str(value).split()) if character.isprintable())
    return "".join("\\" + character if character in MARKDOWN else character for character in line)


def _quoted(value: str) -> str:
    """A string in double quotes as YAML reads it, and Python: what means something there, or is no print, by number."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value) + '"'
