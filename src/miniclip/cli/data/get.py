"""`miniclip data get`: page and terms of a well-known dataset, and its download."""

from __future__ import annotations

from typing import Any

from miniclip.cli.parsing import add_command

EPILOG = """examples:
  miniclip data get                                  list the known datasets
  miniclip data get flickr30k                        its page, its terms, how to get it; downloads nothing
  miniclip data get flickr8k flickr8k --agree        downloads it into the folder flickr8k; you accept its terms
"""


def add(commands: Any) -> None:
    """Add the command."""
    get = add_command(commands, "get", get_command, "describe or download a well-known dataset", EPILOG)
    get.add_argument("name", nargs="?", help="name of a dataset (default: list them)")
    get.add_argument("folder", nargs="?", help="folder of the dataset; existing files stay")
    get.add_argument("--agree", action="store_true", help="accept the dataset's terms, and download it")


def get_command(name: str | None, folder: str | None, agree: bool) -> None:
    """Run `miniclip data get`."""
    from miniclip.data import open_data
    from miniclip.data.tools.download import download
    from miniclip.data.tools.known_datasets import KNOWN_DATASETS, instructions, known_dataset

    if name is None:
        for key, dataset in KNOWN_DATASETS.items():
            print(f"{key:10}  {dataset.summary}")
        print("`miniclip data get NAME` prints the page and the terms of a dataset")
        return
    if agree and folder is None:
        raise ValueError(f"--agree needs a folder: miniclip data get {name} FOLDER --agree")
    if not (agree and folder and known_dataset(name).repo):
        print(instructions(name, folder or "FOLDER"))
        return
    data = open_data(download(name, folder, agree=agree), "all")
    print(f"{data!r}; next: miniclip data inspect {folder}")
