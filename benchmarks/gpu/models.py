"""Models of the GPU's table: miniclip's, and the same weights in the peers that are installed."""

import itertools
import tempfile
import warnings
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch

from benchmarks import baselines
from benchmarks.baselines import Implementation
from benchmarks.gpu.table import Session, absent
from miniclip import CLIPConfig, export
from miniclip.config import preset
from miniclip.fast.layers import FastBlock
from miniclip.hub import fresh

_numbers = itertools.count()
PEERS = {"open_clip": baselines.open_clip, "transformers": baselines.transformers}


def config(session: Session, name: str) -> CLIPConfig:
    """Return a preset; in a small run, one layer of little width with the same kinds of towers."""
    found = preset(name)
    if not session.small:
        return found
    found = found.replace_image(image_size=32, patch_size=16, width=64, layers=1, heads=2)
    return found.replace_text(width=64, layers=1, heads=2)


def with_peers(
    session: Session, name: str, peers: tuple[str, ...], dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Implementation], list[str]]:
    """Build one model with random weights in miniclip and in the peers.

    Returns:
        The implementations by name, on the device, and why some peers are missing.
    """
    torch.manual_seed(0)
    source: Any = fresh(config(session, name)).eval()
    models, notes = {"miniclip": baselines.miniclip(source)}, []
    for peer in peers:
        if reason := absent(peer):
            notes.append(reason)
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries crop images differently; these inputs are cropped
            export(source, Path(folder) / peer, layout=peer)
            models[peer] = PEERS[peer](Path(folder) / peer)
    for implementation in models.values():
        implementation.model.to(session.device, dtype)
    return models, notes


def compile_apart(model: Any, **options: Any) -> None:
    """Compile the blocks as the trainer does, with graphs of their own.

    torch keeps graphs and the sizes that vary with the function. Another model in the same process would get graphs for
    dynamic shapes; or those of the first one, with its attention's backend, on which they do not depend.

    Args:
        model: compiled in place.
        options: of `torch.compile`.
    """
    original: Any = FastBlock.forward
    code = original.__code__.replace(co_name=f"forward_{next(_numbers)}")
    forward = FunctionType(code, original.__globals__, code.co_name, original.__defaults__)
    for tower in (model.image, model.text):
        for block in tower.blocks:
            block.forward = torch.compile(MethodType(forward, block), **options)
