"""Draw figures of the documentation: `python docs/make_images.py`.

`images/learning_curve.png`, `similarities.png` and `confusions.png` are copied from a run directory of
`miniclip train`.
"""

import textwrap
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from miniclip.data import Shapes, contact_sheet

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
    contact_sheet(Shapes("val"), path, count=12)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    shapes(IMAGES / "shapes.png")
    sheet(IMAGES / "sheet.png")
