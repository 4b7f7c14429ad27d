"""The pictures of the pages that the code can draw in a second: `python docs/make_images.py`.

`images/learning_curve.png`, `similarities.png` and `confusions.png` are a run's own: `miniclip train`, then copy them.
"""

import textwrap
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from miniclip.data import Shapes, contact_sheet

IMAGES = Path(__file__).parent / "images"
COLUMNS = 5


def shapes(path: Path) -> None:
    """Pictures of both splits, each with one of its captions."""
    figure = Figure(figsize=(10, 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(2, 1)
    for part, split, title in zip(
        rows, ("train", "val"), ("train", "val: a combination never seen in each"), strict=True
    ):
        data = Shapes(split, size=COLUMNS, image_size=192)
        part.suptitle(title, fontsize=10, fontweight="bold")
        for index, axes in enumerate(part.subplots(1, COLUMNS)):
            picture, captions = data[index]
            axes.imshow(picture)
            axes.set_axis_off()
            axes.set_title(textwrap.fill(captions[index % len(captions)], 30), fontsize=7)
    figure.savefig(path)


def sheet(path: Path) -> None:
    """What `miniclip data inspect shapes --split val --sheet FILE` draws."""
    contact_sheet(Shapes("val"), path, count=12)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    shapes(IMAGES / "shapes.png")
    sheet(IMAGES / "sheet.png")
