"""Embeddings on a CPU: miniclip, and the engines that applications run, on the same weights.

python -m benchmarks deployment

ViT-B/16 with random weights. `miniclip` is float32 in torch. `bfloat16` and `int8` are miniclip in these precisions
(`miniclip.quantize`), `calibrated` is int8 with constant scales, found on other images and captions. The engines run
the files of `miniclip.export(layout="onnx", int8=True)`: onnxruntime in float32, in int8, and in int8 with calibration
data; OpenVINO in float32, and in int8 with weights compressed by nncf, if it is installed. `onnxruntime, library int8`
is the form of onnxruntime's own quantizer. faster-clip opens only OpenAI's ViT-B/32 and another text tower, so a row of
its own compares it: its weights are read from a cache folder, which is filled with random ones.
All use torch's number of threads. On one thread (OMP_NUM_THREADS=1) the clock is CPU time, which other programs on the
machine change less, and the largest batches are left out. Embeddings are compared with float32 first; the note gives
the smallest cosine.
"""

import copy
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import miniclip
from benchmarks.baselines import random_captions, with_layers
from benchmarks.harness import MINICLIP, Row, Scale, interleaved
from miniclip.config import preset
from miniclip.hub import fresh

MIN_COSINE = {"int8": 0.99, "bfloat16": 0.999}  # other names: 0.99999
INT8, CALIBRATED = f"{MINICLIP} int8", f"{MINICLIP} int8, calibrated"
Call = Callable[[Tensor], Tensor]


def rows(scale: Scale) -> Iterator[Row]:
    if scale.device != "cpu":
        return
    config = with_layers(preset("vit_b_16"), 1) if scale.small else preset("vit_b_16")
    torch.manual_seed(0)
    model = fresh(config).eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, tokens = inputs_of("image", 64), random_captions(256, seed=1)
        files = write_files(model, Path(folder), pixels, tokens)
        torch_models = {MINICLIP: model, "miniclip bfloat16": bfloat16(model), INT8: miniclip.quantize(model)}
        torch_models[CALIBRATED] = miniclip.quantize(model, pixels, tokens)
        for tower, small, large in (("image", (1, 2), (1, 8, 32)), ("text", (1, 4), (1, 32, 256))):
            calls = {name: torch_call(tower, one) for name, one in torch_models.items()}
            calls |= engines(tower, files)
            for size in small if scale.small else large[:2] if is_alone() else large:
                yield measure(tower, calls, inputs_of(tower, size), scale)
        yield from faster_clip_rows(scale, Path(folder))


def measure(tower: str, calls: dict[str, Call], inputs: Tensor, scale: Scale) -> Row:
    expected = calls[MINICLIP](inputs)
    cosines = {name: float((unit(call(inputs)) * expected).sum(1).min()) for name, call in calls.items()}
    for name, cosine in cosines.items():
        limit = next((value for key, value in MIN_COSINE.items() if key in name), 0.99999)
        if not cosine >= limit:
            raise SystemExit(f"{name}: cosine {cosine:.5f} with float32; the limit is {limit}")
    timed = {name: partial(call, inputs) for name, call in calls.items()}
    values = interleaved(timed, scale.rounds, work=len(inputs), clock=clock())
    note = "cosine with float32: " + ", ".join(
        f"{name} {cosine:.4f}" for name, cosine in cosines.items() if name != MINICLIP
    )
    case = f"ViT-B/16, {len(inputs)} {'images' if tower == 'image' else 'captions'}, {threads()}"
    targets = {"onnxruntime": 1.0, "OpenVINO": 1.0}
    unit_name = "images/s" if tower == "image" else "texts/s"
    return Row(f"encode_{tower}", case, unit_name, values, {k: v for k, v in targets.items() if k in values}, note=note)


def is_alone() -> bool:
    """Whether all use one thread."""
    return torch.get_num_threads() == 1


def threads() -> str:
    return "1 thread, CPU time" if is_alone() else f"{torch.get_num_threads()} threads"


def clock() -> Callable[[], float] | None:
    """Return the clock: CPU time on one thread, else wall time."""
    return time.process_time if is_alone() else None


def inputs_of(tower: str, size: int) -> Tensor:
    if tower == "image":
        return torch.randn(size, 3, 224, 224, generator=torch.Generator().manual_seed(size))
    return random_captions(size)


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=-1)


def bfloat16(model: Any) -> Any:
    return copy.deepcopy(model).bfloat16()


def torch_call(tower: str, model: Any) -> Call:
    def call(inputs: Tensor) -> Tensor:
        if tower == "text":
            return model.encode_text(inputs)
        return model.encode_image(inputs.to(model.log_scale.dtype)).float()

    return call


def write_files(model: Any, folder: Path, images: Any, texts: Any) -> dict[str, Path]:
    """Write the ONNX files by name: `visual`, `visual_int8`, `visual_calibrated`, `visual_library`, and `textual` too.

    Args:
        model: in float32.
        folder: of the files.
        images: calibration data, as in `encode_image`.
        texts: calibration data, as strings or token ids.
    """
    from miniclip.deployment.quantization.calibration import pixel_batches, token_batches
    from miniclip.deployment.quantization.check import quantize_towers
    from miniclip.deployment.weight_forms import write_int8

    miniclip.export(model, folder / "onnx", layout="onnx", int8=True)
    files = {path.stem: path for path in (folder / "onnx").glob("*.onnx")}
    for name in ("visual", "textual"):
        files[f"{name}_library"] = folder / f"{name}_library.onnx"
        write_int8(files[name], files[f"{name}_library"])
    names = ("visual", "textual")
    files |= {f"{name}_calibrated": folder / f"{name}_calibrated.onnx" for name in names}
    sources, targets = [files[name] for name in names], [files[f"{name}_calibrated"] for name in names]
    quantize_towers(model.config, sources, targets, pixel_batches(model, images), token_batches(model, texts))
    return files


def engines(tower: str, files: dict[str, Path]) -> dict[str, Call]:
    """Return the calls of the engines that are installed."""
    name, key = ("visual", "image") if tower == "image" else ("textual", "text")
    calls = {
        "onnxruntime": onnxruntime(files[name], key),
        "onnxruntime int8": onnxruntime(files[f"{name}_int8"], key),
        "onnxruntime int8, calibrated": onnxruntime(files[f"{name}_calibrated"], key),
        "onnxruntime, library int8": onnxruntime(files[f"{name}_library"], key),
    }
    try:
        calls["OpenVINO"] = openvino(files[name], key, compressed=False)
    except ImportError:
        return calls
    try:
        calls["OpenVINO int8"] = openvino(files[name], key, compressed=True)
    except ImportError as error:
        print(f"OpenVINO int8 is left out: {error}")
    return calls


def onnxruntime(path: Path, key: str) -> Call:
    from miniclip.deployment.verification import session

    run = session(path).run
    return lambda inputs: torch.from_numpy(run(None, {key: inputs.numpy()})[0])


def openvino(path: Path, key: str, compressed: bool) -> Call:
    import openvino

    model = openvino.Core().read_model(path)
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    if compressed:
        import nncf

        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 64
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return lambda inputs: torch.from_numpy(compiled({key: inputs.numpy()})[0].copy())


def faster_clip_rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Yield a row for ViT-B/32 images, with PNG files as input on both sides, if faster-clip is installed."""
    if scale.small:
        return
    try:
        from faster_clip import ClipModel
    except ImportError:
        print("faster-clip is left out: not installed")
        return
    model = fresh(preset("vit_b_32")).eval()
    images = [png(seed) for seed in range(8)]
    miniclip.export(model, folder / "b32", layout="transformers")
    name = "sentence-transformers/clip-ViT-B-32"
    cache = folder / "faster-clip"
    place = cache / name.replace("/", "__") / "0_CLIPModel"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes((folder / "b32" / "model.safetensors").read_bytes())
    os.environ["FASTER_CLIP_CACHE"] = str(cache)
    other = ClipModel()
    expected = model.encode_image(images)
    try:
        result = unit(torch.tensor(other.encode_image(images)))
    except Exception as error:  # its own class of errors
        print(f"faster-clip is left out: it does not open these weights ({error})")
        return
    cosine = float((result * expected).sum(1).min())
    quantized = miniclip.quantize(model)
    calls = {
        MINICLIP: lambda: model.encode_image(images),
        INT8: lambda: quantized.encode_image(images),
        "faster-clip": lambda: other.encode_image(images),
    }
    values = interleaved(calls, scale.rounds, work=len(images), clock=clock())
    yield Row(
        "encode_image", "ViT-B/32, 8 PNG files", "images/s", values, {}, note=f"cosine of faster-clip {cosine:.4f}"
    )


def png(seed: int) -> bytes:
    pixels = torch.randint(0, 256, (224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()
