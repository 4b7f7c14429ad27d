"""Arguments of the trainer and its settings: wrong types get one sentence, before anything is written."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

from miniclip import CLIPConfig, ImageConfig, TextConfig, TrainConfig, Trainer
from miniclip.plots.callbacks import LearningCurve


@pytest.fixture
def make(model, train_data, tmp_path):
    def make(**changes):
        arguments = {"model": model, "train_data": train_data, "config": TrainConfig(epochs=1, batch_size=8)}
        arguments |= {"run_dir": tmp_path / "run", "device": "cpu", **changes}
        try:
            return Trainer(arguments.pop("model"), arguments.pop("train_data"), **arguments)
        finally:
            assert not (tmp_path / "run").exists()

    return make


PAIRS = [("a.jpg", ["a dog"])]


class StringCaptions:
    captions = ("a dog", "a cat")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise AssertionError("no image is opened")


class NoCaptions(StringCaptions):
    captions = (["a dog"], [])


class TooFew(StringCaptions):
    captions = (["a dog"],)


WRONG = {
    "config as dict": ({"config": {"epochs": 3}}, r"config: found a dict; expected a TrainConfig.*from_dict\(values\)"),
    "config of a model": ({"config": ImageConfig(16, 8, 32, 1, 2)}, "config: found an ImageConfig"),
    "model by name": ({"model": "vit_b_16"}, r"model: found a str; expected a CLIPModel, as miniclip\.load\(name\)"),
    "another module": ({"model": torch.nn.Linear(2, 2)}, "model: found a Linear"),
    "list": ({"train_data": PAIRS}, r"the dataset is a list; expected an object with len.*Captions\(paths, "),
    "path": ({"train_data": "photos"}, "the dataset is a str; expected"),
    "validation list": ({"val_data": PAIRS}, "the dataset is a list; expected"),
    "captions as strings": ({"train_data": StringCaptions()}, "image 0 .*the captions are the string"),
    "callback by itself": ({"callbacks": LearningCurve()}, "callbacks: found a LearningCurve; expected a list"),
    "class": (
        {"callbacks": [LearningCurve]},
        "callbacks: found the class LearningCurve in the list",
    ),
}


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_wrong_types(make, kind):
    changes, message = WRONG[kind]
    with pytest.raises(TypeError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("data", "message"),
    [(NoCaptions(), "image 1 .*has no caption"), (TooFew(), "has 2 images, and TooFew.captions has 1 lists")],
    ids=["no caption", "too few lists"],
)
def test_images_without_captions(make, data, message):
    with pytest.raises(ValueError, match=message):
        make(train_data=data)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
def test_half_weights(make, model, precision):
    config = TrainConfig(epochs=1, batch_size=8, precision=precision)
    with pytest.raises(
        ValueError, match=r"log_scale is float16; training needs float32 weights: call model\.float\(\)"
    ):
        make(model=model.half(), config=config)
    make(model=model.float(), config=config)


def test_resume_with_a_list(start, train_data):
    trainer = start(max_steps=1)
    trainer.fit()
    with pytest.raises(TypeError, match=r"the dataset is a list; expected"):
        Trainer.resume(trainer.run_dir, PAIRS)


@pytest.mark.parametrize(
    ("cls", "name", "hint"),
    [
        (TrainConfig, "epoch", "epochs"),
        (TrainConfig, "learning_rate_", None),
        (ImageConfig, "imagesize", "image_size"),
        (TextConfig, "context", "context_length"),
        (CLIPConfig, "embed_dims", "embed_dim"),
    ],
    ids=["epoch", "unlike any", "image", "text", "clip"],
)
def test_unknown_settings_name_the_nearest(cls, name, hint):
    expected = f"{cls.__name__} has no setting '{name}'" + (f"; did you mean '{hint}'" if hint else "")
    with pytest.raises(TypeError, match=expected):
        cls(**{name: 3})


def test_settings_can_still_be_copied():
    config = TrainConfig(epochs=3, lr=0.5)
    for other in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
    assert dataclasses.replace(config, epochs=4).epochs == 4
    with pytest.raises(TypeError, match=r"has no setting 'epoch'"):
        dataclasses.replace(config, epoch=4)


def test_numbers_of_numpy_become_pythons():
    config = TrainConfig(epochs=np.int64(3), batch_size=np.uint8(8), lr=np.float32(0.5), weight_decay=np.float64(0.25))
    assert config == TrainConfig(epochs=3, batch_size=8, lr=0.5, weight_decay=0.25)
    assert {type(value) for value in (config.epochs, config.batch_size)} == {int}
    assert type(config.lr) is float
    assert ImageConfig(np.int32(16), 8, 32, 1, 2).image_size == 16


def test_lists_become_tuples():
    image, text = ImageConfig(16, 8, 32, 1, 2), TextConfig(7, 12, 8, 2, 2)
    for mean in ([0.5, 0.4, 0.3], np.array([0.5, 0.4, 0.3])):
        assert CLIPConfig(image, text, 8, mean=mean).mean == (0.5, 0.4, 0.3)
    with pytest.raises(TypeError, match=r"mean is 'abc'; expected 3 numbers"):
        CLIPConfig(image, text, 8, mean="abc")
    with pytest.raises(TypeError, match=r"the settings are a list; expected a dict"):
        TrainConfig.from_dict(["epochs"])


@pytest.mark.parametrize(
    "value",
    ["32", 2.0, True, None, [8], np.bool_(True), np.float32(8)],
    ids=["str", "float", "bool", "None", "list", "numpy bool", "numpy float"],
)
def test_batch_sizes_that_are_not_integers(value):
    with pytest.raises(TypeError, match=r"batch_size is .*expected int"):
        TrainConfig(batch_size=value)
