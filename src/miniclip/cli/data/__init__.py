"""`miniclip data`: inspect, cache and download datasets. One module per command."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from miniclip.cli.data import cache, get, inspect

COMMANDS: tuple[ModuleType, ...] = (inspect, cache, get)


def add(commands: Any) -> None:
    """Add the command group."""
    group = commands.add_parser("data", help="inspect, cache and download datasets", description="Datasets.")
    subcommands = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(subcommands)
