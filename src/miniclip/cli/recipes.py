"""`miniclip recipes`: list the measured settings for training and fine-tuning, or print one."""

from __future__ import annotations

from typing import Any

from miniclip import recipes
from miniclip.cli.parsing import add_command

EPILOG = """examples:
  miniclip recipes                                   all recipes, with what was measured
  miniclip recipes small-set                         one recipe: its settings and their reasons
  miniclip train --data photos --recipe small-set    train with it; flags override it
  miniclip finetune MODEL DATA --recipe tune-full    a recipe for pretrained models; their names begin with tune
"""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "recipes", recipes_command, "list measured settings, or print one", EPILOG)
    parser.add_argument("name", nargs="?", help="a recipe, to print its file")


def recipes_command(name: str | None) -> None:
    """Run `miniclip recipes`."""
    if name is not None:
        print(recipes.path_of(name).read_text(encoding="utf-8").rstrip())
        return
    for known in recipes.names():
        print("\n  ".join([known, *recipes.card(known)]))
    print("train with one: miniclip train --data DATA --recipe NAME")
    print("fine-tune with one that begins with tune: miniclip finetune MODEL DATA --recipe NAME")
