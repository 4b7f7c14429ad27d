"""The plots of a run, for unusual captions, images and numbers, and their time limit."""

import math
import types
import warnings

import pytest
import torch
from PIL import Image

from miniclip.data import Captions
from miniclip.evaluation.retrieval import Embeddings
from miniclip.plots.callbacks import LearningCurve, PlotCallback
from miniclip.plots.confusions import find_confusions, plot_confusions
from miniclip.plots.learning_curve import plot_learning_curve
from miniclip.plots.similarity import COLOR_RANGE, pair_cosines, plot_similarities, separation, spaced_indices
from miniclip.runs.interrupt import StopAtOnce
from miniclip.train import History
from miniclip.train.callbacks import call


def make_embeddings(images, texts, image_indices):
    l2_normalize = torch.nn.functional.normalize
    return Embeddings(
        l2_normalize(torch.tensor(images)), l2_normalize(torch.tensor(texts)), torch.tensor(image_indices)
    )


@pytest.fixture
def three():
    """Three images at 0, 45 and 90 degrees; the captions of the first are at 90 and 80 degrees."""
    texts = [[0.0, 1.0], [math.cos(1.4), math.sin(1.4)], [1.0, 1.0], [1.0, 0.0]]
    return make_embeddings([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], texts, [0, 0, 1, 2])


def size_and_colors(path):
    with Image.open(path) as image:
        return image.size, len(image.convert("RGB").getcolors(1 << 24))


class TestConfusions:
    def test_largest_margin_comes_first(self, three):
        confusions, confused, searched = find_confusions(three, [["a", "b"], ["c"], ["d"]])
        assert [c.image for c in confusions] == [2, 0], "the caption of image 1 is the nearest to it"
        assert (confused, searched) == (2, 3)
        assert confusions[0].positive == (3, pytest.approx(0.0, abs=1e-6))
        assert confusions[0].negatives[0] == (0, pytest.approx(1.0))
        assert confusions[1].positive == (1, pytest.approx(math.cos(1.4)))
        assert [index for index, _ in confusions[1].negatives] == [3, 2]

    def test_only_captions_at_least_as_near_are_shown(self):
        """The image is at 0 degrees, its caption at 30; captions of other images are at 10, 30 and 50 degrees."""
        angles = torch.tensor([30.0, 10.0, 30.0, 50.0]).deg2rad()
        texts = torch.stack([angles.cos(), angles.sin()], dim=1).tolist()
        data = make_embeddings([[1.0, 0.0], *texts[1:]], texts, [0, 1, 2, 3])
        (worst, *_), confused, _ = find_confusions(data, [["own"], ["a"], ["b"], ["c"]])
        assert worst.image == 0
        assert [index for index, _ in worst.negatives] == [1, 2]
        assert confused == 2, "image 2 ties with the caption of image 0"

    def test_right_answers_are_not_confusions(self, tmp_path):
        data = make_embeddings([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.1], [0.1, 1.0]], [0, 1])
        assert find_confusions(data, [["a"], ["b"]]) == ([], 0, 2)
        paths = [tmp_path / "a.png", tmp_path / "b.png"]
        for path in paths:
            Image.new("RGB", (8, 8), "red").save(path)
        plot_confusions(data, Captions(paths, [["a"], ["b"]]), tmp_path / "confusions.png", "a run")
        assert size_and_colors(tmp_path / "confusions.png")[0] == (1560, 120)

    def test_equal_text_is_not_a_confusion(self, three):
        first = next(c for c in find_confusions(three, [["a", "b"], ["c"], ["a"]]).worst if c.image == 0)
        assert [index for index, _ in first.negatives] == [2]
        assert find_confusions(three, [["a", "a"], ["a"], ["a"]]) == ([], 0, 3)

    def test_negatives_differ_in_text_and_image(self):
        texts = [[0.0, 1.0], [1.0, 0.0], [1.0, 0.01], [1.0, 0.02], [1.0, 0.03]]
        data = make_embeddings([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], texts, [0, 1, 1, 2, 3])
        ((confusion,), *_) = find_confusions(data, [["positive"], ["x", "y"], ["x"], ["z"]], limit=1)
        assert [index for index, _ in confusion.negatives] == [1, 4]

    def test_nan_embeddings(self, three):
        broken = three._replace(images=three.images * math.nan)
        assert find_confusions(broken, [["a", "b"], ["c"], ["d"]]).confused == 3

    def test_plots_unusual_captions_and_images(self, three, tmp_path):
        paths = [tmp_path / name for name in ("größe $a^2$ 猫.png", "long" * 30 + ".png", "gone.png")]
        Image.new("RGB", (900, 30), "red").save(paths[0])
        Image.new("RGB", (1, 1), "blue").save(paths[1])
        captions = [["$\\frac{1}{", "cat \x00\n\t 🐱 猫"], ["word " * 500], [" "]]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plot_confusions(three, Captions(paths, captions), tmp_path / "out" / "confusions.png", "run $x_")
        size, colors = size_and_colors(tmp_path / "out" / "confusions.png")
        assert size[0] == 1560
        assert colors > 20
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["confusions.png"]


class TestSimilarities:
    def test_pair_cosines_use_first_captions(self, three):
        assert spaced_indices(10, 3).tolist() == [0, 3, 6]
        assert spaced_indices(2, 3).tolist() == [0, 1]
        expected = three.images @ three.texts[[0, 2, 3]].T
        assert torch.allclose(pair_cosines(three, 5), expected)

    def test_colors_have_a_fixed_scale(self, three, tmp_path, monkeypatch):
        """The noise of a model without knowledge must not fill the range of colors."""
        from matplotlib.axes import Axes

        ranges, imshow = [], Axes.imshow
        monkeypatch.setattr(
            Axes, "imshow", lambda self, *a, **k: ranges.append((k["vmin"], k["vmax"])) or imshow(self, *a, **k)
        )
        collapsed = three._replace(images=torch.ones(3, 2) / 2**0.5 + 0.001 * torch.randn(3, 2))
        for data in (three, collapsed):
            plot_similarities(data, tmp_path / "similarities.png")
        assert ranges == [COLOR_RANGE, COLOR_RANGE]

    def test_separation(self):
        positive, negative = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.5, 0.0])
        assert separation(positive, negative) == pytest.approx((2 + 1.5 + 1) / 6)
        assert separation(negative, negative) == 0.5
        assert separation(positive, positive[:0]) is None
        assert separation(positive * math.nan, negative) is None

    def test_plots_one_image_and_nan(self, three, tmp_path):
        path = tmp_path / "similarities.png"
        single = make_embeddings([[1.0, 0.0]], [[1.0, 0.0]], [0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for data in (three, single, three._replace(images=three.images * math.nan)):
                plot_similarities(data, path, "a run")
                assert size_and_colors(path)[1] > 20


def test_long_runs_are_thinned(tmp_path, monkeypatch):
    drawn = []
    from matplotlib.axes import Axes

    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, x, *a, **k: drawn.append(len(x)) or plot(self, x, *a, **k))
    steps = [{"step": n, "epoch": 1, "loss": 2.0 + math.sin(n), "chance_loss": 4.8} for n in range(1, 9001)]
    steps[77]["loss"] = math.nan
    plot_learning_curve(History(steps), tmp_path / "curve.png")
    assert max(drawn) <= 2000
    assert size_and_colors(tmp_path / "curve.png")[1] > 20


def test_curve_respects_its_time_limit_and_is_drawn_at_the_end(start, curve_drawn, monkeypatch):
    drawn = []
    monkeypatch.setattr("miniclip.plots.callbacks.plot_learning_curve", lambda h, *_, **__: drawn.append(len(h.steps)))
    now = iter(range(1000))
    clock = types.SimpleNamespace(monotonic=lambda: float(next(now)))
    monkeypatch.setattr("miniclip.plots.callbacks.time", clock)  # drawing takes one second: the next plot is due in 50
    start(callbacks=[LearningCurve()], save_every=1, epochs=2).fit()
    assert drawn == [1, 10]


def test_failing_plot_does_not_end_the_run(start, drawn, monkeypatch):
    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr("miniclip.plots.similarity.plot_similarities", fail)
    with pytest.warns(UserWarning, match="EvaluationPlots: RuntimeError: no font"):
        assert len(start().fit().evaluations) == 2


@pytest.mark.parametrize(("error", "count"), [(KeyboardInterrupt, 1), (StopAtOnce, 0)])
def test_second_ctrl_c_draws_nothing(error, count):
    """The drawing may be what it interrupted, in the middle of an import."""
    drawn = []

    class Plot(PlotCallback):
        def draw(self, trainer):
            drawn.append(trainer)

    plot = Plot()
    plot.on_start(None)
    plot._next_time = math.inf
    plot.draw_if_due(None)
    try:
        raise error
    except KeyboardInterrupt:  # as in the `finally` of the training loop
        call([plot], "on_end", None)
    assert len(drawn) == count
