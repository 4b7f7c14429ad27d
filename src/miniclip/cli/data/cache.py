"""`miniclip data cache`: decode and resize every image once, so that training need not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from miniclip.cli.parsing import add_command, add_skip_options
from miniclip.cli.trainers import DEFAULT_PRESET
from miniclip.data.skipping import OnError
from miniclip.utils.formatting import format_command

EPILOG = """examples:
  miniclip data cache photos.csv cache               64 px, for the default preset of `miniclip train`
  miniclip data cache flickr30k cache --preset bert_vit_b_16    224 px, for the reference system
  miniclip data cache photos.csv cache --model org/repo --on-error skip
  miniclip train --data cache                        a cache replaces the dataset in every command

The same command resumes an interrupted build, and verifies and repairs a complete cache.
"""


def add(commands: Any) -> None:
    """Add the command."""
    text = "decode and resize every image once, into a cache that is read as fast as memory"
    cache = add_command(commands, "cache", cache_command, text, EPILOG)
    cache.add_argument("data", metavar="PATH", help="anything that `miniclip train --data` takes, or shapes")
    cache.add_argument("out", metavar="OUT", help="folder of the cache")
    cache.add_argument("--split", action="append", help="a split to cache; may be repeated (default: all splits)")
    model = cache.add_mutually_exclusive_group()
    model.add_argument(
        "--preset", default=DEFAULT_PRESET, help=f"preset whose preprocessing to use (default {DEFAULT_PRESET})"
    )
    model.add_argument("--model", metavar="CHECKPOINT", help="checkpoint whose preprocessing and tokenizer to use")
    cache.add_argument("--image-size", type=int, metavar="S", help="image side in pixels (default: the model's)")
    cache.add_argument(
        "--tokenizer", metavar="PATH", help="also store token ids of this tokenizer.json or checkpoint directory"
    )
    cache.add_argument("--num-workers", type=int, metavar="N", help="decoding processes (default: one per core)")
    add_skip_options(cache, "an image that cannot be read")


def cache_command(
    data: str,
    out: str,
    split: list[str] | None,
    preset: str,
    model: str | None,
    image_size: int | None,
    tokenizer: str | None,
    num_workers: int | None,
    on_error: OnError,
    max_skip_fraction: float,
) -> None:
    """Run `miniclip data cache`."""
    from miniclip.data.cache.writing import build_cache

    if num_workers is not None and num_workers < 0:
        raise ValueError(f"--num-workers is {num_workers}; expected 0 or more")
    skip_options: dict[str, Any] = {"on_error": on_error, "max_skip_fraction": max_skip_fraction}
    preprocess, options = cache_settings(preset, model, image_size, tokenizer, num_workers=num_workers, **skip_options)
    try:
        for name, dataset in open_splits(data, split, **skip_options):
            cached = build_cache(dataset, out, preprocess, split=name, options=options)
            cached.verify()
            size = sum(shard["bytes"] for shard in cached.index["shards"])
            skipped = f", {len(cached.skip_log):,} skipped" if len(cached.skip_log) else ""
            side = cached.pixel_settings["size"]
            print(f"{cached.folder}: {len(cached):,} images of {side} px, {size / 1e6:,.0f} MB{skipped}")
    except KeyboardInterrupt:
        print(f"stopped; the same command resumes and keeps the finished shards in {out}")
        raise
    print(next_command(out, preset, model, image_size))


def next_command(out: str, preset: str, model: str | None, image_size: int | None) -> str:
    """Return the line that names the command to train on the cache."""
    source = ("--preset", preset) if model is None else ("--model", model)
    command = format_command("miniclip", "train", "--data", out, *source)
    if image_size is None:
        return f"next: {command}"
    return f"next: {format_command('miniclip', 'train', '--data', out)} --model with a checkpoint of {image_size} px"


def cache_settings(
    preset: str, model: str | None, image_size: int | None, tokenizer: str | None, **options: Any
) -> tuple[Any, Any]:
    """Return the preprocessing and the `CacheOptions` of the command's flags."""
    import miniclip
    from miniclip.config import preset as preset_config
    from miniclip.data.cache.writing import CacheOptions
    from miniclip.data.preprocess import Preprocess
    from miniclip.tokenizer import load_tokenizer

    clip = None if model is None else miniclip.load(model)
    config = preset_config(preset) if clip is None else clip.config
    if image_size is not None:
        if image_size < 1:
            raise ValueError(f"--image-size is {image_size}; expected 1 or more")
        config = config.replace_image(image_size=image_size)
    return Preprocess(config), CacheOptions(
        tokenizer=load_tokenizer(tokenizer) if tokenizer is not None else clip.tokenizer if clip is not None else None,
        context_length=config.text.context_length,
        pad=config.text.padding == "attended",
        progress=True,
        **options,
    )


def open_splits(data: str, splits: list[Any] | None, **skip_options: Any) -> list[tuple[str, Any]]:
    """Open the given splits, or all that the dataset has.

    Raises:
        ValueError: the dataset lacks one of them.
    """
    from miniclip.data.opening import open_data, split_names

    names: Iterable[Any] = split_names(data, **skip_options) if splits is None else dict.fromkeys(splits)
    return [(name, open_data(data, name, **skip_options)) for name in names]
