"""Models between models: exact ends, the mean of logarithms of the scale, refusals, and the choice of alpha."""

import copy
import dataclasses

import pytest
import torch

import miniclip
from miniclip.data import Shapes
from miniclip.evaluation import ClassFolders, retrieval, zero_shot
from miniclip.evaluation.bootstrap import Scores, means
from miniclip.evaluation.comparison import Metric
from miniclip.evaluation.retrieval import LazyImages
from miniclip.finetuning.sweep import (
    Point,
    choose,
    retrieval_measure,
    retrieval_scores,
    sweep,
    zero_shot_measure,
    zero_shot_scores,
)
from miniclip.inference.kept_pixels import KeptPixels
from miniclip.plots.interpolation import plot_interpolation
from tests.toys import CONFIG, make_model


@pytest.fixture
def pair(toy_tokenizer):
    """A model, and one that was changed a little."""
    a, b = make_model(toy_tokenizer), make_model(toy_tokenizer)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return a, b


def test_ends_are_the_models_bit_for_bit(pair):
    for alpha, end in enumerate(pair):
        state = miniclip.interpolate(*pair, alpha).state_dict()
        assert all(torch.equal(state[name], value) for name, value in end.state_dict().items())


def test_weights_are_those_of_float64_rounded_once(pair):
    a, b = (model.state_dict() for model in pair)
    for name, value in miniclip.interpolate(*pair, 0.3).state_dict().items():
        assert torch.equal(value, (0.7 * a[name].double() + 0.3 * b[name].double()).float()), name


def test_logit_scale_is_the_geometric_mean(pair):
    a, b = pair
    with torch.no_grad():
        a.log_scale.fill_(torch.tensor(10.0).log())
        b.log_scale.fill_(torch.tensor(40.0).log())
    assert float(miniclip.interpolate(a, b, 0.5).log_scale.detach().exp()) == pytest.approx(20)


def test_soup_is_the_mean_and_is_saved_and_loaded_again(pair, tmp_path):
    a, b = pair
    model = miniclip.soup([a, b, b])
    expected = (a.text.positions.double() + 2 * b.text.positions.double()) / 3
    torch.testing.assert_close(model.text.positions.double(), expected, atol=1e-7, rtol=0)
    assert not model.training
    miniclip.save(model, tmp_path / "soup")
    again = miniclip.load(tmp_path / "soup")
    assert torch.equal(again.encode_text("a red circle"), model.encode_text("a red circle"))
    assert torch.equal(
        miniclip.soup([a, b], [0.25, 0.75]).text.positions, miniclip.interpolate(a, b, 0.75).text.positions
    )


def test_bfloat16_models_give_float32(pair):
    a, b = pair
    assert {p.dtype for p in miniclip.interpolate(a.bfloat16(), b.bfloat16(), 0.5).parameters()} == {torch.float32}


def test_contrastive_model_gets_the_first_bias_and_scale_of_a_sigmoid_run(pair):
    a, b = pair
    a.log_scale.data.fill_(4.0)
    b.add_logit_bias(bias=-8.0, scale=16.0)
    b.logit_bias.data.fill_(-4.0)  # as after training
    first = copy.deepcopy(a)
    first.add_logit_bias(bias=-8.0, scale=16.0)
    between, back = miniclip.interpolate(a, b, 0.25), miniclip.interpolate(b, a, 0.75)
    for name, value in miniclip.interpolate(first, b, 0.25).state_dict().items():
        assert torch.equal(between.state_dict()[name], value)
        assert torch.equal(back.state_dict()[name], value)
    assert float(between.logit_bias) == -7.0
    assert between.config.logit_bias == -8.0
    assert (a.logit_bias, a.config.logit_bias) == (None, None)


LARGER = dataclasses.replace(CONFIG.image, image_size=24)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda b, t: make_model(t, image=dataclasses.replace(CONFIG.image, image_size=24)),
            r"image\.image_size \(16 and",
        ),
        (lambda b, t: make_model(t, mean=(0.5, 0.5, 0.5)), "mean"),
        (lambda b, t: setattr(b, "tokenizer", None) or b, "tokenizers differ"),
        (lambda b, t: (b.log_scale.data.fill_(torch.nan) and b) or b, "log_scale is not finite"),
    ],
    ids=["size", "mean", "tokenizer", "nan"],
)
def test_refuses_models_of_another_kind(change, words, pair, toy_tokenizer):
    a, b = pair
    with pytest.raises(ValueError, match=words):
        miniclip.interpolate(a, change(b, toy_tokenizer), 0.5)


@pytest.mark.parametrize(("alpha", "error"), [(1.5, ValueError), (float("nan"), ValueError), ("half", TypeError)])
def test_refuses_alpha_out_of_range(alpha, error, pair):
    with pytest.raises(error, match="alpha"):
        miniclip.interpolate(*pair, alpha)


def test_refuses_weights_that_do_not_fit(pair):
    for weights in ([1.0], [0.5, 0.6], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="expected 2 numbers"):
            miniclip.soup(pair, weights)
    with pytest.raises(ValueError, match="at least two"):
        miniclip.soup([pair[0]])


def test_warns_of_models_that_share_no_start(pair):
    other = make_model(pair[0].tokenizer)
    torch.manual_seed(9)
    other.initialise()
    with pytest.warns(UserWarning, match="unrelated weights"):
        miniclip.interpolate(pair[0], other, 0.5)


def test_scores_are_those_of_the_evaluation(pair, tmp_path):
    data = Shapes("val", 12)
    recalls = retrieval(pair[0], data)
    mean = (recalls["image_to_text"]["R@1"] + recalls["text_to_image"]["R@1"]) / 2
    assert 100 * float(means(retrieval_scores(pair[0], data))) == pytest.approx(mean)
    for i in range(4):
        folder = tmp_path / ("one", "two")[i % 2]
        folder.mkdir(exist_ok=True)
        data[i][0].save(folder / f"{i}.png")
    labelled = ClassFolders(tmp_path)
    assert 100 * float(means(zero_shot_scores(pair[0], labelled))) == zero_shot(pair[0], labelled)["top1"]


def test_sweep_measures_each_alpha_against_the_start(pair, tmp_path):
    """The score is a weight, which is linear in alpha."""

    def measure(model):
        value = float(model.image.positions.detach().double().mean())
        return Scores(torch.full((5, 1), value, dtype=torch.float64), torch.ones(5, dtype=torch.float64))

    points = sweep(*pair, measure, measure, alphas=(0.5, 1.0))
    assert [point.alpha for point in points] == [0, 0.5, 1]
    values = [point.new.value for point in points]
    assert values[1] == pytest.approx((values[0] + values[2]) / 2, abs=1e-6)
    assert points[2].old.difference.value == pytest.approx(values[2] - values[0])
    plot_interpolation(points, points[1], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


class Counted:
    """Captioned images of two sizes; each access is counted."""

    def __init__(self, data):
        self.data, self.captions, self.reads = data, data.captions, []

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        """Return an image and its captions."""
        self.reads.append(index)
        image, captions = self.data[index]
        return (image.resize((50, 40)) if index % 2 else image), captions


@pytest.mark.parametrize(("max_bytes", "reads"), [(1 << 30, 12), (16 * 16 * 3 * 5, 12 + 2 * 7)])
def test_images_are_decoded_once_within_the_memory_limit(max_bytes, reads, pair):
    data = Counted(Shapes("val", 12))
    images = KeptPixels(LazyImages(data), max_bytes)
    models = [*pair, miniclip.interpolate(*pair, 0.5)]
    kept = [model.encode_image(images.of(model)) for model in models]
    assert len(data.reads) == reads
    assert set(data.reads) == set(range(12))
    for model, embeddings in zip(models, kept, strict=True):
        assert torch.equal(embeddings, model.encode_image(LazyImages(data)))


def test_another_image_size_drops_the_kept_pixels(pair, toy_tokenizer):
    data = Counted(Shapes("val", 4))
    images, larger = KeptPixels(LazyImages(data)), make_model(toy_tokenizer, image=LARGER)
    pair[0].encode_image(images.of(pair[0]))
    assert torch.equal(larger.encode_image(images.of(larger)), larger.encode_image(LazyImages(data)))


def test_measures_of_a_sweep_read_their_data_once(pair, tmp_path):
    data = Counted(Shapes("val", 12))
    for i in range(4):
        folder = tmp_path / ("one", "two")[i % 2]
        folder.mkdir(exist_ok=True)
        data.data[i][0].save(folder / f"{i}.png")
    labelled = ClassFolders(tmp_path)
    points = sweep(*pair, retrieval_measure(data), zero_shot_measure(labelled), alphas=(0.5, 1.0))
    assert sorted(data.reads) == list(range(12))
    for point in points:
        model = miniclip.interpolate(*pair, point.alpha)
        assert point.new.value == 100 * float(means(retrieval_scores(model, data)))
        assert point.old.value == 100 * float(means(zero_shot_scores(model, labelled)))


def test_sweep_refuses_models_of_another_kind_before_it_measures(pair, toy_tokenizer):
    with pytest.raises(ValueError, match="differ in image"):
        sweep(pair[0], make_model(toy_tokenizer, image=LARGER), pytest.fail, pytest.fail)


def test_choice_is_the_best_on_new_data_within_the_allowed_loss():
    points = [
        Point(alpha, Metric("score", new), Metric("score", old))
        for alpha, new, old in [(0, 10, 50), (0.5, 30, 49.5), (0.7, 30, 49), (0.8, 40, 48.9), (1, 60, 20)]
    ]
    assert choose(points, 1.0).alpha == 0.5
    assert choose(points, 2.0).alpha == 0.8
    assert choose(points, 0.0).alpha == 0
    assert choose(points, 99).alpha == 1
    with pytest.raises(ValueError, match="allowed_loss is -1"):
        choose(points, -1)
