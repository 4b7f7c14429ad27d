"""The learning curve: any history, both losses, and a chance line for each."""

import math

import pytest
from matplotlib.axes import Axes
from PIL import Image

from miniclip.plots.learning_curve import plot_learning_curve, smooth
from miniclip.runs.history import History

STEP = {"step": 1, "epoch": 1, "loss": 2.0, "chance_loss": math.log(32)}
RECALL = {"R@1": 3.0, "R@5": 4.0, "R@10": 5.0}
CHANCE = {"text_to_image": {"R@1": 25.0, "R@5": 100.0}, "image_to_text": {"R@1": 25.0, "R@5": 80.6}}
EVALUATION = {
    "step": 1,
    "epoch": 1,
    "val_loss": 1.37,
    "val_chance_loss": math.log(4),
    "text_to_image": RECALL,
    "image_to_text": RECALL,
    "chance_recall": CHANCE,
}


@pytest.fixture
def lines(monkeypatch):
    """Labels of the drawn lines, with their values."""
    drawn = {}
    plot, axhline = Axes.plot, Axes.axhline

    def record_plot(self, x, y, *arguments, **options):
        drawn[options.get("label")] = (list(x), list(y))
        return plot(self, x, y, *arguments, **options)

    def record_line(self, y=0, **options):
        drawn[options.get("label")] = y
        return axhline(self, y, **options)

    monkeypatch.setattr(Axes, "plot", record_plot)
    monkeypatch.setattr(Axes, "axhline", record_line)
    return drawn


def test_any_history_gives_a_plot(tmp_path):
    sizes = set()
    histories = (History(), History([STEP]), History([STEP], [EVALUATION]), History([], [EVALUATION]))
    for history in histories:
        plot_learning_curve(history, tmp_path / "curve.png", "a run")
        with Image.open(tmp_path / "curve.png") as plot:
            sizes.add(plot.size)
            assert len(plot.convert("RGB").getcolors(1 << 20)) > 10
    assert sizes == {(960, 780)}


def test_plots_both_losses_over_the_steps(tmp_path, lines):
    steps = [{**STEP, "step": n, "loss": 3.0 - n} for n in (1, 2)]
    plot_learning_curve(History(steps, [{**EVALUATION, "step": 2}]), tmp_path / "curve.png")
    assert lines["training loss"] == ([1, 2], [2.0, 1.0])
    assert lines["validation loss"] == ([2], [1.37])


def test_each_curve_has_its_own_chance_line(tmp_path, lines):
    """A validation batch of 4 beside training batches of 32: the loss of an untrained model is 1.39, not 3.47."""
    plot_learning_curve(History([STEP], [EVALUATION]), tmp_path / "curve.png")
    assert lines["chance in training, 3.47"] == pytest.approx(math.log(32))
    assert lines["chance in validation, 1.39"] == pytest.approx(math.log(4))
    assert lines["R@1 by chance, 25%"] == 25.0


def test_chance_follows_a_changed_batch_size(tmp_path, lines):
    steps = [STEP, {**STEP, "step": 2, "chance_loss": math.log(8)}]
    plot_learning_curve(History(steps), tmp_path / "curve.png")
    assert lines["chance in training, 2.08"] == ([1, 2], [math.log(32), math.log(8)])


def test_smooth():
    assert smooth([1, 3, 5], span=3) == [2, 3, 4]
    assert smooth([1, 3, 9], span=1) == [1, 3, 9]
    assert smooth([1, 3], span=50) == [2, 2]
    assert smooth([], span=3) == []
