"""The drawn data set: reproducible, its captions true of its pictures, its held-out combinations held out."""

import pickle
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import ImageCaptionDataset, Shapes
from miniclip.data.shapes import COLOURS, HELD_OUT, SHAPES, Scene, Thing

SPLITS = ("train", "val", "test")

# An own reading of the captions, to hold against what the scenes say.
_NOUN = re.compile(rf"(?:(small|little|large|big) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
_AFTER = re.compile(r"\b(right of|below|under)\b")
_BEFORE = re.compile(r"\b(left of|above|over)\b(?! the other)")
_SIZE = {"little": "small", "big": "large"}


def nouns(caption: str) -> list[tuple[str | None, str, str]]:
    return [(_SIZE.get(size, size) if size else None, colour, shape) for size, colour, shape in _NOUN.findall(caption)]


def fits(noun: tuple[str | None, str, str], thing: Thing) -> bool:
    size, colour, shape = noun
    return (colour, shape) == (thing.colour, thing.shape) and size in (None, thing.size)


def rows(scene: Scene) -> dict[str, bool]:
    """Which words of place are true of the first and of the second thing, from their coordinates alone."""
    dx, dy = scene.second.x - scene.first.x, scene.second.y - scene.first.y
    return {"beside": abs(dx) > 0.4 and abs(dy) < 0.1, "above": abs(dy) > 0.4 and abs(dx) < 0.1}


def place_is_true(words: str, thing: Thing) -> bool:
    checks = {"left": thing.x < 0.35, "right": thing.x > 0.65, "top": thing.y < 0.35, "bottom": thing.y > 0.65}
    return all(true for word, true in checks.items() if re.search(rf"\b{word}\b", words))


def is_true(caption: str, scene: Scene) -> bool:
    """Whether everything that a caption says holds for a scene; decided from its words and the coordinates."""
    first, second = nouns(caption)
    direction = rows(scene)
    if _BEFORE.search(caption) or _AFTER.search(caption):
        axis = "beside" if re.search("(left|right) of", caption) else "above"
        if _AFTER.search(caption):
            first, second = second, first
        return direction[axis] and fits(first, scene.first) and fits(second, scene.second)
    if "side by side" in caption or "one above the other" in caption:
        axis = "beside" if "side by side" in caption else "above"
        where = caption.rsplit("side by side" if axis == "beside" else "the other", 1)[1]
        across = [thing.y if axis == "beside" else thing.x for thing in scene[:2]]
        low, high = {"top": (0, 0.35), "left": (0, 0.35), "middle": (0.4, 0.6)}.get(where.split()[-1], (0.65, 1))
        both = (fits(first, scene.first) and fits(second, scene.second)) or (
            fits(first, scene.second) and fits(second, scene.first)
        )
        return direction[axis] and all(low < value < high for value in across) and both
    # otherwise each shape has a place: "a ... at the top left and a ...", or "on the left a ..., on the right a ..."
    starts = [match.start() for match in re.finditer(r"\b(on|at) the", caption)]
    wheres = [" ".join(caption[start:].replace(",", " ,").split()[:4]) for start in starts]
    wheres = [re.match(r"(on|at) the (top|bottom|left|right)( left| right)?", where)[0] for where in wheres]
    axis = "beside" if wheres[0].split()[-1] == "left" and wheres[1].split()[-1] == "right" else "above"
    return (
        direction[axis]
        and all(place_is_true(where, thing) for where, thing in zip(wheres, scene[:2], strict=True))
        and fits(first, scene.first)
        and fits(second, scene.second)
    )


def held_out(scene: Scene) -> list[bool]:
    return [(thing.colour, thing.shape) in HELD_OUT for thing in scene[:2]]


class TestTables:
    def test_held_out_is_a_diagonal(self):
        assert len(COLOURS) == len(SHAPES) == len(HELD_OUT) == 8
        assert {colour for colour, _ in HELD_OUT} == set(COLOURS)
        assert {shape for _, shape in HELD_OUT} == set(SHAPES)

    def test_colours_are_far_from_each_other_and_from_the_ground(self):
        every = [*COLOURS.values(), (238, 238, 238)]
        for index, one in enumerate(every):
            for other in every[:index]:
                assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) > 85**2


class TestDeterminism:
    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(split=st.sampled_from(SPLITS), size=st.integers(1, 30), more=st.integers(0, 30), seed=st.integers(-5, 2**40))
    def test_a_picture_depends_on_seed_split_and_index_alone(self, split, size, more, seed):
        few, many = Shapes(split, size, seed=seed), Shapes(split, size + more, seed=seed)
        assert len(few) == size
        assert few.captions == many.captions[:size]
        index = size // 2
        (picture, captions), (again, captions_again) = few[index], many[index]
        assert picture.tobytes() == again.tobytes()
        assert captions == captions_again == few.captions[index]

    def test_it_travels_to_worker_processes(self):
        data = Shapes("val", 4)
        copy = pickle.loads(pickle.dumps(data))
        assert copy[3][0].tobytes() == data[3][0].tobytes()

    def test_seeds_and_splits_differ(self):
        every = [Shapes(split, 20, seed=seed).captions for split in SPLITS for seed in (0, 1)]
        assert len({str(captions) for captions in every}) == len(every)

    def test_it_is_what_it_was(self):
        # frozen: a change here changes every score ever reported on this set
        assert Shapes("val").captions[0] == [
            "a large purple ring to the right of a big green ring",
            "the green ring is left of the purple ring",
            "a green ring at the top left and a purple ring at the top right",
            "a big green ring and a large purple ring, side by side at the top",
            "on the left a big green ring, on the right a large purple ring",
        ]

    def test_the_size_of_the_picture_changes_pixels_only(self):
        small, large = Shapes("val", 12), Shapes("val", 12, image_size=224)
        assert small.captions == large.captions
        for index in range(12):
            ours, theirs = small[index][0], large[index][0].resize((64, 64), Image.Resampling.BOX)
            difference = [abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)]
            assert sum(difference) / len(difference) < 2


class TestContents:
    @pytest.mark.parametrize("split", SPLITS)
    def test_five_different_captions_and_a_picture(self, split):
        data = Shapes(split, 60)
        pairs: ImageCaptionDataset = data
        for picture, captions in pairs:
            assert picture.mode == "RGB"
            assert picture.size == (64, 64)
            assert len(captions) == len(set(captions)) == 5

    def test_the_vocabulary_is_small(self):
        words = {word for own in Shapes(size=3000).captions for text in own for word in text.replace(",", "").split()}
        assert 40 < len(words) < 80

    def test_articles(self):
        text = " ".join(caption for own in Shapes(size=1000).captions for caption in own)
        assert " an orange" in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_held_out_combinations(self, seed):
        train = Shapes("train", 7000, seed=seed)
        assert not any(any(held_out(train.scene(index))) for index in range(len(train)))
        for split in ("val", "test"):
            data = Shapes(split, 1500, seed=seed)
            assert all(any(held_out(data.scene(index))) for index in range(len(data)))

    def test_training_sees_every_colour_shape_size_and_other_combination(self):
        train = Shapes()
        things = [thing for index in range(len(train)) for thing in train.scene(index)[:2]]
        pairs = Counter((thing.colour, thing.shape) for thing in things)
        assert set(pairs) == {(colour, shape) for colour in COLOURS for shape in SHAPES} - HELD_OUT
        assert min(pairs.values()) > 30
        assert set(Counter(thing.size for thing in things)) == {"small", "large"}

    def test_validation_and_test_share_no_kind(self):
        def kinds(split):
            data = Shapes(split, 952)
            scenes = [data.scene(index) for index in range(952)]
            return {(*(thing[:2] for thing in scene[:2]), scene.axis) for scene in scenes}

        assert len(kinds("val")) == len(kinds("test")) == 952
        assert not kinds("val") & kinds("test")

    @pytest.mark.parametrize("split", SPLITS)
    def test_shapes_are_inside_apart_and_of_clear_size(self, split):
        data = Shapes(split, 3000)
        for index in range(len(data)):
            scene = data.scene(index)
            assert rows(scene)[scene.axis]
            reach = [1.05 * thing.radius for thing in scene[:2]]  # no outline reaches further along an axis
            for thing, radius in zip(scene[:2], reach, strict=True):
                assert radius < thing.x < 1 - radius
                assert radius < thing.y < 1 - radius
                assert thing.radius < 0.11 if thing.size == "small" else thing.radius > 0.17
            gap = (scene.second.x - scene.first.x) if scene.axis == "beside" else (scene.second.y - scene.first.y)
            assert gap - sum(reach) > 0.02


class TestCaptionsAreTrue:
    @pytest.mark.parametrize("split", SPLITS)
    def test_every_caption_names_two_things_and_holds(self, split):
        data = Shapes(split, 1000)
        for index in range(len(data)):
            for caption in data.captions[index]:
                assert len(nouns(caption)) == 2
                assert is_true(caption, data.scene(index)), (caption, data.scene(index))

    def test_the_check_can_fail(self):
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

    def test_captions_of_validation_tell_its_pictures_apart(self):
        data = Shapes("val")
        scenes = [data.scene(index) for index in range(len(data))]
        by_pairs = defaultdict(list)
        for index, scene in enumerate(scenes):
            by_pairs[frozenset(thing[:2] for thing in scene[:2])].append(index)
        ambiguous = sum(
            any(other != index and is_true(caption, scenes[other]) for other in candidates)
            for candidates in by_pairs.values()
            for index in candidates
            for caption in data.captions[index]
        )
        assert ambiguous / (5 * len(data)) < 0.01

    @pytest.mark.parametrize("image_size", [32, 64, 224])
    def test_the_named_colour_is_where_the_caption_says(self, image_size):
        data = Shapes("val", 80, image_size=image_size)
        for index, (picture, captions) in enumerate(data):
            # "on the left a large red star, on the right ...": only the caption and the pixels enter
            (_, first, _), (_, second, _) = nouns(captions[4])
            half = image_size // 2
            if captions[4].startswith("on the left"):
                boxes = ((0, 0, half, image_size), (image_size - half, 0, image_size, image_size))
            else:
                boxes = ((0, 0, image_size, half), (0, image_size - half, image_size, image_size))
            for colour, box in zip((first, second), boxes, strict=True):
                found = colours_in(picture.crop(box))
                assert found.most_common(1)[0][0] == colour, (index, captions[4], found)
                if image_size >= 64:  # below, most pixels are edges, which mix with the ground
                    assert found[colour] > 0.5 * found.total()

    def test_large_covers_more_than_small(self):
        areas = defaultdict(list)
        data = Shapes("train", 400)
        for picture, captions in data:
            left = captions[4].startswith("on the left")
            box = (0, 0, 32, 64) if left else (0, 0, 64, 32)
            size, _, shape = nouns(captions[4])[0]
            areas[shape, size].append(colours_in(picture.crop(box)).total())
        for shape in SHAPES:
            assert min(areas[shape, "large"]) > 1.8 * max(areas[shape, "small"])


def colours_in(picture: Image.Image) -> Counter[str]:
    """How many pixels are nearest to each colour, those of the ground left out."""
    palette = {**COLOURS, "ground": (238, 238, 238)}
    found: Counter[str] = Counter()
    for count, rgb in picture.getcolors(picture.width * picture.height):
        near = min(palette, key=lambda name: sum((a - b) ** 2 for a, b in zip(rgb, palette[name], strict=True)))
        found[near] += count
    del found["ground"]
    return found


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

    def test_more_than_there_are_kinds(self):
        data = Shapes("val", 2000)
        assert data.scene(0)[:2] != data.scene(952)[:2]
        assert [thing[:2] for thing in data.scene(0)[:2]] == [thing[:2] for thing in data.scene(952)[:2]]

    def test_arguments_that_cannot_be(self):
        with pytest.raises(ValueError, match="no split 'all': Shapes has train, val, test"):
            Shapes("all")
        with pytest.raises(ValueError, match="size is 0"):
            Shapes("val", 0)
        with pytest.raises(ValueError, match="image_size is 15"):
            Shapes("val", image_size=15)
