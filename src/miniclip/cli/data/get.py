"""`miniclip data get`: where a well-known set is, what it asks, and fetching it."""

from __future__ import annotations

from typing import Any

from miniclip.cli.parsing import add_command

EPILOG = """examples:
  miniclip data get                                  the sets that are known
  miniclip data get flickr30k                        where it is, what it asks, how to get it; nothing is fetched
  miniclip data get flickr8k flickr8k --agree        fetches it into the folder flickr8k; you keep to its terms
"""


def add(commands: Any) -> None:
    """Add the command."""
    get = add_command(commands, "get", get_command, "say where a well-known set is, and fetch it", EPILOG)
    get.add_argument("name", nargs="?", help="of a set (default: list them)")
    get.add_argument("folder", nargs="?", help="to fetch it into; what is there already stays")
    get.add_argument("--agree", action="store_true", help="you have read the set's terms, and keep to them: fetch it")


def get_command(name: str | None, folder: str | None, agree: bool) -> None:
    """`miniclip data get`."""
    from miniclip.data import open_data
    from miniclip.data.tools import download as getting

    if name is None:
        for one, about in getting.SETS.items():
            print(f"{one:10}  {about.what}")
        print("miniclip data get NAME says where it is, and what it asks")
        return
    if agree and folder is None:
        raise ValueError(f"into which folder? miniclip data get {name} FOLDER --agree")
    if not (agree and folder and getting.known(name).repo):
        print(getting.describe(name, folder or "FOLDER"))
        return
    data = open_data(getting.get(name, folder, agree=agree), "all")
    print(f"{data!r}; next: miniclip data inspect {folder}")
