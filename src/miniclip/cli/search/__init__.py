"""Commands of image search: `miniclip index` and those that use an index. One module per command."""

from __future__ import annotations

from types import ModuleType

from miniclip.cli.search import demo, dupes, embed, index, search

COMMANDS: tuple[ModuleType, ...] = (index, dupes, search, embed, demo)
