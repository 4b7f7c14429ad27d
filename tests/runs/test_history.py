"""History: reading, truncation at a state, and bounded size for runs of any length."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniclip.errors import DataError
from miniclip.runs import history
from miniclip.runs.history import History, line, merged, thinned

STEP = {"step": 1, "epoch": 1, "loss": 2.0, "chance_loss": 2.1}
EVALUATION = {"step": 1, "epoch": 1, "val_loss": 2.0, "text_to_image": {"R@1": 3.0}}


def steps(losses):
    return [{"step": n, "epoch": 1, "loss": loss} for n, loss in enumerate(losses, 1)]


def written(path, records):
    (path / "metrics.jsonl").write_text("".join(map(line, records)))
    return path


class TestReading:
    def test_reads_records_and_ignores_an_incomplete_line(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text(line(STEP) + line(EVALUATION) + '{"step": 2')
        found = History.read(tmp_path)
        assert found == History([STEP], [EVALUATION])
        assert found.end == len(line(STEP) + line(EVALUATION))

    @pytest.mark.parametrize("rubbish", ["rubbish", "3", "[1]", '{"step": 1', "\xe9\x00"])
    def test_a_damaged_line_is_named(self, tmp_path, rubbish):
        (tmp_path / "metrics.jsonl").write_bytes((line(STEP) + rubbish + "\n" + line(STEP)).encode("latin-1"))
        with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
            History.read(tmp_path, step=9, evaluated=9)

    def test_stops_at_the_state(self, tmp_path):
        evaluations = [{"step": n, "epoch": n // 2, "val_loss": 0.0} for n in (2, 4)]
        one, two, three, four = steps([3.0, 2.0, 1.0, 0.5])
        written(tmp_path, [one, two, evaluations[0], three, four, evaluations[1]])
        assert History.read(tmp_path, 2, 0) == History([one, two])
        assert History.read(tmp_path, 2, 2) == History([one, two], evaluations[:1])
        assert History.read(tmp_path, 4, 2) == History([one, two, three, four], evaluations[:1])
        assert History.read(tmp_path, 4, 4) == History.read(tmp_path)
        assert History.read(tmp_path, 0, 0).end == 0


class TestThinning:
    def test_docstring_example(self):
        two = [{"step": 1, "loss": 1}, {"step": 2, "loss": 3}]
        assert merged(two) == {"step": 2, "loss": 2.0, "loss_min": 1, "loss_max": 3, "steps": 2}

    def test_nonfinite_values_are_left_out_of_means(self):
        records = [
            {"step": 1, "epoch": 1, "lr": 3.0, "loss": float("nan"), "grad_norm": 1.0},
            {"step": 2, "epoch": 1, "lr": 2.0, "loss": 4.0, "grad_norm": float("inf"), "note": "a"},
            {"step": 3, "epoch": 2, "lr": 1.0, "loss": None, "note": "b", "skipped": True},
        ]
        point = merged(records)
        assert point == {
            "step": 3, "epoch": 2, "lr": 1.0, "loss": 4.0, "loss_min": 4.0, "loss_max": 4.0, "grad_norm": 1.0,
            "note": "b", "skipped": True, "steps": 3,
        }  # fmt: skip

    @given(
        st.lists(st.floats(0, 10), min_size=1, max_size=300),
        st.sampled_from([2, 4, 8, 30]),
    )
    def test_size_is_bounded_and_nothing_is_lost(self, losses, limit):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(history, "LIMIT", limit)
            found = History()
            for n, record in enumerate(steps(losses), 1):
                found.add(record)
                assert found.steps[-1] is record  # the latest record is not merged
                assert len(found.steps) <= limit + found.stride
                assert sum(r.get("steps", 1) for r in found.steps) == n
            assert found == History(steps(losses))
        assert [r["step"] for r in found.steps] == sorted({r["step"] for r in found.steps})
        weighed = sum(r["loss"] * r.get("steps", 1) for r in found.steps) / len(losses)
        assert weighed == pytest.approx(sum(losses) / len(losses))
        assert min(r.get("loss_min", r["loss"]) for r in found.steps) == min(losses)
        assert max(r.get("loss_max", r["loss"]) for r in found.steps) == max(losses)

    def test_reading_gives_the_history_of_the_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(history, "LIMIT", 16)
        all_of_them = steps([1 / n for n in range(1, 500)])
        running = History()
        for record in all_of_them[:333]:
            running.add(record)
        written(tmp_path, all_of_them)
        assert History.read(tmp_path, 333, 1) == running
        assert running.stride == 32

    @given(st.integers(0, 50), st.integers(1, 20))
    def test_thinned(self, count, most):
        few = thinned(steps([1.0] * count), most)
        assert len(few) <= most
        assert sum(r.get("steps", 1) for r in few) == count


def test_file_keeps_every_step_and_a_second_fit_appends(start, monkeypatch):
    monkeypatch.setattr(history, "LIMIT", 4)
    trainer = start(max_steps=7)
    trainer.fit()
    trainer.total_steps = 10  # a notebook continues with the same trainer
    trainer.fit()
    lines = [json.loads(text) for text in (trainer.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in lines if "loss" in record] == list(range(1, 11))
    assert len(trainer.history.steps) < 8
