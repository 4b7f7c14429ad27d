"""Settings of a run: documentation, types, ranges, the length of the warmup."""

import json
import math

import pytest

from miniclip.train.config import MIN_WARMUP_STEPS, TrainConfig


def test_every_setting_is_documented():
    for name in TrainConfig().to_dict():
        assert len(TrainConfig.help(name)) > 10, name


def test_round_trip():
    config = TrainConfig(epochs=7, flip=True, max_steps=9, loss="sigmoid")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match="unknown setting 'batchsize'; did you mean 'batch_size'"):
        TrainConfig.from_dict({"batchsize": 3})


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": -1},
        {"lr": 0.0},
        {"warmup_fraction": 1.0},
        {"min_crop_area": 0.0},
        {"color_jitter": 1.5},
        {"max_rotation_degrees": 270.0},
        {"max_steps": 0},
        {"precision": "float16"},
        {"loss": "triplet"},
        {"lr": math.nan},
    ],
)
def test_values_out_of_their_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        TrainConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"epochs": 1.5}, {"lr": "1e-3"}, {"flip": 1}, {"epochs": True}, {"seed": None}])
def test_values_of_the_wrong_type(wrong):
    (name,) = wrong
    with pytest.raises(TypeError, match=name):
        TrainConfig(**wrong)


def test_int_is_accepted_as_float():
    assert TrainConfig(lr=1).lr == 1


@pytest.mark.parametrize(
    ("fraction", "total", "expected"),
    [
        (0.1, 1000, 100),
        (0.1, 460, 46),
        (0.1, 100, MIN_WARMUP_STEPS),
        (0.1, 46, 23),
        (0.1, 1, 0),
        (0.5, 46, 23),
        (0.0, 46, 0),
    ],
)
def test_warmup_has_a_floor_in_short_runs(fraction, total, expected):
    assert TrainConfig(warmup_fraction=fraction).warmup_steps(total) == expected
