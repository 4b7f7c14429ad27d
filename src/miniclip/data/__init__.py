"""Datasets of captioned images: `data[i]` is `(image, [captions])`, and `len(data)` counts images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniclip.data.cache.reading import CachedDataset
    from miniclip.data.cache.writing import CacheOptions, build_cache
    from miniclip.data.dataset import ImageCaptionDataset
    from miniclip.data.formats.captions import Captions
    from miniclip.data.formats.coco import CocoCaptions
    from miniclip.data.formats.flickr30k import Flickr8k, Flickr30k
    from miniclip.data.formats.webdataset import WebDataset
    from miniclip.data.opening import open_data
    from miniclip.data.replay import Replay
    from miniclip.data.shapes import Shapes
    from miniclip.data.tools.contact_sheet import contact_sheet
    from miniclip.data.tools.inspection import inspect
    from miniclip.data.tools.report import Inspection

# Imported on first use: a model needs the preprocessing of this package, and none of its readers.
_MODULES = {
    "CacheOptions": "cache.writing",
    "CachedDataset": "cache.reading",
    "Captions": "formats.captions",
    "CocoCaptions": "formats.coco",
    "Flickr30k": "formats.flickr30k",
    "Flickr8k": "formats.flickr30k",
    "ImageCaptionDataset": "dataset",
    "Inspection": "tools.report",
    "Replay": "replay",
    "Shapes": "shapes",
    "WebDataset": "formats.webdataset",
    "build_cache": "cache.writing",
    "contact_sheet": "tools.contact_sheet",
    "inspect": "tools.inspection",
    "open_data": "opening",
}

__all__ = [
    "CacheOptions",
    "CachedDataset",
    "Captions",
    "CocoCaptions",
    "Flickr8k",
    "Flickr30k",
    "ImageCaptionDataset",
    "Inspection",
    "Replay",
    "Shapes",
    "WebDataset",
    "build_cache",
    "contact_sheet",
    "inspect",
    "open_data",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'miniclip.data' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"miniclip.data.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
