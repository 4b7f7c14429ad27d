"""An index that is killed at random moments equals one that was built undisturbed, and is complete after each kill.

The test kills real processes with SIGKILL. They are forked from a rank of the fixture `ranks`. The moments are
drawn as numbers of interpreter events (calls and returns of functions, in all threads). They fall into reading,
encoding, commits and compaction.
"""

import functools
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from miniclip.data import Shapes
from miniclip.inference.model import CLIPModel
from miniclip.search.snapshot import Snapshot
from miniclip.search.store import Store
from miniclip.search.updating import update as updating
from miniclip.search.updating.building import update_index
from miniclip.search.updating.update import UpdateOptions
from miniclip.tokenizer import Tokenizer
from tests.killing import attempt
from tests.search.conftest import write_images
from tests.toys import make_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

KILLS = {"build": 6, "update": 4}
EVENTS = {"build": 45_000, "update": 22_000}  # about as many as an undisturbed one has
COUNT = 24


@functools.cache
def make_toy() -> CLIPModel:
    """Return the model; the forks inherit it."""
    data = Shapes("train", 40, image_size=16)
    return make_model(Tokenizer.train([caption for group in data.captions for caption in group], 600)).eval()


def build(folder: Path) -> None:
    """Build the index of `folder/photos`, or update it."""
    update_index(make_toy(), folder / "photos", folder / "index", UpdateOptions(batch_size=4, num_workers=2))


def change(photos: Path) -> None:
    """Change most files: removed, renamed, changed and new ones; the update compacts the index."""
    for number in range(14):
        (photos / f"{number}.png").unlink()
    (photos / "14.png").rename(photos / "renamed.png")
    shutil.copy(photos / "15.png", photos / "16.png")
    write_images(photos, 4, COUNT)


def vectors_by_content(index: Path) -> dict[str, np.ndarray]:
    """Return the vector of each content of an index."""
    snapshot = Snapshot(index)
    return {item.sha256: np.array(snapshot.vectors[item.row]) for item in snapshot.items()}


def check(index: Path, vectors: dict[str, np.ndarray]) -> None:
    """Check that each item of an index has the vector of its content."""
    if Store(index).exists:
        for content, vector in vectors_by_content(index).items():
            assert near(vector, vectors[content])


def near(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether vectors are equal but for the last digit: a sum in another batch may round differently."""
    return bool(np.abs(one.astype(np.float32) - other.astype(np.float32)).max() <= 2**-11)


def main(folder: Path) -> None:
    """Build one undisturbed index, then others until there were `KILLS`; no other thread may run in the process."""
    torch.set_num_threads(1)
    updating.COMMIT_SECONDS = 0.0
    whole = folder / "whole"
    write_images(whole / "photos", COUNT)
    build(whole)
    vectors = vectors_by_content(whole / "index")
    change(whole / "photos")
    build(whole)
    vectors |= vectors_by_content(whole / "index")
    assert Snapshot(whole / "index").settings["generation"] == "1"
    draw, kills, number = random.Random(0), dict.fromkeys(KILLS, 0), 0
    while any(kills[step] < least for step, least in KILLS.items()):
        other, number = folder / f"killed-{number}", number + 1
        write_images(other / "photos", COUNT)
        for step in KILLS:
            if step == "update":
                change(other / "photos")
            while (status := attempt(functools.partial(build, other), draw.randrange(2_000, EVENTS[step]))) != 0:
                assert status == -signal.SIGKILL, status
                kills[step] += 1
                check(other / "index", vectors)
                print(kills[step], "kills; in", step, "of", other.name, flush=True)


def test_killed_index_equals_undisturbed(ranks, tmp_path):
    ((_, output, _),) = ranks(1, main, tmp_path, seconds=300)
    assert all(output.count(f"kills; in {step}") >= least for step, least in KILLS.items())
    whole = Snapshot(tmp_path / "whole" / "index")
    for path in sorted(tmp_path.glob("killed-*/index")):
        killed = Snapshot(path)
        assert killed.names == whole.names
        assert near(killed.vectors[killed.rows], whole.vectors[whole.rows])
        assert {file.name.partition("-")[0] for file in path.iterdir()} == {"index.sqlite", "vectors"}
        assert len(list(path.glob("vectors-*"))) == 1
