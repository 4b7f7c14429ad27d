"""Building blocks of the parsers: errors in one line, and flags generated from typed settings."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, get_args

from miniclip.data.skipping import MAX_SKIP_FRACTION, OnError
from miniclip.utils.checks import did_you_mean, nearest, types_and_literals

# Options of the library that only some commands have, for messages of the others.
OTHER_COMMANDS = {
    "pretrained": "`miniclip train --preset NAME`",
    "config": "`miniclip convert SOURCE TARGET --architecture{}`",
    "tokenizer": "`miniclip convert SOURCE TARGET --tokenizer{}`",
    "image_size": "`miniclip convert SOURCE TARGET --image-size{}`",
    "context_length": "`miniclip convert SOURCE TARGET --context-length{}`",
    "prefix": "`miniclip convert SOURCE TARGET --prefix{}`",
    "subfolder": "`miniclip convert SOURCE TARGET --subfolder{}`",
    "miniclip.list_models()": "`miniclip models`",
    "image=": "`?image=NAME` after the path",
    "caption=": "`?caption=NAME` after the path",
}


IMAGE_HELP = "image size of the checkpoint's model; the position embeddings are resized"
ADAPTER_HELP = "LoRA adapter that was trained on these weights, or its run; it is merged into them"
CONTEXT_HELP = "tokens of a caption; the first 20 positions of the checkpoint are kept, the others stretched"

# Names of flags in other projects, and those of miniclip: the first one that a command has is suggested.
ALIASES = {
    "--learning-rate": ("--lr",),
    "--wd": ("--weight-decay",),
    "--bs": ("--batch-size",),
    "--per-device-train-batch-size": ("--batch-size",),
    "--num-epochs": ("--epochs",),
    "--num-train-epochs": ("--epochs",),
    "--max-epochs": ("--epochs",),
    "--steps": ("--max-steps",),
    "--iterations": ("--max-steps",),
    "--max-iters": ("--max-steps",),
    "--warmup-ratio": ("--warmup-fraction",),
    "--warmup-steps": ("--warmup-fraction",),
    "--clip-grad": ("--max-grad-norm",),
    "--grad-clip-norm": ("--max-grad-norm",),
    "--accum-freq": ("--micro-batch-size",),
    "--gradient-accumulation-steps": ("--micro-batch-size",),
    "--grad-checkpointing": ("--gradient-checkpointing",),
    "--amp": ("--precision", "--dtype"),
    "--fp16": ("--precision", "--dtype"),
    "--bf16": ("--precision", "--dtype"),
    "--half": ("--dtype", "--precision"),
    "--torchcompile": ("--compile",),
    "--workers": ("--num-workers",),
    "--threads": ("--num-workers",),
    "--jobs": ("--num-workers",),
    "--gpu": ("--device",),
    "--cuda": ("--device",),
    "--dataset": ("--data",),
    "--train-data": ("--data",),
    "--input": ("--data",),
    "--images": ("--data",),
    "--checkpoint": ("--model",),
    "--pretrained": ("--model",),
    "--weights": ("--model",),
    "--arch": ("--preset", "--architecture"),
    "--output-dir": ("--run-dir", "--output", "--out"),
    "--out-dir": ("--run-dir", "--output", "--out"),
    "--save-dir": ("--run-dir", "--output", "--out"),
    "--logs": ("--run-dir",),
    "--report-to": ("--tensorboard",),
    "--save-frequency": ("--save-every",),
    "--classes": ("--labels",),
    "--class-names": ("--labels",),
    "--prompt": ("--template", "--templates"),
    "--prompts": ("--template", "--templates"),
    "--resolution": ("--image-size",),
    "--format": ("--layout",),
    "--force": ("--overwrite", "--allow-changes"),
    "--top-k": ("-k",),
    "--topk": ("-k",),
    "--limit": ("-k",),
    "--min-score": ("--threshold",),
    "--skip-errors": ("--on-error",),
}


def suggested_flag(name: str, flags: Iterable[str]) -> str | None:
    """Return the flag of a command that an unknown one most likely stands for, or None.

    >>> suggested_flag("--learning_rate", ["--lr", "--epochs"]), suggested_flag("--epocs", ["--lr", "--epochs"])
    ('--lr', '--epochs')
    """
    known = list(flags)
    aliases = ALIASES.get(name.replace("_", "-").lower(), ())
    return next((flag for flag in aliases if flag in known), None) or nearest(name, known)


class Parser(argparse.ArgumentParser):
    """ArgumentParser with errors of one line that name the nearest choice."""

    def error(self, message: str) -> NoReturn:
        """Print the message and the help command, then exit with code 2."""
        end = "" if message.endswith("?") else ";"
        self.exit(2, f"{self.prog}: {message}{end} see `{self.prog} --help`\n")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Refuse an empty value: an empty path is the current folder, and an empty `--resume` would be a new run."""
        holds_commands = isinstance(action, argparse._SubParsersAction)  # its values are all arguments of a command
        if not arg_string and not holds_commands:
            raise argparse.ArgumentError(action, 'the value is empty, as that of a variable that is not set: ""')
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not one of an argument's choices."""
        if action.choices is not None and value not in action.choices:
            kind = "command" if isinstance(action, argparse._SubParsersAction) else "value"
            hint = did_you_mean(str(value), [str(choice) for choice in action.choices])
            raise argparse.ArgumentError(None if kind == "command" else action, f"unknown {kind} {value!r}{hint}")


def flag_templates(parser: argparse.ArgumentParser) -> Mapping[str, str]:
    """Return the flags of a command for `option_names.flags`, and other commands for the options that it lacks."""
    flags = {a.dest: next((f for f in a.option_strings if f.startswith("--")), "") for a in parser._actions}
    return OTHER_COMMANDS | {name: flag + "{}" for name, flag in flags.items() if flag}


def add_command(commands: Any, name: str, run: Any, text: str, epilog: str) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: the subparsers of the command line or of a group.
        name: name of the command.
        run: function that gets the options as keyword arguments and returns an exit code or None.
        text: description of one line.
        epilog: examples.

    Returns:
        The parser of the command.
    """
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


def add_skip_options(parser: argparse.ArgumentParser, unusable: str) -> None:
    """Add the options for items that cannot be used; `unusable` names one, such as "an image that cannot be read"."""
    parser.add_argument(
        "--on-error",
        choices=get_args(OnError),
        default="raise",
        help=f"stop at {unusable}, or skip it (default raise)",
    )
    parser.add_argument(
        "--max-skip-fraction",
        type=float,
        default=MAX_SKIP_FRACTION,
        metavar="X",
        help=f"greatest fraction to skip (default {MAX_SKIP_FRACTION})",
    )


def add_flag(parser: Any, name: str, hint: Any, text: str) -> None:
    """Add a flag `--name-with-dashes` for a typed setting; without the flag, the option is absent."""
    flag = "--" + name.replace("_", "-")
    types, literals = types_and_literals(hint)
    types = tuple(type_ for type_ in types if type_ is not type(None))
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if types == (bool,):
        options["action"] = argparse.BooleanOptionalAction
    elif not types:
        options["choices"] = literals
    else:
        metavar = {int: "N", float: "X", str: name.upper()}[types[0]]
        options |= {"type": _type_or_literal(types[0], literals), "metavar": "|".join([metavar, *literals])}
    parser.add_argument(flag, **options)


def _type_or_literal(type_: Any, literals: Sequence[str]) -> Any:
    """Return a converter of a flag's value to a type, which leaves the literals as they are."""
    if not literals:
        return type_

    def convert(text: str) -> Any:
        return text if text in literals else type_(text)

    convert.__name__ = " or ".join([type_.__name__, *literals])  # argparse prints it: "invalid … value"
    return convert
