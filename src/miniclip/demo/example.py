"""Index of the validation images of Shapes, for the first run of the page."""

from __future__ import annotations

from pathlib import Path

from miniclip.data.shapes import Shapes
from miniclip.demo.service import About
from miniclip.inference.model import CLIPModel
from miniclip.search import Index

SIDE = 256  # pixels: the same scenes as those of 64 pixels, sharp on a screen
QUERIES = ("a green heart", "a red circle", "purple ring + pink cross", "blue triangle - yellow")
TEMPLATE = "a {}"  # prompt of a label; captions of Shapes do not name a photo


def shapes_index(model: CLIPModel, folder: Path) -> Index:
    """Write the images that no training image resembles (`Shapes("val")`) into a folder, and build their index.

    Args:
        model: a model.
        folder: an empty folder; the index refers to the images in it.

    Returns:
        The index. The name of an image is its first caption.
    """
    images = folder / "shapes"
    images.mkdir()
    data = Shapes("val", image_size=SIDE)
    for number in range(len(data)):
        image, captions = data[number]
        image.save(images / f"{captions[0]}, {number}.png", compress_level=1)
    return Index.build(model, images, folder / "shapes.index")


def describe_shapes(name: str) -> About:
    """Return the description of the page for a model of some name."""
    return About(name, QUERIES, TEMPLATE)
