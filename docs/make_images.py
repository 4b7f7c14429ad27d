"""Draw figures of the documentation: `python docs/make_images.py [RUN]`.

With a run directory of `miniclip train --precision float32`, the figures of its evaluation and an explanation are drawn
too. `images/learning_curve.png`, `similarities.png` and `confusions.png` are copied from a run directory.
"""

import shutil
import sys
import tempfile
import textwrap
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from miniclip import cli
from miniclip.data import Shapes, contact_sheet

EVALUATION = {  # from the names of `miniclip eval --out` to those of the pages
    "retrieval-shapes-test-bars.png": "retrieval_shapes.png",
    "zero-shot-shape-confusion.png": "confusion_shapes.png",
    "zero-shot-shape-reliability.png": "reliability_shapes.png",
    "zero-shot-shape-mistakes.png": "mistakes_shapes.png",
    "few-shot-shape-curve.png": "few_shot_shapes.png",
    "zero-shot-top1-under-corruptions-shape-severities.png": "corruptions_shapes.png",
}
IMAGES = Path(__file__).parent / "images"
COLUMNS = 5


def shapes(path: Path) -> None:
    """Draw images of both splits, each with one of its captions."""
    figure = Figure(figsize=(10, 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(2, 1)
    titles = {"train": "train", "val": "val: each with a combination that train does not show"}
    for row, (split, title) in zip(rows, titles.items(), strict=True):
        data = Shapes(split, size=COLUMNS, image_size=192)
        row.suptitle(title, fontsize=10, fontweight="bold")
        for index, axes in enumerate(row.subplots(1, COLUMNS)):
            image, captions = data[index]
            axes.imshow(image)
            axes.set_axis_off()
            axes.set_title(textwrap.fill(captions[index % len(captions)], 30), fontsize=7)
    figure.savefig(path)


def sheet(path: Path) -> None:
    """Draw the contact sheet of `miniclip data inspect shapes --split val --sheet FILE`."""
    path.unlink(missing_ok=True)  # the committed file lost its mark as it was compressed
    contact_sheet(Shapes("val"), path, count=12)


def evaluation(run: str, folder: Path) -> None:
    """Draw the figures of `miniclip eval` and an explanation of `miniclip explain`."""
    with tempfile.TemporaryDirectory() as figures:
        options = ["--task", "all", "--data", "shapes", "--split", "test", "--corruptions", "--device", "cpu"]
        if cli.main(["eval", run, *options, "--out", figures]):
            sys.exit(1)
        for source, target in EVALUATION.items():
            shutil.copy(Path(figures) / source, folder / target)
    cli.main(["explain", run, "shapes:7", "-o", str(folder / "explanation.png"), "--device", "cpu"])


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    shapes(IMAGES / "shapes.png")
    sheet(IMAGES / "sheet.png")
    for run in sys.argv[1:2]:
        evaluation(run, IMAGES)
