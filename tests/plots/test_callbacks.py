"""The pictures of a run: what is drawn is what the model confuses, whatever captions and pictures there are."""

import math
import types
import warnings

import pytest
import torch
from PIL import Image

from miniclip.data import Captions
from miniclip.evaluation.retrieval import Embeddings
from miniclip.plots.callbacks import LearningCurve
from miniclip.plots.confusions import draw_confusions, worst
from miniclip.plots.learning_curve import learning_curve
from miniclip.plots.similarity import draw_similarities, evenly, pairs
from miniclip.train import History


def embedded(images, texts, owner):
    l2_normalize = torch.nn.functional.normalize
    return Embeddings(l2_normalize(torch.tensor(images)), l2_normalize(torch.tensor(texts)), torch.tensor(owner))


@pytest.fixture
def three():
    """Three pictures at 0, 45 and 90 degrees; the captions of the first one are at 90 and 80 degrees."""
    texts = [[0.0, 1.0], [math.cos(1.4), math.sin(1.4)], [1.0, 1.0], [1.0, 0.0]]
    return embedded([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], texts, [0, 0, 1, 2])


def png(path):
    with Image.open(path) as picture:
        return picture.size, len(picture.convert("RGB").getcolors(1 << 24))


class TestConfusions:
    def test_the_worst_come_first_with_the_captions_that_won(self, three):
        found = worst(three, [["a", "b"], ["c"], ["d"]])
        assert [c.picture for c in found] == [2, 0, 1]
        assert found[0].right == (3, pytest.approx(0.0, abs=1e-6))
        assert found[0].wrong[0] == (0, pytest.approx(1.0))
        assert found[1].right == (1, pytest.approx(math.cos(1.4)))
        assert [index for index, _ in found[1].wrong] == [3, 2]
        assert found[2].margin < 0

    def test_a_caption_that_reads_the_same_is_no_confusion(self, three):
        first = next(c for c in worst(three, [["a", "b"], ["c"], ["a"]]) if c.picture == 0)
        assert [index for index, _ in first.wrong] == [2]
        assert worst(three, [["a", "a"], ["a"], ["a"]]) == []

    def test_each_winner_is_another_sentence_of_another_picture(self):
        texts = [[0.0, 1.0], [1.0, 0.0], [1.0, 0.01], [1.0, 0.02], [1.0, 0.03]]
        data = embedded([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], texts, [0, 1, 1, 2, 3])
        (found,) = worst(data, [["own"], ["x", "y"], ["x"], ["z"]], count=1)
        assert [index for index, _ in found.wrong] == [1, 4]

    def test_numbers_that_are_none(self, three):
        broken = three._replace(images=three.images * math.nan)
        assert len(worst(broken, [["a", "b"], ["c"], ["d"]])) == 3

    def test_it_is_drawn_whatever_the_captions_and_pictures(self, three, tmp_path):
        paths = [tmp_path / name for name in ("größe $a^2$ 猫.png", "long" * 30 + ".png", "gone.png")]
        Image.new("RGB", (900, 30), "red").save(paths[0])
        Image.new("RGB", (1, 1), "blue").save(paths[1])
        captions = [["$\\frac{1}{", "cat \x00\n\t 🐱 猫"], ["word " * 500], [" "]]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_confusions(three, Captions(paths, captions), tmp_path / "out" / "confusions.png", "run $x_")
        size, colours = png(tmp_path / "out" / "confusions.png")
        assert size[0] == 1560
        assert colours > 20
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["confusions.png"]


class TestSimilarities:
    def test_pairs_and_which(self, three):
        assert evenly(10, 3).tolist() == [0, 3, 6]
        assert evenly(2, 3).tolist() == [0, 1]
        expected = three.images @ three.texts[[0, 2, 3]].T
        assert torch.allclose(pairs(three, 5), expected)

    def test_it_is_drawn_for_one_picture_and_for_no_numbers(self, three, tmp_path):
        path = tmp_path / "similarities.png"
        one = embedded([[1.0, 0.0]], [[1.0, 0.0]], [0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for data in (three, one, three._replace(images=three.images * math.nan)):
                draw_similarities(data, path, "a run")
                assert png(path)[1] > 20


def test_a_long_run_is_drawn_as_fast_as_a_short_one(tmp_path, monkeypatch):
    drawn = []
    from matplotlib.axes import Axes

    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, x, *a, **k: drawn.append(len(x)) or plot(self, x, *a, **k))
    steps = [{"step": n, "epoch": 1, "loss": 2.0 + math.sin(n), "log_n": 4.8} for n in range(1, 9001)]
    steps[77]["loss"] = math.nan
    learning_curve(History(steps), tmp_path / "curve.png")
    assert max(drawn) <= 2000
    assert png(tmp_path / "curve.png")[1] > 20


def test_the_curve_is_drawn_seldom_where_states_are_saved_often_and_at_the_end(start, monkeypatch):
    drawn = []
    monkeypatch.setattr("miniclip.plots.callbacks.learning_curve", lambda h, *_, **__: drawn.append(len(h.steps)))
    now = iter(range(1000))
    clock = types.SimpleNamespace(monotonic=lambda: float(next(now)))
    monkeypatch.setattr("miniclip.plots.callbacks.time", clock)  # drawing takes a second: the next in 50
    start(callbacks=[LearningCurve()], save_every=1, epochs=2).fit()
    assert drawn == [1, 10]


def test_a_picture_that_fails_ends_no_run(start, drawn, monkeypatch):
    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr("miniclip.plots.similarity.draw_similarities", fail)
    with pytest.warns(UserWarning, match="EvaluationPlots: RuntimeError: no font"):
        assert len(start().fit().evaluations) == 2
