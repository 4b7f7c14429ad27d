"""`miniclip export`: write a model in the files that an application opens."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from miniclip.checkpoints import LAYOUTS
from miniclip.cli.parsing import ADAPTER_HELP, add_command
from miniclip.deployment import DEPLOYMENT_LAYOUTS, FORMS, INT8_CHECK, PRECISIONS
from miniclip.utils.checks import did_you_mean

EPILOG = """examples:
  miniclip export runs/mine models/mine                                two ONNX files and what belongs to them
  miniclip export runs/mine models/mine --preprocessing                the image file takes uint8 images of any size
  miniclip export runs/mine models/mine --int8 --check-data photos.csv    beside them int8 files for a CPU
  miniclip export runs/mine models/mine --int8 --calibration-data flickr30k:train --check-data flickr30k:val
  miniclip export runs/mine ViT-B-32__openai --layout immich
  miniclip export runs/mine models/web --layout transformers.js --forms fp32 q8
"""


def add(commands: Any) -> None:
    """Add the command."""
    export = add_command(commands, "export", export_command, "write ONNX files for an application", EPILOG)
    export.add_argument("source", help="a checkpoint of any layout, a run, a model name, or a repository of the Hub")
    export.add_argument("target", help="directory to write")
    export.add_argument(
        "--layout",
        type=layout_name,
        default="onnx",
        metavar="NAME",
        help=f"{', '.join(DEPLOYMENT_LAYOUTS)} (default onnx)",
    )
    export.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the weights (default float32)")
    export.add_argument("--preprocessing", action="store_true", help="onnx: take uint8 images of any size")
    export.add_argument(
        "--forms", nargs="+", choices=FORMS, default=FORMS, help="transformers.js: precisions to write (default: all)"
    )
    export.add_argument("--int8", action="store_true", help="onnx: also write both towers in int8, for a CPU")
    export.add_argument(
        "--check-data",
        metavar="DATA",
        help="int8: captioned images or DATA:SPLIT, whose recall may fall by half a point",
    )
    export.add_argument(
        "--check-classes",
        metavar="DATA",
        help="int8: labelled images, as for `miniclip eval --task zero-shot`, whose accuracy may fall by half a point",
    )
    export.add_argument(
        "--calibration-data",
        metavar="DATA",
        help="int8: captioned images like those it will embed, or DATA:SPLIT, for constant scales, which are faster",
    )
    export.add_argument("--adapter", metavar="PATH", help=ADAPTER_HELP)
    export.add_argument("--revision", help="branch, tag or commit of a repository")
    export.add_argument("--overwrite", action="store_true", help="replace files of a target that is not empty")


def layout_name(name: str) -> str:
    """Return the name of a layout.

    Raises:
        ArgumentTypeError: it is that of weights, or unknown.
    """
    if name in (*LAYOUTS, "miniclip"):
        raise argparse.ArgumentTypeError(
            f"{name!r} is a layout of weights: use `miniclip convert SOURCE TARGET --layout {name}`"
        )
    if name not in DEPLOYMENT_LAYOUTS:
        raise argparse.ArgumentTypeError(f"unknown value {name!r}{did_you_mean(name, DEPLOYMENT_LAYOUTS)}")
    return name


def export_command(
    source: str,
    target: str,
    layout: Any,
    precision: Any,
    preprocessing: bool,
    forms: Any,
    int8: bool,
    check_data: str | None,
    check_classes: str | None,
    calibration_data: str | None,
    overwrite: bool,
    **load: Any,
) -> None:
    """Run `miniclip export`."""
    import miniclip
    from miniclip.deployment.onnx_files import require_onnx
    from miniclip.deployment.options import Options
    from miniclip.utils.formatting import format_bytes
    from miniclip.utils.target import require_target

    require_onnx()  # all that can fail, before a download
    options = Options(precision, preprocessing, tuple(forms), int8, check_data, check_classes, calibration_data)
    options.require_layout(layout)
    require_target(target, overwrite)
    data, calibration = (captioned(spec) if spec else None for spec in (check_data, calibration_data))
    classes = one_labelled(check_classes) if check_classes else None
    model = miniclip.load(source, device="cpu", **load)
    miniclip.export(
        model,
        target,
        layout=layout,
        precision=precision,
        preprocessing=preprocessing,
        forms=forms,
        int8=int8,
        check_data=data,
        check_classes=classes,
        calibration_data=calibration,
        overwrite=overwrite,
    )
    files = sorted(file for file in Path(target).rglob("*") if file.is_file())
    width = max(len(str(file)) for file in files)
    for file in files:
        print(f"{file!s:<{width}}  {format_bytes(file.stat().st_size):>9}")
    if int8:
        print_check(json.loads((Path(target) / INT8_CHECK).read_text()))
    print(f"{target}: in the layout of {layout}, checked in onnxruntime against {source}")


def captioned(text: str) -> Any:
    """Open a captioned dataset, or one split of it: "photos.csv", "flickr30k:val"."""
    from miniclip.cli.finetuning.against import spec_and_split
    from miniclip.data.opening import open_data

    spec, split = spec_and_split(text, "all")
    return open_data(spec, split)  # type: ignore[arg-type]


def one_labelled(spec: str) -> Any:
    """Open one labelled dataset.

    Raises:
        ValueError: the spec names several.
    """
    from miniclip.evaluation import open_labelled

    datasets = open_labelled(spec)
    if len(datasets) > 1:
        raise ValueError(
            f"{spec} names {len(datasets)} datasets ({', '.join(datasets)}); expected one, such as "
            f"{spec}:{next(iter(datasets))}"
        )
    return next(iter(datasets.values()))


def print_check(report: dict[str, Any]) -> None:
    """Print the report of an int8 check."""
    limit = report["limits"]["cosine"]
    cosines = ", ".join(f"{tower} {cosine:.4f}" for tower, cosine in report["cosine"].items())
    print(f"int8: smallest cosine with float32 on {report['cosine_on']}: {cosines}; the limit is {limit}")
    for name, flag in (("recall", "--check-data"), ("zero_shot", "--check-classes")):
        if report[name] is None:
            print(f"int8: {name.replace('_', '-')} was not checked; {flag} DATA checks it")
            continue
        before, after = report[name]["float32"], report[name]["int8"]
        pairs = ", ".join(f"{figure} {value:.1f} to {after[figure]:.1f}" for figure, value in before.items())
        print(f"int8: float32 to int8: {pairs} %")
