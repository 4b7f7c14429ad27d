"""Run each Python block of the pages and compare its output: `python docs/check_examples.py [PAGE …]`.

The blocks of a page share their variables. They run in a new folder, with a run of two steps in `runs/shapes`. If a
block of `text` follows, the output must equal it; other output is ignored.
"""

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from miniclip import cli

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)


def check(page: Path) -> int:
    """Run the blocks of a page; return their number."""
    names: dict[str, object] = {"__name__": "__main__"}
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    for number, (code, expected) in enumerate(blocks, 1):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, f"{page.name}, block {number}", "exec"), names)
        if expected and output.getvalue().rstrip() != expected.rstrip():
            sys.exit(f"{page.name}, block {number} printed\n{output.getvalue()}\nand the page has\n{expected}")
    return len(blocks)


def main() -> None:
    here = Path(__file__).resolve().parent
    pages = [Path(name).resolve() for name in sys.argv[1:]] or sorted(here.glob("*.md"))
    with tempfile.TemporaryDirectory() as run:
        for page in pages:
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                if "runs/shapes" in page.read_text(encoding="utf-8"):
                    if not any(Path(run).iterdir()):
                        with contextlib.redirect_stdout(io.StringIO()):
                            cli.main(["train", "--max-steps", "2", "--run-dir", run])
                    shutil.copytree(run, "runs/shapes")
                print(f"{page.name}: {check(page)} blocks", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    main()
