"""`miniclip explain`: a heat map of the similarity of an image and a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command

EPILOG = """examples:
  miniclip explain vit_b_16 bike.jpg "a red bicycle" -o bike.png
  miniclip explain runs/shapes shapes:7            an image of the shapes dataset, with its own caption
  miniclip explain runs/shapes --faithfulness      is the method right? measured on the shapes dataset
"""
METHODS = ("legrad", "grad_eclip")


def add(commands: Any) -> None:
    """Add the command."""
    explain = add_command(
        commands, "explain", explain_command, "show which parts of an image carry its similarity with a text", EPILOG
    )
    explain.add_argument("checkpoint", help="a name, a run, a checkpoint directory or file, or a Hub repository")
    explain.add_argument("image", nargs="?", help="image file, or shapes:7 for an image of the shapes dataset")
    explain.add_argument("text", nargs="?", help="text (default for shapes:7: its caption)")
    explain.add_argument("-o", "--output", default="explanation.png", help="PNG file (default explanation.png)")
    explain.add_argument("--method", choices=METHODS, default=METHODS[0], help=f"(default {METHODS[0]})")
    explain.add_argument(
        "--faithfulness", action="store_true", help="measure the methods on the shapes dataset instead"
    )
    explain.add_argument("--device", help="cpu, cuda or mps (default: the GPU if there is one)")


def explain_command(
    checkpoint: str,
    image: str | None,
    text: str | None,
    output: str,
    method: str,
    faithfulness: bool,
    device: str | None,
) -> None:
    """Run `miniclip explain`."""
    import miniclip
    from miniclip.explanation import explain, plot_explanation
    from miniclip.runtime.devices import select_device
    from miniclip.utils.outputs import require_output_file

    if not faithfulness:
        require_output_file(output, "--output", ".png")
    chosen, text = (None, text) if faithfulness else _pair(image, text)
    model = miniclip.load(checkpoint, device=select_device(device))
    if faithfulness:
        print(_faithfulness_table(model))
        return
    explanation = explain(model, chosen, str(text), method=method)  # type: ignore[arg-type]
    plot_explanation(explanation, Path(output))
    words = ", ".join(f"{word.text} {word.relevance:.2f}" for word in explanation.words)
    print(f"similarity {explanation.similarity:.3f}, {explanation.similarity_without_top:.3f} without the top patches")
    print(f"text: {text}\nwords: {words}\nwrote {output}")


def _pair(image: str | None, text: str | None) -> tuple[Any, str]:
    """Return the image and the text to explain.

    Raises:
        ValueError: one of them is missing, or the number after "shapes:" is not one.
    """
    if image is not None and image.startswith("shapes:"):
        from miniclip.data.shapes import Shapes

        data, number = Shapes("test"), image.removeprefix("shapes:")
        if not number.isdecimal() or int(number) >= len(data):
            raise ValueError(f"{image}: expected a number from 0 to {len(data) - 1} after shapes:")
        drawn, captions = data[int(number)]
        return drawn, captions[0] if text is None else text
    if image is None or text is None:
        raise ValueError('expected an image and a text, as in: miniclip explain vit_b_16 bike.jpg "a red bicycle"')
    return image, text


def _faithfulness_table(model: Any) -> str:
    """Deletion, insertion, pointing game and sanity check of both methods and of a random map; then of words."""
    from miniclip.data.shapes import Shapes
    from miniclip.explanation import faithfulness, pointing_game, sanity, word_faithfulness

    data = Shapes("test", 64)
    images, texts = zip(*((data[i][0], data[i][1][0]) for i in range(len(data))), strict=True)
    lines = [f"{'patches':12}{'deletion':>10}{'insertion':>11}{'pointing %':>12}{'random weights':>16}"]
    for method in (*METHODS, "random"):
        scores = faithfulness(model, images, texts, method)
        check = "" if method == "random" else f"{sanity(model, images, texts, method):16.2f}"  # type: ignore[arg-type]
        pointing = pointing_game(model, method)
        lines.append(f"{method:12}{scores.deletion:10.3f}{scores.insertion:11.3f}{pointing:12.1f}{check}")
    lines.append(f"\n{'words':12}{'deletion':>10}{'insertion':>11}")
    for method in (*METHODS, "random"):
        scores = word_faithfulness(model, images, texts, method)
        lines.append(f"{method:12}{scores.deletion:10.3f}{scores.insertion:11.3f}")
    lines.append("\ndeletion: lower is better; insertion, pointing: higher; random weights: near 0 is better")
    return "\n".join(lines)
