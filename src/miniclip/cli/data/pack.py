"""`miniclip data pack`: decode and resize every picture once, so that training need not."""

from __future__ import annotations

from typing import Any, get_args

from miniclip.cli.parsing import add_command
from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError

PRESET = "bert_vit_b_16"
SPLITS = ("train", "val", "test")

EPILOG = """examples:
  miniclip data pack flickr30k packed                224 px, as the reference system takes them
  miniclip data pack flickr30k packed --preset bert_vit_small
  miniclip data pack photos.csv packed --model org/repo --on-error skip
  miniclip train --data packed                       and so everywhere

The same command goes on where packing was stopped, and verifies and mends a set that is packed already.
"""


def add(commands: Any) -> None:
    """Add the command."""
    text = "decode and resize every picture once, into a set that is read as fast as memory"
    pack = add_command(commands, "pack", pack_command, text, EPILOG)
    pack.add_argument("data", metavar="PATH", help="whatever `miniclip train --data` takes, or shapes")
    pack.add_argument("out", metavar="OUT", help="the folder of the packed set")
    pack.add_argument("--split", action="append", help="a split to pack, again for another (default: all there are)")
    which = pack.add_mutually_exclusive_group()
    which.add_argument("--preset", default=PRESET, help=f"whose size and resizing (default {PRESET})")
    which.add_argument("--model", metavar="CHECKPOINT", help="a checkpoint's, and keep the captions as its token ids")
    pack.add_argument("--image-size", type=int, metavar="S", help="another side, in pixels")
    pack.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="keep the captions as this one's token ids: a tokenizer.json, or a checkpoint",
    )
    pack.add_argument("--num-workers", type=int, metavar="N", help="processes that decode (default: one a core)")
    pack.add_argument(
        "--on-error", choices=get_args(OnError), default="raise", help="a picture that cannot be read (default raise)"
    )
    pack.add_argument(
        "--max-skip-fraction",
        type=float,
        default=MAX_SKIP_FRACTION,
        metavar="X",
        help=f"share that skip may leave out ({MAX_SKIP_FRACTION})",
    )


def pack_command(
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
    """`miniclip data pack`."""
    from miniclip.data.cache.writing import pack

    if num_workers is not None and num_workers < 0:
        raise ValueError(f"--num-workers is {num_workers}; expected 0 or more")
    settings = settings_of(preset, model, image_size, tokenizer)
    rule: dict[str, Any] = {"on_error": on_error, "max_skip_fraction": max_skip_fraction}
    try:
        for name, pairs in opened(data, split, on_error, max_skip_fraction):
            packed = pack(pairs, out, **settings, **rule, split=name, num_workers=num_workers, progress=True)
            packed.verify()
            size = sum(shard["bytes"] for shard in packed.index["shards"])
            gone = f", {len(packed.skip_log):,} left out" if len(packed.skip_log) else ""
            print(f"{packed.folder}: {len(packed):,} pictures of {packed.how['size']} px, {size / 1e6:,.0f} MB{gone}")
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on, and keeps what is whole in {out}")
        raise
    print(f"next: miniclip train --data {out}")


def settings_of(preset: str, model: str | None, image_size: int | None, tokenizer: str | None) -> dict[str, Any]:
    """How pictures become pixels, and captions ids."""
    import miniclip
    from miniclip.config import preset as find
    from miniclip.data.transforms import Preprocess
    from miniclip.tokenizer import load_tokenizer

    loaded = None if model is None else miniclip.load(model)
    config = find(preset) if loaded is None else loaded.config
    words = (loaded.tokenizer if loaded else None) if tokenizer is None else load_tokenizer(tokenizer)
    if image_size is not None:
        if image_size < 1:
            raise ValueError(f"--image-size is {image_size}; expected 1 or more")
        config = config.replace_image(image_size=image_size)
    text = config.text
    ids = {"tokenizer": words, "context_length": text.context_length, "pad": text.padding == "attended"}
    return {"preprocess": Preprocess(config), **ids}


def opened(data: str, splits: list[str] | None, on_error: OnError, max_skip_fraction: float) -> list[tuple[str, Any]]:
    """The splits that are asked for, or all that the set has.

    Raises:
        ValueError: it has none of them.
    """
    from miniclip.data import open_data
    from miniclip.errors import DataError

    if splits is not None:
        return [
            (name, open_data(data, name, on_error=on_error, max_skip_fraction=max_skip_fraction))
            for name in dict.fromkeys(splits)
        ]
    found, missing = [], []
    for name in SPLITS:
        try:
            found.append((name, open_data(data, name, on_error=on_error, max_skip_fraction=max_skip_fraction)))
        except DataError:
            raise
        except ValueError as error:
            missing.append(error)
    if not found:
        raise missing[0]
    return found
