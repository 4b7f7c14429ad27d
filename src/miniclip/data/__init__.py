"""Data sets of pictures with captions: `data[i]` is `(picture, [captions])`, and `len(data)` counts pictures."""

from miniclip.data.coco import CocoCaptions
from miniclip.data.flickr30k import Flickr8k, Flickr30k
from miniclip.data.opening import open_data
from miniclip.data.pairs import Captions, PairData
from miniclip.data.shapes import Shapes
from miniclip.data.webdataset import WebDataset

__all__ = ["Captions", "CocoCaptions", "Flickr8k", "Flickr30k", "PairData", "Shapes", "WebDataset", "open_data"]
