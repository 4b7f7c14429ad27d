"""Changed captions: words left out, left and right exchanged with the mirrored image, and nothing else."""

import pytest
import torch

from miniclip.data import Shapes
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.text_augmentation import AugmentedCaptions, drop_words, swap_left_right
from miniclip.train import TrainConfig
from tests.toys import make_model


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red circle left of a blue square", "a red circle right of a blue square"),
        ("on the right, a dog; on the Left a CAT", "on the left, a dog; on the Right a CAT"),
        ("the LEFTMOST of his right-hand side", "the RIGHTMOST of his left-hand side"),
        ("bright leftovers on a plate", "bright leftovers on a plate"),
        ("he left the room", None),
        ("a man right behind the left wing", None),
        ("the dog to the left and the far right of a house", "the dog to the right and the far left of a house"),
        ("a dog at the left ", "a dog at the right "),
        ("the right way to do it", None),
        ("a far right politician", None),
        ("the right amount of salt", None),
        ("", ""),
    ],
)
def test_left_and_right(caption, expected):
    assert swap_left_right(caption) == expected
    if expected is not None:
        assert swap_left_right(expected) == caption


def test_dropped_words_are_whole_words_and_never_all():
    caption = "one two three four"
    drawn = [drop_words(caption, 0.5, 0, key) for key in range(400)]
    assert all(drawn)
    kept = sum(len(text.split()) for text in drawn) / 1600
    assert kept == pytest.approx(0.5, abs=0.06)
    words = caption.split()
    assert all([word for word in words if word in text.split()] == text.split() for text in drawn)
    assert set(words) <= {drop_words(caption, 0.99, key) for key in range(60)}
    assert drop_words(caption, 0.0, 0) == caption
    assert drop_words("", 0.9, 0) == ""


def loaded(tokenizer, data, **options):
    model = make_model(tokenizer)
    loader = ImageCaptionLoader(data, tokenizer, model.preprocess, LoaderOptions(8, num_workers=0, **options))
    batches = list(loader.epoch(0))
    loader.close()
    return batches


def test_mirrored_images_have_swapped_captions(tokenizer, train_data):
    plain, swapped = loaded(tokenizer, train_data), loaded(tokenizer, train_data, swap_left_right=True)
    mirrored = 0
    for a, b in zip(plain, swapped, strict=True):
        assert torch.equal(a.indices, b.indices)
        for row in range(8):
            rows = {tuple(tokenizer([text])[0].tolist()): text for text in train_data.captions[a.indices[row]]}
            text = rows[strip(a.tokens[row], tokenizer)]
            flipped = not torch.equal(a.pixels[row], b.pixels[row])
            mirrored += flipped
            assert torch.equal(b.pixels[row], a.pixels[row].flip(2) if flipped else a.pixels[row])
            expected = swap_left_right(text) if flipped else text
            assert strip(b.tokens[row], tokenizer) == tuple(tokenizer([expected])[0].tolist())
    assert 8 < mirrored < 32


def test_images_on_a_device_are_mirrored_there(tokenizer, train_data):
    """Images that are kept on a GPU; tensors on "meta" refuse tensors on the CPU too."""
    captions = AugmentedCaptions(train_data, tokenizer, LoaderOptions(8, context_length=40, swap_left_right=True))
    rows = torch.arange(8)
    assert captions.pair(torch.empty(8, 3, 16, 16, device="meta"), rows, rows)[0].device.type == "meta"


def strip(row, tokenizer):
    """The ids up to the end token."""
    return tuple(row[: int((row == tokenizer.end_id).int().argmax()) + 1].tolist())


def test_word_dropout_keeps_the_special_tokens_and_the_padding(tokenizer):
    data, options = Shapes("train", 16, image_size=16), {"word_dropout": 0.4, "context_length": 40}
    for pad in (False, True):
        first, second = (loaded(tokenizer, data, pad=pad, **options) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a.tokens, b.tokens)
            assert a.tokens.shape[1] == 40 or not pad
            assert bool((a.tokens[:, 0] == a.tokens[0, 0]).all())
            assert bool(((a.tokens == tokenizer.end_id).sum(dim=1) == 1).all())
            assert bool((a.tokens[:, 1] != tokenizer.end_id).all())


def test_swapping_needs_flips():
    with pytest.raises(ValueError, match="swap_left_right=True: no image is mirrored; add flip=True"):
        TrainConfig(swap_left_right=True)
    with pytest.raises(ValueError, match=r"changes captions, which positives='all' compares"):
        TrainConfig(word_dropout=0.1, positives="all")


def test_all_captions_of_a_mirrored_image_are_swapped(tokenizer):
    data = Shapes("train", 40, image_size=16)
    plain, swapped = (
        loaded(tokenizer, data, captions_per_image=2, swap_left_right=swap, word_dropout=0.0) for swap in (False, True)
    )
    for a, b in zip(plain, swapped, strict=True):
        for row in range(8):
            flipped = not torch.equal(a.pixels[row], b.pixels[row])
            for caption in (2 * row, 2 * row + 1):
                before, after = strip(a.tokens[caption], tokenizer), strip(b.tokens[caption], tokenizer)
                text = next(t for t in data.captions[a.indices[row]] if tuple(tokenizer([t])[0].tolist()) == before)
                assert after == tuple(tokenizer([swap_left_right(text) if flipped else text])[0].tolist())
