"""The choice of captions: those of many images are left out, and the others are drawn as without them."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import Captions
from miniclip.data.loader import ImageCaptionLoader
from miniclip.data.options import LoaderOptions
from miniclip.data.sources.caption_rows import CaptionRows
from tests.toys import make_model

GROUPS = [["a fox", "clip art"], ["clip art", "a hen", "clip art"], ["clip art"], ["an owl"], ["a fox", "clip art"]]


def drawn(rows, captions, passes=40):
    """Captions of each image that are drawn in some passes."""
    flat, images = [text for texts in captions for text in texts], torch.arange(len(captions))
    draws = [rows.draw(images, torch.full_like(images, number)).view(len(captions), -1) for number in range(passes)]
    return [{flat[row] for row in own.flatten().tolist()} for own in torch.stack(draws, dim=1)]


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_captions_of_many_images_are_drawn_only_for_images_without_others(captions, limit, per_image):
    images = Counter(text for texts in captions for text in set(texts))
    rare = [{text for text in texts if images[text] <= limit} or set(texts) for texts in captions]
    rows = CaptionRows(captions, 3, per_image, limit)
    assert drawn(rows, captions) == rare
    kept = sum(text in own for texts, own in zip(captions, rare, strict=True) for text in texts)
    assert rows.left_out == sum(map(len, captions)) - kept


def test_other_images_have_the_captions_that_they_have_without_the_limit():
    images = torch.arange(len(GROUPS))
    for number in range(20):
        passes = torch.full_like(images, number)
        plain, limited = (CaptionRows(GROUPS, 7, 1, limit).draw(images, passes) for limit in (None, 2))
        assert plain[2:4].tolist() == limited[2:4].tolist()  # "clip art" is the only caption of image 2
    assert CaptionRows(GROUPS, 7).left_out == CaptionRows(GROUPS, 7, 1, 5).left_out == 0
    assert CaptionRows(GROUPS, 7, 1, 2).left_out == 4


def test_batches_have_no_caption_of_many_images(tokenizer, tmp_path):
    data = Captions([tmp_path / f"{number}.png" for number in range(len(GROUPS))], GROUPS)
    for path in data.paths:
        Image.new("RGB", (16, 16)).save(path)
    options = LoaderOptions(5, num_workers=0, max_images_per_caption=2)
    loader = ImageCaptionLoader(data, tokenizer, make_model(tokenizer).preprocess, options)
    texts = {tokenizer.decode(row.tolist()) for epoch in range(12) for row in next(loader.epoch(epoch)).tokens}
    loader.close()
    assert texts == {"a fox", "a hen", "an owl", "clip art"}
    assert loader.captions.rows.left_out == 4
