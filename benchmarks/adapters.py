"""Peak memory and time of a training step by the trained parts, each in a process of its own; LoRA beside peft.

python -m benchmarks.adapters [--preset vit_b_16] [--batch 8] [--steps 3] [--device cpu] [--small]

The peak counts weights, activations, gradients and the optimizer's moments, above the memory after a step of a tiny
model, for which torch loads its code. The C library returns freed memory at once. The time is the median of the steps
after the first. peft adapts transformers' CLIPModel of the same sizes. On a CPU the peak needs Linux.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import describe_machine

MODES = {
    "full": {},
    "last-2 of both towers": {"tune_image": "last-2", "tune_text": "last-2"},
    "frozen image tower": {"tune_image": "frozen"},
    "LoRA, rank 4 on q, k, v": {"tune_image": "lora", "tune_text": "lora"},
}
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # no memory is kept for later
PEFT = "LoRA of peft on transformers' CLIPModel"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vit_b_16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="a tiny model and one step: a check that everything works")
    parser.add_argument("--mode", choices=[*MODES, PEFT], help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.small:
        options.preset, options.batch, options.steps = "bert_vit_tiny", 4, 2
    if options.mode:
        print(json.dumps(measure(options.mode, options.preset, options.batch, options.steps, options.device)))
        return
    print(f"{describe_machine()}\n\n{options.preset}, batch {options.batch}, float32, {options.device}\n")
    print("| trained | parameters | peak (MiB) | of full | step (s) |\n| --- | --- | --- | --- | --- |")
    full = None
    for mode in [*MODES, *([PEFT] if options.preset.startswith("vit_") else [])]:
        values = [f"--{name}={getattr(options, name)}" for name in ("preset", "batch", "steps", "device")]
        command = [sys.executable, "-m", "benchmarks.adapters", *values, "--mode", mode]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | EXACT)
        row = json.loads(done.stdout.splitlines()[-1])
        full = full or row["peak"]
        print(
            f"| {mode} | {row['trained']:,} | {row['peak']:,.0f} | {row['peak'] / full:.2f} | {row['seconds']:.2f} |",
            flush=True,
        )


def measure(mode: str, preset: str, batch: int, steps: int, device: str) -> dict[str, float]:
    """Train on one batch; return the number of trained parameters, the peak in MiB, and the seconds of a step."""
    import torch

    if mode == PEFT:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    torch.manual_seed(0)
    make = peft_step if mode == PEFT else own_step
    make(mode, "bert_vit_tiny", 2, device)[0]()
    gc.collect()
    before = reset_peak(device)
    step, trained = make(mode, preset, batch, device)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"trained": trained, "peak": peak(device) - before, "seconds": statistics.median(seconds[1:] or seconds)}


def own_step(mode: str, preset: str, batch: int, device: str):
    """Return a function that takes a step of miniclip, and the number of trained parameters."""
    import torch

    import miniclip
    from miniclip.config import preset as preset_named
    from miniclip.finetuning.towers import apply
    from miniclip.inference.model import CLIPModel
    from miniclip.train.optimizer import build_optimizer
    from miniclip.train.step import Inputs, plain_step
    from miniclip.train.step_arguments import loss_function, step_options

    config = miniclip.TrainConfig(**MODES[mode])
    with torch.device(device):
        model = CLIPModel(preset_named(preset)).initialise()
    apply(model, config)
    optimizer, loss = build_optimizer(model, config), loss_function(config, model)
    inputs, options = Inputs(*random_batch(model.config, batch, device)), step_options(config, torch.device(device))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return lambda: plain_step(model, optimizer, inputs, loss, options), trained


def peft_step(mode: str, preset: str, batch: int, device: str):
    """Return a function that takes a step of peft on transformers' model, and the number of trained parameters."""
    import peft
    import torch
    import transformers

    from miniclip.config import preset as preset_named

    config = preset_named(preset)
    towers = [
        {
            "hidden_size": tower.width, "intermediate_size": tower.mlp_width, "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
        }
        for tower in (config.image, config.text)
    ]  # fmt: skip
    towers[0] |= {"image_size": config.image.image_size, "patch_size": config.image.patch_size}
    with torch.device(device):
        model = transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=towers[0], text_config=towers[1], projection_dim=config.embed_dim)
        )
    lora = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "k_proj", "v_proj"])
    model = peft.get_peft_model(model, lora).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    pixels, tokens = random_batch(config, batch, device)

    def step() -> None:
        model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(parameter.numel() for parameter in parameters)


def random_batch(config, batch: int, device: str):
    """Return noise (B, 3, S, S), and random captions (B, T) of the whole context, so that no form saves padding."""
    import torch

    size, text = config.image.image_size, config.text
    end = text.vocab_size - 1 if text.end_id is None else text.end_id
    tokens = torch.randint(1, min(end, text.vocab_size - 2), (batch, text.context_length))
    tokens[:, -1] = end
    return torch.randn(batch, 3, size, size, device=device), tokens.to(device)


def reset_peak(device: str) -> float:
    """Forget the peak before now, and return the memory in use in MiB."""
    if device == "cuda":
        import torch

        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak(device: str) -> float:
    """Return the largest memory in use since `reset_peak`, in MiB."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return status("VmHWM")


def status(name: str) -> float:
    """Return a size that Linux reports for this process, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
