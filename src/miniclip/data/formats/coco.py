"""COCO Captions: the official files, and Karpathy's split of them.

Sources:
    Lin et al. 2014, "Microsoft COCO: common objects in context"; Chen et al. 2015, "Microsoft COCO captions".
    Split: Karpathy and Fei-Fei 2015.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from miniclip.data.formats.captions import Captions
from miniclip.data.formats.coco_files import CocoFile, find_karpathy_images, image_folders, karpathy_rows, read_coco
from miniclip.data.formats.karpathy import read_karpathy
from miniclip.data.formats.options import ReadKeywords, ReadOptions
from miniclip.data.formats.rows import ImageRows, select
from miniclip.data.skipping import SkipLog
from miniclip.data.splits import Split, normalize_split
from miniclip.errors import DataError

KARPATHY = "dataset_coco.json"
CAPTION_FOLDERS = (".", "annotations", "annotations_trainval2017/annotations", "annotations_trainval2014/annotations")
_OFFICIAL = re.compile(r"captions_(train|val)([0-9]{4})\.json")


class CocoCaptions(Captions):
    """COCO Captions: 123,287 images with five captions each.

    `root` holds `annotations/captions_train2017.json` and `captions_val2017.json`, or those of 2014. The images are in
    folders such as `train2017/`, there or in `images/`. The official split has `train` and `val`; the captions of the
    test images were never published.

    With Karpathy's `dataset_coco.json` in `root` or `annotations/`, captions and split are his: 113,287 images in
    `train` (`restval` included), 5,000 in `val` and 5,000 in `test`. Published retrieval results are on his `test`. His
    file has the names of 2014; the same images under their names of 2017 also work.

    Args:
        root: the folder.
        split: "train", "val", "test", or "all".
        **options: as in `Captions`.

    Raises:
        FileNotFoundError: the folder does not exist.
        DataError: the files in the folder are not as described.
        ValueError: the split does not exist.
    """

    def __init__(self, root: str | Path, split: Split = "train", **options: Unpack[ReadKeywords]) -> None:
        self.root = Path(root).expanduser()
        self.split = split
        if not self.root.is_dir():
            problem = "a file, not a folder" if self.root.exists() else "the folder does not exist"
            raise FileNotFoundError(
                f"{self.root}: {problem}; give the one that holds annotations/ and train2017/ (a JSON file of COCO's "
                "format is read by Captions.from_jsonl)"
            )
        read_options = ReadOptions(split, **options)
        skip_log = read_options.new_skip_log()
        karpathy, official = find_coco(self.root)
        if karpathy is not None:
            dataset = _read_karpathy(self.root, karpathy, split, skip_log)
        elif official:
            dataset = _read_official(self.root, official, split, skip_log)
        else:
            raise DataError(
                f"{self.root}: holds no captions_train2017.json or captions_val2017.json (or of 2014) and no "
                f"{KARPATHY}; searched {', '.join(CAPTION_FOLDERS)}; extract annotations_trainval2017.zip there"
            )
        super().__init__(*select(dataset, read_options, skip_log))


def find_coco(root: Path) -> tuple[Path | None, list[CocoFile]]:
    """Return Karpathy's file, and the official files of the newest year, train first."""
    folders = [root / folder for folder in CAPTION_FOLDERS if (root / folder).is_dir()]
    karpathy = next((folder / KARPATHY for folder in folders if (folder / KARPATHY).is_file()), None)
    official: dict[tuple[str, str], Path] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("captions_*.json"))):
        match = _OFFICIAL.fullmatch(path.name)
        if match:
            official.setdefault((match[2], match[1]), path)
    newest = max((year for year, _ in official), default="")
    files = [(split, year, path) for (year, split), path in sorted(official.items()) if year == newest]
    return karpathy, [
        CocoFile(path, split, f"{split}{year}/", image_folders(f"{split}{year}"), (root,))
        for split, year, path in files
    ]


def _read_official(root: Path, files: Sequence[CocoFile], split: str, skip_log: SkipLog) -> ImageRows:
    source = files[0].path.parent
    if split == "test":
        raise ValueError(
            f"no split 'test': {source} has {', '.join(str(file.split) for file in files)} (the captions of the test "
            f"images are not published); add Karpathy's {KARPATHY}, which has a test split"
        )
    # the image files of the other split are not needed
    rows = [row for file in files for row in read_coco(file, skip_log, locate=split in (file.split, "all"))]
    names = " and ".join(file.path.name for file in files)
    year = files[0].prefix[-5:-1]
    return ImageRows(source, rows, f"COCO Captions of {year}, {names}", root, exact_split=True)


def _read_karpathy(root: Path, file: Path, split: str, skip_log: SkipLog) -> ImageRows:
    images = read_karpathy(file, skip_log)
    paths = find_karpathy_images(root, [image for image in images if split in ("all", normalize_split(image.split))])
    return ImageRows(
        file, karpathy_rows(images, paths), f"COCO Captions, Karpathy's {file.name}", root, exact_split=True
    )
