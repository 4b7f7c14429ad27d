"""The command `miniclip`: train, evaluate, convert, list the models. A user's error is one line, and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from miniclip import distributed
from miniclip.checkpoints.export import LAYOUTS
from miniclip.checks import did_you_mean, kinds_and_words
from miniclip.config import PRESETS, CLIPConfig, preset
from miniclip.errors import CheckpointError, DataError
from miniclip.train.settings import TrainConfig

DATA, PRESET = "shapes", "bert_vit_tiny"
DTYPES = ("float32", "bfloat16", "float16")
SHAPES_SETTINGS = {"epochs": 10, "lr": 2e-3, "crop": 1.0}  # the defaults on the drawn set: there a crop could lie
USER_ERRORS = (ValueError, TypeError, OSError, CheckpointError, DataError, FloatingPointError)
INTERRUPTED = 130  # as shells report a program that Ctrl-C ended

TRAIN_EPILOG = """examples:
  miniclip train                                     the drawn set and a tiny model, about a minute on two cores
  miniclip train --data flickr30k --preset bert_vit_b_16 --epochs 55 --run-dir runs/flickr
  miniclip train --config recipe.toml                the same names, as `epochs = 55`; flags win over the file
  miniclip train --resume runs/flickr                go on where a run was stopped
  torchrun --nproc-per-node 4 -m miniclip train …    on four GPUs, or processes
"""
EVAL_EPILOG = """examples:
  miniclip eval runs/shapes                          the best model of a run, on the data it was validated with
  miniclip eval runs/shapes/last --data photos --split test
"""
CONVERT_EPILOG = """examples:
  miniclip convert ViT-B-32.pt models/b32                          OpenAI's archive to a miniclip checkpoint
  miniclip convert org/repo models/theirs --layout transformers    from the Hub, for another library
  miniclip convert runs/mine models/mine --dtype bfloat16
"""
MODELS_EPILOG = """examples:
  miniclip models                                    all presets and well-known checkpoints
  miniclip models bert_vit_b_16                      one of them: its parts and their parameters
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for an error, 130 for Ctrl-C."""
    options = parse(arguments)
    command = options.pop("command")
    try:
        command(**options)
    except KeyboardInterrupt:
        if distributed.is_main():
            print("miniclip: stopped", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        who = f"miniclip, rank {distributed.rank()}" if distributed.world_size() > 1 else "miniclip"
        print(f"{who}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    return 0


def parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    """The command and its options; a flag that does not exist ends the program, and the nearest is named."""
    known, unknown = build_parser().parse_known_args(arguments)
    options = vars(known)
    parser = options.pop("parser")
    if unknown:
        flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        parser.error(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0].split('=')[0], flags)}")
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; the flags of `train` are made from `TrainConfig`."""
    from miniclip import __version__

    parser = Parser(prog="miniclip", description="CLIP from first principles: train it, measure it, look at it.")
    parser.add_argument("--version", action="version", version=f"miniclip {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = _command(commands, "train", train_command, "train a model and draw its learning curve", TRAIN_EPILOG)
    train.add_argument("--resume", metavar="RUN", help="go on with a run; everything else comes from it")
    train.add_argument("--config", metavar="FILE", help="a TOML file with any of the settings below")
    _add_flag(train, "data", str | None, f"a folder in Flickr30k's layout, or shapes, the drawn set (default {DATA})")
    _add_flag(train, "preset", str | None, f"the architecture, with fresh weights (default {PRESET})")
    _add_flag(train, "model", str | None, "a checkpoint to start from, in place of a preset")
    _add_flag(train, "run_dir", str | None, "where to write (default: the next free runs/NAME)")
    _add_flag(train, "device", str | None, "cpu, cuda, mps (default: the GPU where there is one)")
    settings = train.add_argument_group("settings")
    hints = get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        default = "" if field.default is None else f" (default {str(field.default).lower()}"
        if field.name in SHAPES_SETTINGS:
            default += f", on {DATA} {SHAPES_SETTINGS[field.name]}"
        default += ")" if default else ""
        _add_flag(settings, field.name, hints[field.name], TrainConfig.help(field.name) + default)

    evaluate = _command(commands, "eval", eval_command, "measure a model's retrieval recall", EVAL_EPILOG)
    evaluate.add_argument("checkpoint", help="a run, or a checkpoint directory")
    evaluate.add_argument("--data", help="as in train (default: the data of the run)")
    evaluate.add_argument("--split", default="val", help="train, val, test or all (default val)")
    evaluate.add_argument("--device", help="cpu, cuda, mps (default: the GPU where there is one)")

    convert = _command(commands, "convert", convert_command, "write a checkpoint in another layout", CONVERT_EPILOG)
    convert.add_argument("source", help="a checkpoint of any layout, a run, a name or a repository on the Hub")
    convert.add_argument("target", help="the directory to write")
    convert.add_argument("--layout", choices=("miniclip", *LAYOUTS), default="miniclip", help="(default miniclip)")
    convert.add_argument("--dtype", choices=DTYPES, help="precision of the weights (default: as they are opened)")
    convert.add_argument(
        "--image-size", type=int, metavar="N", help="another size; the position embeddings are resized"
    )
    convert.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json, in place of the checkpoint's")
    convert.add_argument(
        "--architecture", metavar="NAME", help="a preset or a configuration file, for weights without settings"
    )
    convert.add_argument("--revision", help="of a repository: a branch, a tag or a commit")

    models = _command(commands, "models", models_command, "list the models, or show one", MODELS_EPILOG)
    models.add_argument("name", nargs="?", help="a preset, or a well-known checkpoint")
    return parser


class Parser(argparse.ArgumentParser):
    """argparse, its errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and how to get help; exit with 2."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _command(commands: Any, name: str, run: Any, text: str, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=run, parser=parser)
    return parser


def _add_flag(parser: Any, name: str, hint: Any, text: str) -> None:
    """A flag `--name-with-dashes` of a setting's type, absent unless it is given."""
    flag = "--" + name.replace("_", "-")
    kinds, words = kinds_and_words(hint)
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if kinds == (bool,):
        options["action"] = argparse.BooleanOptionalAction
    elif not kinds:
        options |= {"choices": words}
    else:
        metavar = {int: "N", float: "X", str: name.upper()}[kinds[0]]
        options |= {"type": _or_a_word(kinds[0], words), "metavar": "|".join([metavar, *words])}
    parser.add_argument(flag, **options)


def _or_a_word(kind: Any, words: Sequence[str]) -> Any:
    """What reads a flag's value: the kind itself, unless it is one of the words."""
    if not words:
        return kind

    def read(text: str) -> Any:
        return text if text in words else kind(text)

    read.__name__ = " or ".join([kind.__name__, *words])  # argparse says "invalid … value" with it
    return read


# train


def train_command(resume: str | None, config: str | None, **flags: Any) -> None:
    """`miniclip train`; torchrun makes of it one process a rank."""
    with distributed.ranks(flags.get("device")), printed_once():
        run_training(resume, config, **flags)


@contextlib.contextmanager
def printed_once() -> Iterator[None]:
    """Of several ranks, let rank 0 alone print and warn."""
    if distributed.is_main():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run_training(resume: str | None, config: str | None, **flags: Any) -> None:
    """Start or take up a run, train to the end, and say what came out."""
    if resume is not None:
        if config is not None or flags.keys() - {"device"}:
            given = ", ".join("--" + name.replace("_", "-") for name in flags) or "--config"
            raise ValueError(f"--resume takes everything from the run, but found {given}: leave it out")
        trainer = resumed(resume, flags.get("device"))
    else:
        trainer = started({**read_toml(config), **flags} if config else flags)
    print(
        f"{trainer.about.get('preset', 'model')}: {count(trainer.model):,} parameters; {trainer.loader.size:,} "
        f"training pictures, batches of {trainer.loader.batch_size}, {trainer.total_steps:,} steps, "
        f"{trainer.config.precision} on {trainer.model.device}{on_ranks()}; writing to {trainer.run_dir}",
        flush=True,
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:
        print(f"stopped at step {trainer.step}; go on with: miniclip train --resume {trainer.run_dir}")
        raise
    print(summary(trainer))


def on_ranks() -> str:
    """How many processes there are, where there are several."""
    return f", {distributed.world_size()} ranks" if distributed.world_size() > 1 else ""


def started(settings: dict[str, Any]) -> Any:
    """A trainer for a new run."""
    import miniclip
    from miniclip.train.run_dir import next_run_dir, refuse_a_run

    data, preset_name, checkpoint, run_dir, device = (
        settings.pop(name, None) for name in ("data", "preset", "model", "run_dir", "device")
    )
    if preset_name and checkpoint:
        raise ValueError("preset and model: give one of them, fresh weights or a checkpoint to start from")
    data = DATA if data in (None, DATA) else str(Path(data).resolve())  # a run is resumed from any folder
    config = TrainConfig.from_dict({**SHAPES_SETTINGS, **settings} if data == DATA else settings)
    run_dir = Path(run_dir) if run_dir else next_run_dir(Path("runs") / Path(data).name)
    refuse_a_run(run_dir)  # before minutes of reading
    train_data, val_data = open_both(data)
    preset_name = preset_name or PRESET
    model = miniclip.load(checkpoint) if checkpoint else fresh_model(preset_name, train_data.captions, config)
    about = {"data": data, **({"model": checkpoint} if checkpoint else {"preset": preset_name})}
    return miniclip.Trainer(model, train_data, val_data, config=config, run_dir=run_dir, device=device, about=about)


def fresh_model(preset_name: str, captions: Sequence[Sequence[str]], config: TrainConfig) -> Any:
    """A preset with fresh weights by the seed, and a tokenizer learned from the captions."""
    import torch

    import miniclip
    from miniclip.hub import fresh

    architecture = preset(preset_name)
    if config.loss == "sigmoid":  # SigLIP's own start: almost every pair is a wrong one
        architecture = dataclasses.replace(architecture, logit_scale=10.0, logit_bias=-10.0)
    flat = [caption for group in captions for caption in group]
    tokenizer = miniclip.Tokenizer.train(flat, architecture.text.vocab_size)
    torch.manual_seed(config.seed)
    return fresh(architecture, tokenizer)


def resumed(run: str, device: str | None) -> Any:
    """A trainer for a run that goes on."""
    import miniclip
    from miniclip.train.run_dir import read_run

    return miniclip.Trainer.resume(run, *open_both(data_of(run, read_run(run))), device=device)


def open_both(spec: str) -> tuple[Any, Any]:
    """The training and the validation split."""
    from miniclip.data import open_data

    return open_data(spec, "train"), open_data(spec, "val")


def data_of(run: str, settings: dict[str, Any]) -> str:
    """What the data of a run are called on the command line."""
    if "data" not in settings["about"]:
        raise ValueError(
            f"{run} was started from Python, and does not say where its data are: use Trainer.resume, or --data"
        )
    return str(settings["about"]["data"])


def read_toml(path: str) -> dict[str, Any]:
    """The settings of a TOML file; dashes in names are taken for underscores."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file; --config takes a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
    values = {name.replace("-", "_"): value for name, value in values.items()}
    known = ["data", "preset", "model", "run_dir", "device", *(f.name for f in dataclasses.fields(TrainConfig))]
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: unknown setting {name!r}{did_you_mean(name, known)}")
    return values


def summary(trainer: Any) -> str:
    """What came out, where it is, and what to try next."""
    lines = []
    if trainer.history.evaluations:
        best = max(trainer.history.evaluations, key=lambda r: r["text_to_image"]["R@1"] + r["image_to_text"]["R@1"])
        last = trainer.history.evaluations[-1]
        for name, record in (("last", last), ("best", best)) if best is not last else (("last, and best", last),):
            lines.append(f"{name} (epoch {record['epoch']}): {in_words(record, trainer.val_data)}")
    run = trainer.run_dir
    return "\n".join(
        [
            *lines,
            f"learning curve: {run / 'learning_curve.png'}",
            f"model: {run / 'best' if lines else run / 'last'}",
            f"next: miniclip eval {run}    or, in Python: miniclip.load({str(run)!r})",
        ]
    )


def in_words(record: dict[str, Any], data: Any) -> str:
    """Recalls in a line, with what chance gives."""
    captions = sum(map(len, data.captions))
    own = captions / len(data)
    parts = [
        f"{name} "
        + ", ".join(f"{k} {value:.1f}" for k, value in record[way].items())
        + f" (R@1 by chance {chance:.2f})"
        for way, name, chance in (
            ("text_to_image", "text to image", 100 / len(data)),
            ("image_to_text", "image to text", 100 * own / captions),
        )
    ]
    return "; ".join(parts)


# eval, convert, models


def eval_command(checkpoint: str, data: str | None, split: str, device: str | None) -> None:
    """`miniclip eval`."""
    import torch

    import miniclip
    from miniclip.data import open_data
    from miniclip.train.run_dir import read_run

    model = miniclip.load(checkpoint, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if data is None:
        run = (
            checkpoint
            if (Path(checkpoint) / "best").exists() or (Path(checkpoint) / "last").exists()
            else str(Path(checkpoint).parent)
        )
        data = data_of(run, read_run(run))
    pairs = open_data(data, split)
    print(f"{checkpoint} on {data}, {split}: {len(pairs):,} pictures, {sum(map(len, pairs.captions)):,} captions")
    print(in_words(miniclip.evaluation.retrieval(model, pairs), pairs))


def convert_command(source: str, target: str, layout: str, dtype: str | None, **options: Any) -> None:
    """`miniclip convert`."""
    import torch

    import miniclip

    architecture = options.pop("architecture")
    precision = getattr(torch, dtype) if dtype else None
    model = miniclip.load(source, dtype=precision, config=architecture, **options)
    if layout == "miniclip":
        miniclip.save(model, target)
    else:
        miniclip.export(model, target, layout=layout)
    dtype = str(model.log_scale.dtype).removeprefix("torch.")
    print(f"{target}: {count(model):,} parameters in {dtype}, in the layout of {layout}")


def models_command(name: str | None) -> None:
    """`miniclip models`."""
    import miniclip

    models = miniclip.list_models()
    if name is None:
        width = max(map(len, models))
        for key, description in models.items():
            print(f"{key:<{width}}  {description}")
        return
    if name not in models:
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, models, listed_by='`miniclip models`')}")
    print(f"{name}: {models[name]}")
    for line in describe_model(preset(name)) if name in PRESETS else ["its parts are in its settings, on the Hub"]:
        print("  " + line)


def describe_model(config: CLIPConfig) -> list[str]:
    """The parts of a model and their parameters."""
    import torch

    from miniclip.models.clip import CLIP

    with torch.device("meta"):  # shapes without memory
        model = CLIP(config)
    image, text = config.image, config.text
    token = " and a class token" if image.class_token else ""
    return [
        f"image tower  {count(model.image):>12,} parameters: {_tower(image)}, {image.image_size} px, {image.patches} "
        f"patches of {image.patch_size} px{token}, pooled by {image.pooling}, {image.activation}",
        f"text tower   {count(model.text):>12,} parameters: {_tower(text)}, context {text.context_length}, "
        f"vocabulary {text.vocab_size:,}, "
        f"{'causal' if text.causal else 'bidirectional'}, pooled at its {text.pooling} token, {text.activation}",
        f"in all       {count(model):>12,} parameters; embeddings of {config.embed_dim}",
    ]


def _tower(config: Any) -> str:
    return f"{config.layers} layers, width {config.width}, {config.heads} heads"


def count(module: Any) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
