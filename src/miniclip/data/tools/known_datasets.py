"""Well-known datasets: their pages, terms of use and downloads.

The facts were read on public pages, each named here. This project has downloaded none of the datasets.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from miniclip.utils.checks import did_you_mean

KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"


class KnownDataset(NamedTuple):
    """A dataset and its sources.

    Attributes:
        summary: one line.
        home: the dataset's page.
        terms: the authors' terms of use, with their source.
        manual_steps: how to get it from its authors, one line per step; FOLDER is replaced by the folder.
        repo: repository of a copy on the Hub; "" if there is none.
        revision: revision of the copy.
        files: names or patterns of the copy's files; a zip is unpacked.
        gigabytes: approximate size of the files.
        note: about the copy.
    """

    summary: str
    home: str
    terms: str
    manual_steps: tuple[str, ...]
    repo: str = ""
    revision: str = "main"
    files: tuple[str, ...] = ()
    gigabytes: float = 0.0
    note: str = ""


_FLICKR_TERMS = (
    "the photographs belong to Flickr users: their use must follow Flickr's Terms of Use, and they are provided only "
    "for non-commercial research and education"
)

KNOWN_DATASETS = {
    "flickr30k": KnownDataset(
        summary="Flickr30k: 31,783 photographs with five captions each",
        home="https://shannon.cs.illinois.edu/DenotationGraph/",
        terms=f"{_FLICKR_TERMS} (source: https://github.com/BryanPlummer/flickr30k_entities)",
        manual_steps=(
            "fill in the form at https://forms.illinois.edu/sec/229675; a link to the images is sent by mail",
            "unpack the images into FOLDER/flickr30k-images",
            f"for Karpathy's split, unpack dataset_flickr30k.json of {KARPATHY} into FOLDER",
        ),
        repo="nlphuji/flickr30k",
        revision="2b239befc81b6e3f035ce6bd52f5f4d60f5625f7",
        files=("flickr_annotations_30k.csv", "flickr30k-images.zip"),
        gigabytes=4.4,
        note="a copy that is not the authors', on a page without a licence; with Karpathy's split",
    ),
    "flickr8k": KnownDataset(
        summary="Flickr8k: about 8,000 photographs with five captions each",
        home="http://nlp.cs.illinois.edu/HockenmaierGroup/8k-pictures.html",
        terms="not for commercial use (source: books that use it); the photographs belong to Flickr users",
        manual_steps=(
            "fill in the form at https://forms.illinois.edu/sec/1713398; links are sent by mail",
            "unpack Flickr8k_Dataset.zip and Flickr8k_text.zip into FOLDER",
        ),
        repo="jxie/flickr8k",
        files=("data/*.parquet",),
        gigabytes=1.1,
        note="a copy that is not the authors', as parquet files (pip install 'miniclip[parquet]' reads them)",
    ),
    "coco": KnownDataset(
        summary="COCO Captions, 2017: 118,287 photographs for training, 5,000 for validation, five captions each",
        home="https://cocodataset.org",
        terms=(
            "the annotations are under the Creative Commons Attribution 4.0 License; the use of the photographs must "
            "follow Flickr's Terms of Use, with full responsibility (source: https://cocodataset.org/#termsofuse)"
        ),
        manual_steps=(
            "mkdir -p FOLDER && cd FOLDER",
            "curl -C - -O http://images.cocodataset.org/annotations/annotations_trainval2017.zip   # 241 MB",
            "curl -C - -O http://images.cocodataset.org/zips/val2017.zip   # 1 GB",
            "curl -C - -O http://images.cocodataset.org/zips/train2017.zip   # 19 GB; -C - resumes a download",
            "unzip -q '*.zip'",
            f"for Karpathy's split, the same with the zips of 2014, and dataset_coco.json of {KARPATHY}",
        ),
    ),
}


def known_dataset(name: str) -> KnownDataset:
    """Return a dataset by its name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in KNOWN_DATASETS:
        raise ValueError(f"no dataset {name!r} is known{did_you_mean(name, KNOWN_DATASETS)}")
    return KNOWN_DATASETS[name]


def instructions(name: str, folder: str | Path = "FOLDER") -> str:
    """Return a dataset's page, terms and steps to get it, as lines of text."""
    dataset, folder = known_dataset(name), shlex.quote(str(folder))
    steps = [step.replace("FOLDER", folder) for step in dataset.manual_steps]
    lines = [dataset.summary, f"  page: {dataset.home}", f"  terms: {dataset.terms}", "  from its authors:"]
    lines += [f"    {step}" for step in steps]
    if dataset.repo:
        files = ", ".join(dataset.files)
        lines += [
            f"  on the Hub: {dataset.repo}, {files}, about {dataset.gigabytes:g} GB: {dataset.note}",
            f"    miniclip data get {name} {folder} --agree   # downloads it; --agree: you accept the terms",
        ]
    return "\n".join(lines)
