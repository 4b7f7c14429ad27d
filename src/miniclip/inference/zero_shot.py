"""Zero-shot classification (Radford et al. 2021, section 3.1). Letters: N images, C classes, E embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from string import Formatter
from typing import Any, TypeAlias

from torch import Tensor

from miniclip.losses.reference import l2_normalize
from miniclip.utils.items import describe, listed, strings

Template: TypeAlias = str | Callable[[str], str]

TEMPLATES = ("a photo of a {}.",)


def class_embeddings(
    encode_text: Callable[[list[str]], Tensor],
    labels: Iterable[str],
    templates: Template | Iterable[Template] | None = None,
) -> Tensor:
    """Embeddings of class names: the mean over the prompts of all templates, normalized again.

    Args:
        encode_text: prompts to unit vectors (n, E).
        labels: C class names.
        templates: prompts with one `{}` in place of the class name, or functions of it; None: "a photo of a {}."

    Returns:
        (C, E) unit vectors.

    Raises:
        ValueError: labels or templates are empty, the labels are one string, or a template does not have one `{}`.
        TypeError: a label is not a string, or a template is neither a string nor a function that returns one.
    """
    names, templates = strings(labels, "labels"), _as_templates(templates)
    if isinstance(labels, str) or not names:
        raise ValueError(f"labels: found {labels!r}, expected a list of at least one name")
    prompts = [prompt for template in templates for prompt in fill(template, names)]
    return l2_normalize(encode_text(prompts).view(len(templates), len(names), -1).mean(dim=0))


def class_probabilities(image_embeddings: Tensor, classes: Tensor, logit_scale: Tensor) -> Tensor:
    """Softmax over the scaled cosine similarities: (N, E) and (C, E) to (N, C)."""
    return (logit_scale * image_embeddings @ classes.T).softmax(dim=-1)


def fill(template: Template, labels: list[str]) -> list[str]:
    """Return the prompts of a template, one for each label.

    Raises:
        ValueError: a string does not have exactly one field `{}`, or a function ignores the label.
        TypeError: the template is neither a string nor a function that returns one.
    """
    if isinstance(template, str):
        _require_field(template)
        return [template.format(label) for label in labels]
    name = getattr(template, "__qualname__", repr(template))
    if not callable(template):
        raise TypeError(f"template {name}: found {describe(template)}; expected a string with one {{}}, or a function")
    prompts = [template(label) for label in labels]
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"template {name}: it returned {describe(prompt)}; expected a string")
    if len(set(prompts)) == 1 < len(set(labels)):
        raise ValueError(f"template {name}: it returned {prompts[0]!r} for every label; expected the label in it")
    return prompts


def _as_templates(templates: Any) -> list[Template]:
    """Return one or several templates as a list."""
    if templates is None:
        return list(TEMPLATES)
    if getattr(templates, "shape", None) == ():
        templates = templates.item()  # an array of no dimension
    if isinstance(templates, str | bytes) or callable(templates):
        return [templates]  # `fill` refuses bytes
    found = listed(templates, "templates", "strings with one {} in place of the class name, or functions of it")
    if not found:
        raise ValueError("templates: found none, expected at least one; None is 'a photo of a {}.'")
    return found


def _require_field(template: str) -> None:
    """Raise ValueError unless a template has exactly one field, `{}`."""
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"template {template!r}: {str(error).lower()}; write one {{}} for the class name") from None
    if fields not in ([("", "", None)], [("0", "", None)]):
        names = ", ".join(f"{{{name}}}" if name else "{}" for name, *_ in fields) or "no field"
        raise ValueError(
            f"template {template!r}: found {names}; expected exactly one {{}} in place of the class name, as in "
            f"{TEMPLATES[0]!r}"
        )
