"""`miniclip data`: what is in a data set, packing it, getting one. One module a command."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from miniclip.cli.data import get, inspect, pack

COMMANDS: tuple[ModuleType, ...] = (inspect, pack, get)


def add(commands: Any) -> None:
    """Add the group and its commands."""
    group = commands.add_parser("data", help="look at, pack and get data sets", description="Data sets.")
    below = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(below)
