"""Thumbnails in terminals that show images, by the protocols of kitty and of iTerm2.

Sources: sw.kovidgoyal.net/kitty/graphics-protocol, iterm2.com/documentation-images.html.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from miniclip.errors import DataError
from miniclip.search import Hit, Index

Protocol: TypeAlias = Literal["kitty", "iterm2"]

SIDE = 320  # pixels of a thumbnail
LINES = 8  # height of a thumbnail, in lines of the terminal
PART = 4096  # characters of base64 in one command of kitty


def require_protocol(environment: Mapping[str, str], is_terminal: bool) -> Protocol:
    """Return the protocol of the terminal, by its environment variables.

    Raises:
        ValueError: the output is not a terminal, or one that is not known to show images.
    """
    if not is_terminal:
        raise ValueError("--show: the output is not a terminal; write a contact sheet with --sheet hits.png instead")
    program, terminal = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    if "TMUX" not in environment and not terminal.startswith("screen"):
        if "KITTY_WINDOW_ID" in environment or terminal in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
            return "kitty"
        if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
            return "iterm2"
    name = "tmux or screen" if "TMUX" in environment or terminal.startswith("screen") else program or terminal or "this"
    raise ValueError(
        f"--show: the terminal ({name}) is not known to show images; kitty, Ghostty, iTerm2, WezTerm and mintty are; "
        "write a contact sheet with --sheet hits.png instead"
    )


def show_thumbnails(index: Index, hits: Sequence[Hit], protocol: Protocol) -> None:
    """Print each hit as a line with its score and path, and its image below."""
    from miniclip.cli.search.output import as_table

    for hit in hits:
        print(as_table([hit]), flush=True)
        try:
            sys.stdout.write(encoded(thumbnail(index, hit), protocol) + "\n")
        except (DataError, OSError) as error:
            print(f"         {' '.join(str(error).split())}")
    sys.stdout.flush()


def thumbnail(index: Index, hit: Hit) -> bytes:
    """Return a small PNG of the image of a hit."""
    image = index.image(hit.item)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def encoded(png: bytes, protocol: Protocol) -> str:
    """Return the escape sequence that shows a PNG."""
    text = base64.standard_b64encode(png).decode()
    if protocol == "iterm2":
        return f"\x1b]1337;File=inline=1;size={len(png)};height={LINES};preserveAspectRatio=1:{text}\x07"
    parts = [text[start : start + PART] for start in range(0, len(text), PART)]
    keys = [f"f=100,a=T,r={LINES}," if number == 0 else "" for number in range(len(parts))]
    more = [int(number < len(parts) - 1) for number in range(len(parts))]
    return "".join(f"\x1b_G{key}m={m};{part}\x1b\\" for key, m, part in zip(keys, more, parts, strict=True))
