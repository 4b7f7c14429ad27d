"""Evaluation: retrieval, zero-shot classification, linear probes, calibration and robustness."""

from miniclip.evaluation.features import CachedEncoder
from miniclip.evaluation.labelled import ClassFolders, LabelledImages
from miniclip.evaluation.linear_probe import few_shot, linear_probe
from miniclip.evaluation.retrieval import retrieval
from miniclip.evaluation.shape_classes import ShapeClasses
from miniclip.evaluation.zero_shot import zero_shot

__all__ = [
    "CachedEncoder",
    "ClassFolders",
    "LabelledImages",
    "ShapeClasses",
    "few_shot",
    "linear_probe",
    "retrieval",
    "zero_shot",
]
