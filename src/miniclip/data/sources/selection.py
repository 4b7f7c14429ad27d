"""The choice of a source for a dataset."""

from __future__ import annotations

from miniclip.data.cache.reading import CachedDataset, require_cached
from miniclip.data.dataset import ImageCaptionDataset
from miniclip.data.given import as_dataset
from miniclip.data.options import LoaderOptions
from miniclip.data.preprocess import Preprocess
from miniclip.data.sources.cached import CachedImages
from miniclip.data.sources.common import Source
from miniclip.data.sources.device import DeviceImages, fits
from miniclip.data.sources.memory import InMemoryImages
from miniclip.data.sources.workers import StreamedImages
from miniclip.runtime import distributed

MAX_IN_MEMORY_BYTES = 2 << 30  # limit for decoded images, all ranks of a machine together


def open_image_source(data: ImageCaptionDataset, preprocess: Preprocess, options: LoaderOptions) -> Source:
    """Return the source that the options name, or the fastest one of a dataset's pixels.

    A cached dataset is read from its map. Any other dataset is decoded into memory if `num_workers` is None and the
    images of all ranks on this machine fit into `MAX_IN_MEMORY_BYTES`. Larger datasets are streamed. With
    `options.device`, a GPU with enough free memory keeps the images, each from its first use on.

    Raises:
        TypeError: it is not a dataset of captioned images.
        ValueError: it is a cache of other pixels, or a part of one.
    """
    if options.source is not None:
        return options.source
    data = as_dataset(data)
    require_cached(data, preprocess)
    source = _host_source(data, preprocess, options)
    if options.device is None or not fits(len(data), preprocess, options.device):
        return source
    if isinstance(source, InMemoryImages):
        source.pixels = source.pixels.to(options.device)
        return source
    return DeviceImages(source, len(data), preprocess, options.device)


def _host_source(
    data: ImageCaptionDataset, preprocess: Preprocess, options: LoaderOptions
) -> InMemoryImages | StreamedImages | CachedImages:
    if isinstance(data, CachedDataset):
        return CachedImages(data, preprocess)
    size = len(data) * 3 * preprocess.size**2 * distributed.local_world_size()
    if options.num_workers is None and size <= MAX_IN_MEMORY_BYTES:
        return InMemoryImages(data, preprocess, reduced=options.reduced_decoding, on_error=options.on_error)
    return StreamedImages(data, preprocess, options.num_workers, reduced=options.reduced_decoding)
