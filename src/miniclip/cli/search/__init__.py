"""Commands of image search: `miniclip index` and those that use an index. One module per command."""

from __future__ import annotations

from types import ModuleType

from miniclip.cli.search import demo, embed, index

COMMANDS: tuple[ModuleType, ...] = (index, embed, demo)
