"""Preprocessing equals the peers': open_clip's transforms, and transformers' processors on Pillow."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from miniclip.config import OPENAI_MEAN, OPENAI_STD, CLIPConfig, ImageConfig, TextConfig
from miniclip.data.decoding import open_image
from miniclip.inference.model import CLIPModel

pytestmark = pytest.mark.peer

_shared = [parent / "shared" / "data" for parent in Path(__file__).parents[2:4]]
SHARED = next((folder for folder in _shared if folder.is_dir()), _shared[-1])
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared datasets are not at {SHARED}")

SIZES = [(31, 47), (47, 31), (224, 227), (227, 224), (500, 375), (375, 500), (224, 224), (64, 64), (33, 33), (61, 20)]
MODES = [  # OpenAI's code and open_clip resize before the conversion to RGB, images with a palette without smoothing
    *(("open_clips", mode) for mode in ("RGB", "L", "CMYK")),
    *(("transformers", mode) for mode in ("RGB", "L", "CMYK", "P", "1")),
]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CASES = [
    (224, {}),
    (224, {"interpolation": "bilinear", **HALF}),
    (30, {"interpolation": "bicubic", **IMAGENET}),
    (33, {"interpolation": "bilinear"}),
    (224, {"resize": "squash", **HALF}),
    (64, {"resize": "squash", "interpolation": "bilinear", **IMAGENET}),
]


def configuration(size, options):
    return CLIPConfig(ImageConfig(size, size, 4, 1, 1), TextConfig(4, 9, 4, 1, 1), 4, **options)


def make_image(size, mode="RGB"):
    """An image with edges and noise."""
    width, height = size
    image = Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy())
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 3, height // 4, width - 2, height - 5), fill=(250, 20, 90))
    draw.line((0, height, width, 0), fill=(0, 255, 40), width=3)
    return image.convert(mode)


def real_images():
    """Yield some images of both shared datasets, of many sizes."""
    for folder in ("clipart", "emoji"):
        yield from sorted((SHARED / folder / "images").iterdir())[:: 700 if folder == "clipart" else 2000]


@pytest.fixture
def open_clips():
    transform = pytest.importorskip("open_clip.transform", reason="open_clip_torch is not installed")

    def build(config):
        values = {"mean": config.mean, "std": config.std, "interpolation": config.interpolation}
        settings = transform.PreprocessCfg(size=config.image.image_size, resize_mode=config.resize, **values)
        return transform.image_transform_v2(settings, is_train=False)

    return build, "rounded"


@pytest.fixture
def transformers():
    library = pytest.importorskip("transformers", reason="transformers is not installed")

    def build(config):
        size, squash = config.image.image_size, config.resize == "squash"
        square = {"height": size, "width": size}
        values = {"resample": {"bilinear": 2, "bicubic": 3}[config.interpolation]}
        values |= {"image_mean": list(config.mean), "image_std": list(config.std)}
        if squash:
            processor = library.SiglipImageProcessorPil(size=square, **values)
        else:
            processor = library.CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square, **values)
        assert processor.backend == "pil"
        return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]

    return build, "floored"


@pytest.fixture(params=["open_clips", "transformers"])
def peer(request):
    """A function from a configuration to a peer's preprocessing, and the peer's crop rounding."""
    return request.getfixturevalue(request.param)


def levels(pixels, expected, config):
    """The largest difference, in grey levels."""
    assert pixels.shape == expected.shape == (3, config.image.image_size, config.image.image_size)
    assert pixels.dtype == expected.dtype == torch.float32
    std = torch.tensor(config.std).view(3, 1, 1)
    return float(((pixels - expected) * std * 255).abs().max())


def compare(config, peer, images, exact=0.9):
    """Compare pixels with a peer's: at most one grey level, and only float rounding for most images."""
    build, crop_rounding = peer
    config = dataclasses.replace(config, crop_rounding=crop_rounding)
    with torch.device("meta"):
        preprocess = CLIPModel(config).preprocess
    peer_preprocess = build(config)
    differences = [levels(preprocess(image), peer_preprocess(image), config) for image in images]
    assert max(differences) <= 1.01, differences
    assert sum(level < 1e-3 for level in differences) >= exact * len(differences), differences


@pytest.mark.parametrize(("size", "options"), CASES)
def test_images_of_odd_sizes(size, options, peer):
    compare(configuration(size, options), peer, [make_image(sides) for sides in SIZES])


@pytest.mark.parametrize(("name", "mode"), MODES)
@pytest.mark.parametrize(("size", "options"), [CASES[0], CASES[5]])
def test_images_of_other_modes(size, options, name, mode, request):
    images = [make_image(sides, mode) for sides in SIZES[:5]]
    exact = 0.0 if (name, mode) == ("open_clips", "CMYK") else 0.9
    compare(configuration(size, options), request.getfixturevalue(name), images, exact)


@needs_shared
@pytest.mark.parametrize(("size", "options"), CASES)
def test_real_images(size, options, peer):
    compare(configuration(size, options), peer, [open_image(path) for path in real_images()])


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        (2, {"crop_rounding": "other"}),
        (0, {"interpolation": "bilinear"}),
        (0, {"resize": "squash"}),
        (4, {"interpolation": "bilinear"}),
        (4, {"resize": "shortest"}),
        (0, {"mean": HALF["mean"]}),
        (0, {"std": HALF["std"]}),
    ],
)
def test_other_settings_are_detected(case, changes, peer):
    build, crop_rounding = peer
    size, options = CASES[case]
    config = dataclasses.replace(configuration(size, options), crop_rounding=crop_rounding)
    if "crop_rounding" in changes:
        changes = {"crop_rounding": "floored" if crop_rounding == "rounded" else "rounded"}
    with torch.device("meta"):
        preprocess = CLIPModel(dataclasses.replace(config, **changes)).preprocess
    peer_preprocess = build(config)
    assert max(levels(preprocess(image), peer_preprocess(image), config) for image in map(make_image, SIZES[:4])) > 5


def test_defaults_are_openais():
    config = configuration(224, {})
    assert (config.mean, config.std) == (OPENAI_MEAN, OPENAI_STD)
    constants = pytest.importorskip("open_clip.constants", reason="open_clip_torch is not installed")
    assert (constants.OPENAI_DATASET_MEAN, constants.OPENAI_DATASET_STD) == (OPENAI_MEAN, OPENAI_STD)
