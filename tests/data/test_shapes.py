"""Shapes: reproducible, with true captions, and held-out combinations only in val and test."""

import pickle
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import ImageCaptionDataset, Shapes
from miniclip.data.shapes import COLORS, HELD_OUT, SHAPES, PlacedShape, Scene

SPLITS = ("train", "val", "test")

# An independent parser of captions, compared with the scenes.
_NOUN = re.compile(rf"(?:(small|little|large|big) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")
_AFTER = re.compile(r"\b(right of|below|under)\b")
_BEFORE = re.compile(r"\b(left of|above|over)\b(?! the other)")
_SIZE = {"little": "small", "big": "large"}


def nouns(caption: str) -> list[tuple[str | None, str, str]]:
    return [(_SIZE.get(size, size) if size else None, color, shape) for size, color, shape in _NOUN.findall(caption)]


def fits(noun: tuple[str | None, str, str], placed: PlacedShape) -> bool:
    size, color, shape = noun
    return (color, shape) == (placed.color, placed.shape) and size in (None, placed.size)


def axes(scene: Scene) -> dict[str, bool]:
    """Return for each axis whether it is true, from the coordinates."""
    dx, dy = scene.second.x - scene.first.x, scene.second.y - scene.first.y
    return {"beside": abs(dx) > 0.4 and abs(dy) < 0.1, "above": abs(dy) > 0.4 and abs(dx) < 0.1}


def position_is_true(words: str, placed: PlacedShape) -> bool:
    checks = {"left": placed.x < 0.35, "right": placed.x > 0.65, "top": placed.y < 0.35, "bottom": placed.y > 0.65}
    return all(true for word, true in checks.items() if re.search(rf"\b{word}\b", words))


def is_true(caption: str, scene: Scene) -> bool:
    """Return whether a caption is true of a scene, from its words and the coordinates."""
    first, second = nouns(caption)
    direction = axes(scene)
    if _BEFORE.search(caption) or _AFTER.search(caption):
        axis = "beside" if re.search("(left|right) of", caption) else "above"
        if _AFTER.search(caption):
            first, second = second, first
        return direction[axis] and fits(first, scene.first) and fits(second, scene.second)
    if "side by side" in caption or "one above the other" in caption:
        axis = "beside" if "side by side" in caption else "above"
        where = caption.rsplit("side by side" if axis == "beside" else "the other", 1)[1]
        across = [placed.y if axis == "beside" else placed.x for placed in scene[:2]]
        low, high = {"top": (0, 0.35), "left": (0, 0.35), "middle": (0.4, 0.6)}.get(where.split()[-1], (0.65, 1))
        both = (fits(first, scene.first) and fits(second, scene.second)) or (
            fits(first, scene.second) and fits(second, scene.first)
        )
        return direction[axis] and all(low < value < high for value in across) and both
    # otherwise each shape has a position: "a ... at the top left and a ...", or "on the left a ..., on the right a ..."
    starts = [match.start() for match in re.finditer(r"\b(on|at) the", caption)]
    positions = [" ".join(caption[start:].replace(",", " ,").split()[:4]) for start in starts]
    positions = [re.match(r"(on|at) the (top|bottom|left|right)( left| right)?", where)[0] for where in positions]
    axis = "beside" if positions[0].split()[-1] == "left" and positions[1].split()[-1] == "right" else "above"
    return (
        direction[axis]
        and all(position_is_true(where, placed) for where, placed in zip(positions, scene[:2], strict=True))
        and fits(first, scene.first)
        and fits(second, scene.second)
    )


def held_out(scene: Scene) -> list[bool]:
    return [(placed.color, placed.shape) in HELD_OUT for placed in scene[:2]]


class TestTables:
    def test_held_out_is_a_diagonal(self):
        assert len(COLORS) == len(SHAPES) == len(HELD_OUT) == 8
        assert {color for color, _ in HELD_OUT} == set(COLORS)
        assert {shape for _, shape in HELD_OUT} == set(SHAPES)

    def test_colors_differ_from_each_other_and_from_the_background(self):
        every = [*COLORS.values(), (238, 238, 238)]
        for index, color in enumerate(every):
            for other in every[:index]:
                assert sum((a - b) ** 2 for a, b in zip(color, other, strict=True)) > 85**2


class TestDeterminism:
    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(split=st.sampled_from(SPLITS), size=st.integers(1, 30), more=st.integers(0, 30), seed=st.integers(-5, 2**40))
    def test_an_image_depends_only_on_seed_split_and_index(self, split, size, more, seed):
        few, many = Shapes(split, size, seed=seed), Shapes(split, size + more, seed=seed)
        assert len(few) == size
        assert few.captions == many.captions[:size]
        index = size // 2
        (image, captions), (again, captions_again) = few[index], many[index]
        assert image.tobytes() == again.tobytes()
        assert captions == captions_again == few.captions[index]

    def test_pickling(self):
        data = Shapes("val", 4)
        copy = pickle.loads(pickle.dumps(data))
        assert copy[3][0].tobytes() == data[3][0].tobytes()

    def test_seeds_and_splits_differ(self):
        every = [Shapes(split, 20, seed=seed).captions for split in SPLITS for seed in (0, 1)]
        assert len({str(captions) for captions in every}) == len(every)

    def test_captions_are_frozen(self):
        # a change here changes every score reported on this dataset
        assert Shapes("val").captions[0] == [
            "a large purple ring to the right of a big green ring",
            "the green ring is left of the purple ring",
            "a green ring at the top left and a purple ring at the top right",
            "a big green ring and a large purple ring, side by side at the top",
            "on the left a big green ring, on the right a large purple ring",
        ]

    def test_image_size_changes_only_the_pixels(self):
        small, large = Shapes("val", 12), Shapes("val", 12, image_size=224)
        assert small.captions == large.captions
        for index in range(12):
            image, reduced = small[index][0], large[index][0].resize((64, 64), Image.Resampling.BOX)
            difference = [abs(a - b) for a, b in zip(image.tobytes(), reduced.tobytes(), strict=True)]
            assert sum(difference) / len(difference) < 2


class TestContents:
    @pytest.mark.parametrize("split", SPLITS)
    def test_five_different_captions_and_an_image(self, split):
        data = Shapes(split, 60)
        dataset: ImageCaptionDataset = data
        for image, captions in dataset:
            assert image.mode == "RGB"
            assert image.size == (64, 64)
            assert len(captions) == len(set(captions)) == 5

    def test_the_vocabulary_is_small(self):
        words = {
            word for texts in Shapes(size=3000).captions for text in texts for word in text.replace(",", "").split()
        }
        assert 40 < len(words) < 80

    def test_articles(self):
        text = " ".join(caption for texts in Shapes(size=1000).captions for caption in texts)
        assert " an orange" in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_held_out_combinations(self, seed):
        train = Shapes("train", 7000, seed=seed)
        assert not any(any(held_out(train.scene(index))) for index in range(len(train)))
        for split in ("val", "test"):
            data = Shapes(split, 1500, seed=seed)
            assert all(any(held_out(data.scene(index))) for index in range(len(data)))

    def test_train_has_every_color_shape_size_and_other_combination(self):
        train = Shapes()
        shapes = [placed for index in range(len(train)) for placed in train.scene(index)[:2]]
        combinations = Counter((placed.color, placed.shape) for placed in shapes)
        assert set(combinations) == {(color, shape) for color in COLORS for shape in SHAPES} - HELD_OUT
        assert min(combinations.values()) > 30
        assert set(Counter(placed.size for placed in shapes)) == {"small", "large"}

    def test_val_and_test_share_no_combination_of_shapes(self):
        def kinds(split):
            data = Shapes(split, 952)
            scenes = [data.scene(index) for index in range(952)]
            return {(*(placed[:2] for placed in scene[:2]), scene.axis) for scene in scenes}

        assert len(kinds("val")) == len(kinds("test")) == 952
        assert not kinds("val") & kinds("test")

    @pytest.mark.parametrize("split", SPLITS)
    def test_shapes_are_inside_the_image_and_apart(self, split):
        data = Shapes(split, 3000)
        for index in range(len(data)):
            scene = data.scene(index)
            assert axes(scene)[scene.axis]
            reach = [1.05 * placed.radius for placed in scene[:2]]  # the largest extent of an outline along an axis
            for placed, radius in zip(scene[:2], reach, strict=True):
                assert radius < placed.x < 1 - radius
                assert radius < placed.y < 1 - radius
                assert placed.radius < 0.11 if placed.size == "small" else placed.radius > 0.17
            gap = (scene.second.x - scene.first.x) if scene.axis == "beside" else (scene.second.y - scene.first.y)
            assert gap - sum(reach) > 0.02


class TestCaptionsAreTrue:
    @pytest.mark.parametrize("split", SPLITS)
    def test_every_caption_names_two_shapes_and_is_true(self, split):
        data = Shapes(split, 1000)
        for index in range(len(data)):
            for caption in data.captions[index]:
                assert len(nouns(caption)) == 2
                assert is_true(caption, data.scene(index)), (caption, data.scene(index))

    def test_false_captions_are_detected(self):
        scene = Shapes("val").scene(0)  # a large green ring at the top left, a large purple ring at the top right
        for lie in (
            "a large purple ring to the left of a big green ring",
            "the green ring is above the purple ring",
            "a green ring on the left and a purple ring at the bottom right",
            "a green ring at the top left and a purple ring at the bottom left",
            "a big green ring and a large purple ring, side by side at the bottom",
            "a big green ring and a large purple ring, one above the other on the left",
            "on the left a small green ring, on the right a large purple ring",
            "on the left a large blue ring, on the right a large purple ring",
            "at the top a big green ring, at the bottom a large purple ring",
        ):
            assert not is_true(lie, scene), lie

    def test_captions_of_val_identify_its_images(self):
        data = Shapes("val")
        scenes = [data.scene(index) for index in range(len(data))]
        by_combinations = defaultdict(list)
        for index, scene in enumerate(scenes):
            by_combinations[frozenset(placed[:2] for placed in scene[:2])].append(index)
        ambiguous = sum(
            any(other != index and is_true(caption, scenes[other]) for other in candidates)
            for candidates in by_combinations.values()
            for index in candidates
            for caption in data.captions[index]
        )
        assert ambiguous / (5 * len(data)) < 0.01

    @pytest.mark.parametrize("image_size", [32, 64, 224])
    def test_named_colors_are_at_the_named_positions(self, image_size):
        data = Shapes("val", 80, image_size=image_size)
        for index, (image, captions) in enumerate(data):
            # "on the left a large red star, on the right ...": compares the caption with the pixels
            (_, first, _), (_, second, _) = nouns(captions[4])
            half = image_size // 2
            if captions[4].startswith("on the left"):
                boxes = ((0, 0, half, image_size), (image_size - half, 0, image_size, image_size))
            else:
                boxes = ((0, 0, image_size, half), (0, image_size - half, image_size, image_size))
            for color, box in zip((first, second), boxes, strict=True):
                counts = colors_in(image.crop(box))
                assert counts.most_common(1)[0][0] == color, (index, captions[4], counts)
                if image_size >= 64:  # in smaller images most pixels are edges
                    assert counts[color] > 0.5 * counts.total()

    def test_large_covers_more_than_small(self):
        areas = defaultdict(list)
        data = Shapes("train", 400)
        for image, captions in data:
            left = captions[4].startswith("on the left")
            box = (0, 0, 32, 64) if left else (0, 0, 64, 32)
            size, _, shape = nouns(captions[4])[0]
            areas[shape, size].append(colors_in(image.crop(box)).total())
        for shape in SHAPES:
            assert min(areas[shape, "large"]) > 1.8 * max(areas[shape, "small"])


def colors_in(image: Image.Image) -> Counter[str]:
    """Count the pixels nearest to each color, without the background."""
    palette = {**COLORS, "background": (238, 238, 238)}
    counts: Counter[str] = Counter()
    for count, rgb in image.getcolors(image.width * image.height):
        nearest = min(palette, key=lambda name: sum((a - b) ** 2 for a, b in zip(rgb, palette[name], strict=True)))
        counts[nearest] += count
    del counts["background"]
    return counts


class TestArguments:
    def test_defaults(self):
        assert [len(Shapes(split)) for split in SPLITS] == [6000, 500, 500]
        assert repr(Shapes("val")) == "Shapes('val', 500, image_size=64, seed=0)"

    @pytest.mark.parametrize("size", [1, 2, 17])
    @pytest.mark.parametrize("image_size", [16, 33, 97])
    def test_any_size(self, size, image_size):
        data = Shapes("test", size, image_size=image_size)
        assert len(data) == len(data.captions) == size
        assert data[size - 1][0].size == (image_size, image_size)

    def test_indexing(self):
        data = Shapes("val", 3)
        assert data[-1][1] == data[2][1] == data.captions[2]
        assert data.scene(-1) == data.scene(2)
        for index in (3, -4):
            with pytest.raises(IndexError, match="3 images"):
                data[index]
            with pytest.raises(IndexError, match="3 images"):
                data.scene(index)
        data[0][1].clear()
        assert len(data.captions[0]) == 5

    def test_scenes_repeat_after_all_kinds(self):
        data = Shapes("val", 2000)
        assert data.scene(0)[:2] != data.scene(952)[:2]
        assert [placed[:2] for placed in data.scene(0)[:2]] == [placed[:2] for placed in data.scene(952)[:2]]

    def test_invalid_arguments_are_refused(self):
        with pytest.raises(ValueError, match="no split 'all': Shapes has train, val, test"):
            Shapes("all")
        with pytest.raises(ValueError, match="size is 0"):
            Shapes("val", 0)
        with pytest.raises(ValueError, match="image_size is 15"):
            Shapes("val", image_size=15)
