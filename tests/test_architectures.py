"""docs/architectures.md is up to date."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.peer
@pytest.mark.slow
def test_the_page_is_up_to_date(monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    (written_for,) = re.findall(
        r"open_clip (\d+\.\d+)\.", (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    )
    if not open_clip.__version__.startswith(written_for + "."):
        pytest.skip(f"the page was made with open_clip {written_for}, here is {open_clip.__version__}")
    script = str(ROOT / "docs" / "make_architectures.py")
    monkeypatch.setattr(sys, "argv", [script, "--check"])
    with pytest.raises(SystemExit) as end:  # in this process, which has imported open_clip
        runpy.run_path(script, run_name="__main__")
    assert not end.value.code
