"""Training memory: gradient checkpointing, and the micro batch size that fits into the device.

The micro batch size is found with the real model on the real device. A GPU reports the peak of a trial step, and raises
when its memory is used up. A CPU does neither: the system starts to swap, or kills the process. On a CPU the peak is
therefore predicted from two small traced steps (`allocation.py`).
Letters: B batch size, E embedding width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from miniclip.inference.model import CLIPModel
from miniclip.models.layers import Transformer
from miniclip.models.other import OtherImageTower
from miniclip.models.vision import draw_patches
from miniclip.runtime.allocation import peak_bytes, trace_two_sizes
from miniclip.runtime.distributed import all_gather_ints, local_world_size
from miniclip.runtime.free_memory import available_bytes
from miniclip.runtime.precision import Precision
from miniclip.train.config import TrainConfig
from miniclip.train.variants.stochastic_depth import set_stochastic_depth
from miniclip.utils.randomness import random_state, set_random_state

GPU_FRACTION, CPU_FRACTION = 0.8, 0.5  # share of the free memory; the rest serves augmentation and other processes
EMBEDDING_COPIES = 8  # float32 copies of both embeddings: values, gradients, the loss's copies
SIMILARITY_COPIES = 8  # float32 copies of the similarity matrix
MAX_SIMILARITY_SIDE = 2048  # larger matrices are computed in blocks: `losses.CHUNKED_FROM`
PARAMETER_COPIES = 3  # copies of the trained weights: the gradient and AdamW's two moments

Trial = Callable[[int], None]  # forward and backward of a number of samples


def checkpoint_blocks(model: nn.Module, enabled: bool = True) -> None:
    """Switch gradient checkpointing of the towers' blocks: keep each block's input, recompute the rest in backward.

    Raises:
        ValueError: checkpointing is enabled for a model without miniclip transformers, or with another image tower.
    """
    if enabled and isinstance(getattr(model, "image", None), OtherImageTower):
        raise ValueError("gradient_checkpointing: the image tower has no blocks to recompute; use micro_batch_size")
    stacks = [module for module in model.modules() if isinstance(module, Transformer)]
    if enabled and not stacks:
        raise ValueError("gradient_checkpointing: the model has no miniclip.models.layers.Transformer to apply it to")
    for stack in stacks:
        stack.checkpointed = enabled


def synthetic_step(
    model: CLIPModel, precision: Precision = "float32", patch_dropout: float = 0.0, captions: int = 1
) -> Trial:
    """Return a function that runs forward and backward of n random samples, and leaves no gradient.

    The captions have the full context length.

    Args:
        model: on the device that it will be trained on.
        precision: float32 or bfloat16 (autocast).
        patch_dropout: fraction of the patches that a step leaves out.
        captions: captions of each image.
    """

    def trial(samples: int) -> None:
        inputs = _random_inputs(model, samples, patch_dropout, captions)  # kept to the end, as in a step
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            out = model(*inputs)
        embeddings = [side for side in out[:2] if side.requires_grad]
        if embeddings:
            torch.autograd.backward(embeddings, [torch.ones_like(side) for side in embeddings])
        for parameter in model.parameters():
            parameter.grad = None

    return trial


def _random_inputs(
    model: CLIPModel, samples: int, patch_dropout: float, captions: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    image, text, random = model.config.image, model.config.text, torch.Generator().manual_seed(0)
    pixels = torch.randn(samples, 3, image.image_size, image.image_size, generator=random)
    tokens = torch.randint(text.vocab_size, (samples * captions, text.context_length), generator=random)
    end = text.vocab_size - 1 if text.end_id is None else text.end_id
    tokens = torch.where(tokens == end, (end + 1) % text.vocab_size, tokens)  # only the last is the end
    tokens[:, -1] = end
    patches = None
    if patch_dropout:
        patches = draw_patches(samples, image.patches, patch_dropout, random).to(model.device)
    return pixels.to(model.device), tokens.to(model.device), patches


def fit_into_memory(model: CLIPModel, config: TrainConfig, rows: int) -> TrainConfig:
    """Switch gradient checkpointing and stochastic depth, and replace the micro batch size "auto" by one that fits.

    Args:
        model: on its device.
        config: the settings, with precision resolved.
        rows: rows of a batch on this rank.
    """
    checkpoint_blocks(model, config.gradient_checkpointing)
    set_stochastic_depth(model, config.stochastic_depth)
    if config.micro_batch_size != "auto":
        return config
    captions = config.captions_per_image
    trial = synthetic_step(model, config.precision, config.patch_dropout, captions)
    return dataclasses.replace(config, micro_batch_size=find_micro_batch_size(model, rows, trial, captions))


def find_micro_batch_size(model: CLIPModel, batch: int, trial: Trial, captions: int = 1) -> int | None:
    """Find the largest micro batch whose forward and backward fit into the free memory of every rank.

    It is a power of two, so that small changes of the free memory give the same number. The model, its gradients, its
    buffers and the random state are left as they were.

    Args:
        model: on the device that it will be trained on.
        batch: B, samples of a step on this rank.
        trial: forward and backward of n samples, such as `synthetic_step(model)`.
        captions: captions of each sample.

    Returns:
        Samples, the same number on all ranks; None if the whole batch fits.

    Raises:
        ValueError: not even one sample fits.
    """
    local = _largest_fitting(model, batch, trial, captions)
    size, whole = (min(column) for column in zip(*all_gather_ints([local, local == batch]), strict=True))
    if not size:
        raise ValueError(
            f"micro_batch_size 'auto': not one sample fits into the free memory of {model.device}; free some, try "
            "gradient_checkpointing, or choose a smaller model"
        )
    return None if whole else size


def _largest_fitting(model: CLIPModel, batch: int, trial: Trial, captions: int) -> int:
    """The largest power of two of samples that fits on this rank; the batch if it fits whole, 0 if nothing does."""
    sizes = [2**i for i in range(batch.bit_length()) if 2**i < batch] + [batch]
    largest, reserved = 0, reserved_bytes(model, batch, captions)
    with _restored(model):
        fits = (_fits_by_trial if model.device.type == "cuda" else _fits_by_prediction)(model, trial, reserved)
        for size in sizes:
            if not fits(size):
                break
            largest = size
    return largest


def _fits_by_trial(model: CLIPModel, trial: Trial, reserved: int) -> Callable[[int], bool]:
    device = model.device
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    budget = GPU_FRACTION * torch.cuda.mem_get_info(device)[0] - reserved

    def fits(samples: int) -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            trial(samples)
        except torch.OutOfMemoryError:
            return False
        return torch.cuda.max_memory_allocated(device) - before <= budget

    return fits


def _fits_by_prediction(model: CLIPModel, trial: Trial, reserved: int) -> Callable[[int], bool]:
    budget = CPU_FRACTION * available_bytes() / local_world_size() - reserved
    small, large = trace_two_sizes(list(model.parameters()), trial)
    return lambda samples: peak_bytes(small, large, samples) <= budget


def step_bytes(
    model: CLIPModel, batch: int, trial: Trial, micro_batch_size: int | None = None, captions: int = 1
) -> float:
    """Predict the memory of a step beside the weights, on any device; the model is left as it was.

    Args:
        model: on its device.
        batch: B, samples of a step on this rank.
        trial: as in `find_micro_batch_size`.
        micro_batch_size: samples in memory at a time; None: the whole batch.
        captions: captions of each sample.
    """
    with _restored(model):
        small, large = trace_two_sizes(list(model.parameters()), trial)
    return peak_bytes(small, large, min(micro_batch_size or batch, batch)) + reserved_bytes(model, batch, captions)


def reserved_bytes(model: CLIPModel, batch: int, captions: int = 1) -> int:
    """Memory of a step beside the weights and the micro batch: gradients, AdamW's moments, the whole batch's loss."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    embeddings = (1 + captions) * batch * model.config.embed_dim * 4
    similarities = 4 * min(batch * batch * captions, MAX_SIMILARITY_SIDE**2)
    return PARAMETER_COPIES * weights + EMBEDDING_COPIES * embeddings + SIMILARITY_COPIES * similarities


@contextmanager
def _restored(model: CLIPModel) -> Iterator[None]:
    """Restore gradients, buffers and the random state, and empty the allocator's cache."""
    state, buffers = random_state(model.device), [buffer.clone() for buffer in model.buffers()]
    gradients = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        set_random_state(model.device, state)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
