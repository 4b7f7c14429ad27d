"""The models that are fine-tuned, and their data: two by miniclip's trainer, one by open_clip's own code."""

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

import miniclip
from miniclip.cli.trainers import fresh_model
from miniclip.config import preset
from miniclip.data import CachedDataset, Shapes, build_cache, open_data
from miniclip.data.dataset import name_of
from miniclip.data.given import Concatenation
from miniclip.data.preprocess import Preprocess
from miniclip.data.subset import Subset
from miniclip.train import TrainConfig
from miniclip.utils.randomness import generator

PRESET = "bert_vit_tiny"
EPOCHS = 20  # passes that train a start
OPEN_CLIP_EPOCHS = 12
OPEN_CLIP = "open_clip, emoji to clipart"


class Source(NamedTuple):
    """Images of a dataset: those whose file name matches a pattern, and the splits that no model trains on."""

    folder: str
    pattern: str = ""
    held_out: tuple[str, ...] = ("val",)


THINGS = "(animals|food|transportation|plants|tools|recreation|people|buildings)__"  # categories of clip art
SOURCES = {
    "emoji": Source("emoji"),
    "clipart": Source("clipart"),
    "things": Source("clipart", THINGS, ("val", "test")),
    "icons": Source("clipart", f"(?!{THINGS})", ("val", "test")),
    "openmoji": Source("emoji", "openmoji_"),
    "noto and twemoji": Source("emoji", "(?!openmoji_)"),
}


class Start(NamedTuple):
    """Sources of the training data of a start, which are the old data; that of the new data, and passes over it."""

    old: tuple[str, ...]
    new: tuple[str]
    epochs: int


STARTS = {
    # both kinds of images are known: new subjects, or a new style of drawing
    "emoji and icons to things": Start(("emoji", "icons"), ("things",), 8),
    "clipart and two styles of emoji to a third": Start(("clipart", "noto and twemoji"), ("openmoji",), 8),
    # the new kind of images is unknown
    "emoji to clipart": Start(("emoji",), ("clipart",), 4),
    "clipart to emoji": Start(("clipart",), ("emoji",), 4),
    OPEN_CLIP: Start(("emoji",), ("clipart",), 4),
}


class Parts(NamedTuple):
    """A dataset, its images at the models' size.

    The images that no model trains on are drawn into two halves: one chooses the rates, the weights of the objectives
    and alpha, and the other is scored.
    """

    train: Any
    choosing: Any
    scored: Any


@functools.cache
def parts_of(names: tuple[str, ...], data: Path | None, folder: Path) -> Parts:
    """Return the parts of one or more sources; without a folder of data, of Shapes, with a seed for each name."""
    sources = [source_parts(name, data, folder) for name in names]
    return (
        sources[0]
        if len(sources) == 1
        else Parts(*(Concatenation(list(parts)) for parts in zip(*sources, strict=True)))
    )


def source_parts(name: str, data: Path | None, folder: Path) -> Parts:
    """Return the parts of a source."""
    if data is None:
        train, held_out = Shapes("train", 72, seed=len(name)), Shapes("val", 48, seed=len(name))
    else:
        train, held_out = matching(name, ("train",), data, folder), matching(name, SOURCES[name].held_out, data, folder)
    order = torch.randperm(len(held_out), generator=generator("halves", name)).tolist()
    half = len(order) // 2
    return Parts(train, Subset(held_out, order[:half]), Subset(held_out, order[half:]))


def matching(name: str, splits: tuple[str, ...], data: Path, folder: Path) -> Any:
    """Return the images of a source in some splits, decoded once."""
    source, parts = SOURCES[name], []
    for split in splits:
        cache = folder / "cache" / source.folder
        if not (cache / split / "index.json").exists():
            opened = open_data(str(data / source.folder), split)  # type: ignore[arg-type]
            build_cache(opened, cache, Preprocess(preset(PRESET)), split=split)
        whole = CachedDataset(cache, split)
        names = (Path(name_of(whole, index)).name for index in range(len(whole)))
        parts.append(Subset(whole, [index for index, file in enumerate(names) if re.match(source.pattern, file)]))
    return parts[0] if len(parts) == 1 else Concatenation(parts)


def start_model(name: str, data: Path | None, folder: Path) -> Path:
    """Return the checkpoint of a start; it is trained if the folder does not have it."""
    path = path_of(name, folder)
    if (path / "trained").exists():
        return path
    old = parts_of(STARTS[name].old, data, folder).train
    if name == OPEN_CLIP:
        train_open_clip(old, path, 1 if data is None else OPEN_CLIP_EPOCHS)
    else:
        small = {"epochs": 2, "batch_size": 16} if data is None else {"epochs": EPOCHS, "batch_size": 128}
        config = TrainConfig(**small, seed=1, precision="float32")
        model = fresh_model(PRESET, old.captions, config)
        run_dir = path.with_name(path.name + "-run")
        shutil.rmtree(run_dir, ignore_errors=True)  # that of a stopped command
        miniclip.Trainer(model, old, config=config, run_dir=run_dir, callbacks=[]).fit()
        miniclip.save(model.eval(), path, overwrite=True)
    (path / "trained").touch()
    return path


def path_of(name: str, folder: Path) -> Path:
    """Return the checkpoint directory of a start, which is kept for later commands."""
    return folder / "starts" / name.replace(" ", "-").replace(",", "")


def load_start(path: Path) -> Any:
    """Load a start; that of open_clip has OpenAI's tokenizer, whose merges open_clip ships."""
    if (path / "open_clip_config.json").exists():
        import open_clip

        return miniclip.load(path, tokenizer=Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz"))
    return miniclip.load(path)


def train_open_clip(data: Any, path: Path, epochs: int, batch_size: int = 128) -> None:
    """Train a small CLIP with open_clip's model, tokenizer and loss, and write its checkpoint in open_clip's layout."""
    import open_clip
    from open_clip.loss import ClipLoss
    from safetensors.torch import save_file

    towers = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
    }
    torch.manual_seed(1)
    model, loss_of = open_clip.CLIP(**towers), ClipLoss()
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    config = preset(PRESET)
    preprocess = Preprocess(config)
    pixels = torch.stack([preprocess.pixels(data[index][0]) for index in range(len(data))])
    tokens = [tokenizer(captions) for captions in data.captions]
    batch_size = min(batch_size, len(data) // 2)
    steps = epochs * (len(data) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        order = torch.randperm(len(data))
        for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
            captions = torch.stack([tokens[row][(epoch + row) % len(tokens[row])] for row in rows.tolist()])
            images, texts, scale = model(preprocess.normalise(pixels[rows]), captions)[:3]
            loss = loss_of(images, texts, scale)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)
    path.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    settings = {"model_cfg": towers, "preprocess_cfg": {"mean": config.mean, "std": config.std}}
    (path / "open_clip_config.json").write_text(json.dumps(settings))
