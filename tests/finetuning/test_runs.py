"""Runs of LoRA and partly frozen towers: resumed bit for bit after a kill, and checkpoints that load anywhere."""

import contextlib
import os
import signal

import pytest
import torch

import miniclip
from miniclip import cli
from miniclip.finetuning import load_adapter
from miniclip.finetuning.lora import lora_layers
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runs.state import read_state
from miniclip.train import Callback, Trainer
from tests.killing import attempt
from tests.train.test_trainer import StopAt, assert_same_run

LORA = {"tune_image": "lora", "tune_text": "lora", "lora_rank": 2, "lora_targets": "q,v,mlp"}
CASES = {
    "lora": {**LORA, "ema_decay": 0.5, "micro_batch_size": 3},
    "mixed": {**LORA, "tune_text": "last-1", "gradient_checkpointing": True, "precision": "bfloat16"},
    "lit": {"tune_image": "frozen", "patch_dropout": 0.5},
}


class Kill(Callback):
    """Kills the process at once after a step."""

    def on_step(self, trainer, record):
        if record["step"] == 7:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_resumes_after_a_kill(start, train_data, val_data, tmp_path, settings):
    whole = start("whole", callbacks=[MetricsFile()], log_every=1, **settings)
    whole.fit()
    options = {"callbacks": [MetricsFile(), Kill()], "log_every": 1, "save_every": 2, "save_in_background": False}
    assert attempt(lambda: start("killed", **options, **settings).fit()) == -signal.SIGKILL
    resumed = Trainer.resume(tmp_path / "killed", train_data, val_data, callbacks=[MetricsFile()], device="cpu")
    assert resumed.step == 6
    assert resumed.model.state_dict().keys() == whole.model.state_dict().keys()
    frozen = [{name for name, p in run.model.named_parameters() if not p.requires_grad} for run in (whole, resumed)]
    assert frozen[0] == frozen[1] != set()
    resumed.fit()
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    one, other = (read_state(run.run_dir / "state.safetensors") for run in (whole, resumed))
    assert one.structure == other.structure
    assert all(torch.equal(value, other.ema[name]) for name, value in one.ema.items())


def test_state_has_no_moments_of_frozen_weights(start):
    trainer = start(callbacks=[], max_steps=2, ema_decay=0.5, **LORA)
    trainer.fit()
    state = read_state(trainer.run_dir / "state.safetensors")
    assert {name.split(".", 1)[1] for name in state.optimizer} == set(state.ema)
    assert all(".lora_" in name for name in state.ema)


def test_checkpoints_are_merged_and_have_the_adapter(start, model, val_data, tmp_path, capsys):
    miniclip.save(model, tmp_path / "base")
    trainer = start(model=miniclip.load(tmp_path / "base"), callbacks=[MetricsFile()], lr=0.01, **LORA)
    history = trainer.fit()
    folder = trainer.run_dir / "last"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    merged, added = miniclip.load(folder), miniclip.load(tmp_path / "base", adapter=folder)
    trained = load_adapter(miniclip.load(tmp_path / "base"), folder / "adapter")
    texts = ["a red circle", "a dog"]
    assert (trained.encode_text(texts) - miniclip.load(tmp_path / "base").encode_text(texts)).abs().max() > 1e-3
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(added.state_dict()[name], value, rtol=0, atol=1e-7)
    assert (merged.encode_text(texts) - trainer.model.encode_text(texts)).abs().max() < 1e-6
    assert torch.equal(trained.encode_text(texts), trainer.model.encode_text(texts))
    best = max(history.evaluations, key=lambda r: r["text_to_image"]["R@1"] + r["image_to_text"]["R@1"])
    figures = miniclip.evaluation.retrieval(miniclip.load(trainer.run_dir), val_data)
    assert figures == {way: best[way] for way in ("image_to_text", "text_to_image")}
    assert miniclip.load(tmp_path / "base", adapter=trainer.run_dir).config == merged.config  # the adapter of best/


def test_adapter_of_a_resumed_run_has_the_same_bytes(start, model, train_data, val_data, tmp_path):
    miniclip.save(model, tmp_path / "base")
    for run, options in (("whole", {}), ("stopped", {"callbacks": [StopAt(4)]})):
        trainer = start(run, model=miniclip.load(tmp_path / "base"), **{"callbacks": [], **options}, **LORA)
        with contextlib.suppress(KeyboardInterrupt):
            trainer.fit()
    Trainer.resume(tmp_path / "stopped", train_data, val_data, callbacks=[], device="cpu").fit()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        whole, resumed = (tmp_path / run / "last" / "adapter" / name for run in ("whole", "stopped"))
        assert whole.read_bytes() == resumed.read_bytes()
    assert str(tmp_path / "base") in whole.with_name("adapter_config.json").read_text()


def test_no_adapter_beside_other_trained_weights(start):
    trainer = start(callbacks=[], max_steps=1, **{**LORA, "tune_text": "full"})
    trainer.fit()
    assert lora_layers(trainer.model)
    assert not (trainer.run_dir / "last" / "adapter").exists()


def test_trained_parts_cannot_change_in_a_resume(start, train_data, val_data):
    trainer = start(callbacks=[StopAt(2)], log_every=1, **LORA)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    for settings in ({"tune_text": "full"}, {"lora_rank": 4}):
        with pytest.raises(ValueError, match=r"started with .*, now .*\. The trained parts are state of the run"):
            Trainer.resume(trainer.run_dir, train_data, val_data, settings=settings, allow_changes=True)


def test_adapters_that_were_added_by_hand_are_restored(start, model, train_data, val_data):
    miniclip.finetuning.add_lora(model, rank=3, towers=["text"])
    trainer = start(callbacks=[StopAt(2)], log_every=1, model=model)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = Trainer.resume(trainer.run_dir, train_data, val_data, callbacks=[], device="cpu")
    assert {name: layer.lora for name, layer in lora_layers(resumed.model).items()} == {
        name: layer.lora for name, layer in lora_layers(model).items()
    }
    resumed.fit()


def test_command_line_names_the_setting(tmp_path, capsys, model):
    miniclip.save(model, tmp_path / "base")
    command = ["train", "--model", str(tmp_path / "base"), "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main([*command, "--tune-image", "last-9", "--tune-text", "lora", "--lora-targets", "q,out"]) == 2
    assert "tune_image is 'last-9', and the tower has 1 blocks" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
