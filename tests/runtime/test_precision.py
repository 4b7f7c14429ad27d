"""Which precision: what is named, or what a trial finds to be faster."""

import pytest
import torch

from miniclip.runtime.precision import dtype_named, resolve

CPU = torch.device("cpu")


def test_what_is_named_stays():
    assert resolve("bfloat16", CPU) == "bfloat16"
    assert resolve("float32", CPU) == "float32"


@pytest.mark.parametrize(("seconds", "expected"), [((2.0, 1.0), "bfloat16"), ((1.1, 1.0), "float32")])
def test_auto_takes_what_the_trial_says(monkeypatch, seconds, expected):
    times = dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))
    monkeypatch.setattr("miniclip.runtime.precision._seconds", times.__getitem__)
    assert resolve("auto", CPU) == expected
    assert dtype_named("auto", CPU) == getattr(torch, expected)


def test_the_trial_runs():
    assert resolve("auto", CPU) in ("float32", "bfloat16")


def test_types_by_name():
    assert dtype_named("float16", CPU) == torch.float16
    with pytest.raises(ValueError, match="unknown dtype 'bfloat32'"):
        dtype_named("bfloat32", CPU)
    with pytest.raises(ValueError, match="unknown dtype 'int8'"):
        dtype_named("int8", CPU)
