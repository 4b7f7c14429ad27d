"""Evaluation: retrieval, zero-shot classification, linear probes, calibration and robustness."""

from miniclip.evaluation.features import CachedEncoder
from miniclip.evaluation.labelled.folders import ClassFolders
from miniclip.evaluation.labelled.images import LabelledImages
from miniclip.evaluation.labelled.opening import open_labelled
from miniclip.evaluation.labelled.shape_classes import ShapeClasses
from miniclip.evaluation.probes.few_shot import few_shot
from miniclip.evaluation.probes.linear_probe import linear_probe
from miniclip.evaluation.retrieval import retrieval
from miniclip.evaluation.zero_shot import zero_shot

__all__ = [
    "CachedEncoder",
    "ClassFolders",
    "LabelledImages",
    "ShapeClasses",
    "few_shot",
    "linear_probe",
    "open_labelled",
    "retrieval",
    "zero_shot",
]
