"""Datasets of captioned images: `data[i]` is `(image, [captions])`, and `len(data)` counts images."""

from miniclip.data.cache.reading import CachedDataset
from miniclip.data.cache.writing import CacheOptions, build_cache
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.formats.captions import Captions
from miniclip.data.formats.coco import CocoCaptions
from miniclip.data.formats.flickr30k import Flickr8k, Flickr30k
from miniclip.data.formats.webdataset import WebDataset
from miniclip.data.opening import open_data
from miniclip.data.shapes import Shapes
from miniclip.data.tools.contact_sheet import contact_sheet
from miniclip.data.tools.inspection import inspect
from miniclip.data.tools.report import Inspection

__all__ = [
    "CacheOptions",
    "CachedDataset",
    "Captions",
    "CocoCaptions",
    "Flickr8k",
    "Flickr30k",
    "ImageCaptionDataset",
    "Inspection",
    "Shapes",
    "WebDataset",
    "build_cache",
    "contact_sheet",
    "inspect",
    "open_data",
]
