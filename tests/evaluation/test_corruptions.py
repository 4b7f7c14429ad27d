"""Corruptions: every severity changes the image more, and the same index gives the same pixels."""

import pytest
import torch

from miniclip.data import Shapes
from miniclip.data.preprocess import Preprocess
from miniclip.evaluation.corruptions import CORRUPTIONS, CorruptedImages
from miniclip.plots.robustness import FAMILIES
from tests.toys import CONFIG


@pytest.fixture(scope="module")
def setting():
    import dataclasses

    config = dataclasses.replace(CONFIG, image=dataclasses.replace(CONFIG.image, image_size=64))
    data = Shapes("test", 4, image_size=64)
    return [data[index][0] for index in range(4)], Preprocess(config)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_change_the_image_more_and_more(setting, name):
    images, preprocess = setting
    clean = torch.stack([preprocess.pixels(image) for image in images]).double()
    changes = []
    for severity in range(1, 6):
        corrupted = CorruptedImages(images, preprocess, name, severity)
        pixels = torch.stack(corrupted[:])
        assert (pixels.shape, pixels.dtype) == ((4, 3, 64, 64), torch.uint8)
        assert torch.equal(pixels[1], corrupted[1])
        changes.append(float((pixels.double() - clean).square().mean()))
    assert changes == sorted(changes)
    assert changes[0] > 1
    assert changes[4] > 1.5 * changes[0]


def test_bad_arguments_are_named(setting):
    with pytest.raises(ValueError, match="corruption 'fog'"):
        CorruptedImages(*setting, "fog", 1)
    with pytest.raises(ValueError, match="severity 6: expected 1 to 5"):
        CorruptedImages(*setting, "jpeg", 6)


def test_the_figure_has_a_line_for_each_corruption():
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(CORRUPTIONS)
