"""Small parts of training: settings, schedule, learning curve, validation, run directory."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from miniclip.data import Shapes
from miniclip.errors import CheckpointError
from miniclip.plots.learning_curve import plot_learning_curve, smooth
from miniclip.runs.directory import fingerprint, next_run_dir, read_run
from miniclip.runs.history import History
from miniclip.train.config import TrainConfig
from miniclip.train.schedule import learning_rate
from miniclip.train.step_arguments import loss_function
from miniclip.train.validation import validate


class TestSettings:
    def test_every_setting_is_documented(self):
        for name in TrainConfig().to_dict():
            assert len(TrainConfig.help(name)) > 10, name

    def test_round_trip(self):
        config = TrainConfig(epochs=7, flip=True, max_steps=9, loss="sigmoid")
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_unknown_name_gives_the_nearest(self):
        with pytest.raises(ValueError, match="unknown setting 'batchsize'; did you mean 'batch_size'"):
            TrainConfig.from_dict({"batchsize": 3})

    @pytest.mark.parametrize(
        "wrong",
        [
            {"epochs": 0},
            {"batch_size": -1},
            {"lr": 0.0},
            {"warmup_fraction": 1.0},
            {"min_crop_area": 0.0},
            {"color_jitter": 1.5},
            {"max_rotation_degrees": 270.0},
            {"max_steps": 0},
            {"precision": "float16"},
            {"loss": "triplet"},
            {"lr": math.nan},
        ],
    )
    def test_values_out_of_their_range(self, wrong):
        (name,) = wrong
        with pytest.raises(ValueError, match=name):
            TrainConfig(**wrong)

    @pytest.mark.parametrize("wrong", [{"epochs": 1.5}, {"lr": "1e-3"}, {"flip": 1}, {"epochs": True}, {"seed": None}])
    def test_values_of_the_wrong_type(self, wrong):
        (name,) = wrong
        with pytest.raises(TypeError, match=name):
            TrainConfig(**wrong)

    def test_int_is_accepted_as_float(self):
        assert TrainConfig(lr=1).lr == 1


class TestSchedule:
    def test_docstring_example(self):
        rates = [learning_rate(step, peak=1.0, warmup=2, total=6) for step in range(6)]
        assert rates == pytest.approx([0.5, 1, 1, 0.8536, 0.5, 0.1464], abs=1e-4)

    @given(st.integers(1, 500), st.floats(0, 0.99))
    def test_rate_is_positive_and_at_most_the_peak(self, total, share):
        warmup = round(share * total)
        rates = [learning_rate(step, peak=2.0, warmup=warmup, total=total) for step in range(total)]
        assert all(0 < rate <= 2.0 for rate in rates)
        assert rates[:warmup] == sorted(rates[:warmup])
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


class TestCurve:
    def test_any_history_gives_a_plot(self, tmp_path):
        step = {"step": 1, "epoch": 1, "loss": 2.0, "log_n": 2.1}
        recall = {"R@1": 3.0, "R@5": 4.0, "R@10": 5.0}
        evaluation = {"step": 1, "epoch": 1, "val_loss": 2.0, "text_to_image": recall, "image_to_text": recall}
        sizes = set()
        for history in (History(), History([step]), History([step], [evaluation]), History([], [evaluation])):
            plot_learning_curve(history, tmp_path / "curve.png", "a run")
            with Image.open(tmp_path / "curve.png") as plot:
                sizes.add(plot.size)
                assert len(plot.convert("RGB").getcolors(1 << 20)) > 10
        assert sizes == {(960, 780)}

    def test_plots_both_losses_over_the_steps(self, tmp_path, monkeypatch):
        from matplotlib.axes import Axes

        drawn = []
        plot = Axes.plot
        monkeypatch.setattr(
            Axes, "plot", lambda self, *a, **k: drawn.append((a, k.get("label"))) or plot(self, *a, **k)
        )
        recall = {"R@1": 3.0, "R@5": 4.0}
        steps = [{"step": n, "epoch": 1, "loss": 3.0 - n, "log_n": 2.1} for n in (1, 2)]
        evaluation = {"step": 2, "val_loss": 1.5, "text_to_image": recall, "image_to_text": recall}
        plot_learning_curve(History(steps, [evaluation]), tmp_path / "curve.png")
        lines = {label: (list(a[0]), list(a[1])) for a, label in drawn if label}
        assert lines["training loss"] == ([1, 2], [2.0, 1.0])
        assert lines["validation loss"] == ([2], [1.5])

    def test_smooth(self):
        assert smooth([1, 3, 5], span=3) == [2, 3, 4]
        assert smooth([1, 3, 9], span=1) == [1, 3, 9]
        assert smooth([1, 3], span=50) == [2, 2]
        assert smooth([], span=3) == []


class TestValidation:
    def test_repeats_exactly_and_has_log_n(self, model, val_data):
        loss = loss_function(TrainConfig(), model)
        first, second = (validate(model, val_data, loss, 8, seed=3)[0] for _ in range(2))
        assert first == second
        assert first["val_log_n"] == pytest.approx(math.log(8))
        assert validate(model, val_data, loss, 500, seed=3)[0]["val_log_n"] == pytest.approx(math.log(20))

    def test_collapsed_model_has_chance_loss_and_no_recall(self, model, val_data):
        model.encode_image = lambda items: torch.ones(len(items), 16) / 4
        model.encode_text = lambda items: torch.ones(len(items), 16) / 4
        figures, embedded = validate(model, val_data, loss_function(TrainConfig(), model), 8, seed=0)
        assert embedded.image_indices.tolist() == [i for i in range(20) for _ in val_data.captions[i]]
        assert figures["val_loss"] == pytest.approx(math.log(8))
        assert figures["text_to_image"]["R@1"] == 0


class TestRunDir:
    def test_next_free_name(self, tmp_path):
        assert next_run_dir(tmp_path / "run") == tmp_path / "run"
        (tmp_path / "run").mkdir()
        (tmp_path / "run-2").mkdir()
        assert next_run_dir(tmp_path / "run") == tmp_path / "run-3"

    def test_fingerprint_depends_on_captions_and_their_order(self):
        data = Shapes("val", 3, image_size=16)
        same, other = Shapes("val", 3, image_size=32), Shapes("val", 3, image_size=16)
        other.captions[1].reverse()
        assert fingerprint(data) == fingerprint(same)
        assert fingerprint(data) != fingerprint(other)
        assert fingerprint(None) is None

    def test_another_config_is_refused(self, tmp_path):
        (tmp_path / "config.json").write_text('{"format": "miniclip"}')
        with pytest.raises(CheckpointError, match="not a run directory"):
            read_run(tmp_path)
