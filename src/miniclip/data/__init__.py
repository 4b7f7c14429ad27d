"""Data sets of pictures with captions: `data[i]` is `(picture, [captions])`, and `len(data)` counts pictures."""

from miniclip.data.coco import CocoCaptions
from miniclip.data.flickr30k import Flickr8k, Flickr30k
from miniclip.data.inspection import Inspection, inspect
from miniclip.data.opening import open_data
from miniclip.data.packed import Packed
from miniclip.data.packing import pack
from miniclip.data.pairs import Captions, PairData
from miniclip.data.shapes import Shapes
from miniclip.data.sheet import contact_sheet
from miniclip.data.webdataset import WebDataset

__all__ = [
    "Captions",
    "CocoCaptions",
    "Flickr8k",
    "Flickr30k",
    "Inspection",
    "Packed",
    "PairData",
    "Shapes",
    "WebDataset",
    "contact_sheet",
    "inspect",
    "open_data",
    "pack",
]
