"""MFU in the records of a run."""

import json

import pytest

from miniclip.runtime.flops import pair_flops


def test_records_carry_the_share_of_the_peak(start, monkeypatch):
    monkeypatch.setattr("miniclip.runtime.flops.peak_flops", lambda device, precision: 1e12)
    trainer = start(max_steps=4)
    for record in trainer.fit().steps:
        flops = pair_flops(trainer.model, record["tokens"])
        assert record["mfu"] == pytest.approx(record["samples_per_second"] * flops / 1e12, abs=1e-4)
    logged = [json.loads(line) for line in (trainer.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all("mfu" in record for record in logged if "loss" in record)
