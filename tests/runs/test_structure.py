"""State that a run depends on besides weights and settings: a resumed run has it, or is refused.

Frozen and tied parameters, modes of modules, foreign modules and hooks, states of callbacks, torch's settings.
"""

import json

import pytest
import torch
from torch import nn

import miniclip
from miniclip.checkpoints.formats.safetensors import read_tensors, write_tensors
from miniclip.errors import CheckpointError
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runs.state import read_state
from miniclip.runs.structure import Structure, foreign_parts, structure_of, tied_names
from miniclip.train import Callback, Trainer
from miniclip.train.callbacks import callback_states
from tests.toys import make_model
from tests.train.test_trainer import StopAt, assert_same_run


def test_frozen_tower_stays_frozen_after_a_resume(start, model, tokenizer, train_data, val_data):
    whole = start("whole", model=freeze(make_model(tokenizer)), callbacks=[MetricsFile()], log_every=1)
    whole.fit()
    before = {name: value.clone() for name, value in model.image.state_dict().items()}
    stopped = start("stopped", model=freeze(model), callbacks=[MetricsFile(), StopAt(3)], log_every=1)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    assert set(read_state(stopped.run_dir / "state.safetensors").structure.frozen) == {
        f"image.{name}" for name in before
    }
    resumed = Trainer.resume(stopped.run_dir, train_data, val_data, callbacks=[MetricsFile()], device="cpu")
    assert not any(parameter.requires_grad for parameter in resumed.model.image.parameters())
    assert all(parameter.requires_grad for parameter in resumed.model.text.parameters())
    resumed.fit()
    for name, value in resumed.model.image.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(resumed.model.text.tokens.weight, make_model(tokenizer).text.tokens.weight)
    assert_same_run(stopped.run_dir, whole.run_dir)


def freeze(model):
    model.image.requires_grad_(False)
    return model


def test_unknown_frozen_names_are_refused(start, train_data, val_data):
    trainer = start(callbacks=[], max_steps=1)
    trainer.fit()
    path = trainer.run_dir / "state.safetensors"
    tensors, metadata = read_tensors(path)
    tensors = {name: value.clone() for name, value in tensors.items()}
    write_tensors(path, tensors, {**metadata, "structure": json.dumps({"frozen": ["image.adapter.weight"]})})
    with pytest.raises(
        CheckpointError, match=r"state\.safetensors: the frozen parameters image\.adapter\.weight are not"
    ):
        Trainer.resume(trainer.run_dir, train_data, val_data)


def test_frozen_scale_is_not_clamped(start, model):
    model.log_scale.data.fill_(9.0)
    model.log_scale.requires_grad_(False)
    start(model=model, callbacks=[], max_steps=1).fit()
    assert model.log_scale.item() == 9.0


def interrupted(start, step, **options):
    """Start a run and stop it after a step; return its directory."""
    trainer = start(callbacks=[MetricsFile(), StopAt(step), *options.pop("callbacks", [])], log_every=1, **options)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    return trainer.run_dir


class Modes(Callback):
    """Recorder of the modules that are in evaluation mode at each step."""

    def __init__(self):
        self.steps = []

    def on_step(self, trainer, record):
        self.steps.append([name for name, module in trainer.model.named_modules() if not module.training])


def test_single_frozen_parameters_stay_frozen(start, model, train_data, val_data):
    frozen = ["image.positions", "text.blocks.0.norm1.weight"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    run = interrupted(start, 3, model=model)
    resumed = Trainer.resume(run, train_data, val_data, callbacks=[], device="cpu")
    assert [name for name, parameter in resumed.model.named_parameters() if not parameter.requires_grad] == frozen


def test_evaluation_mode_of_a_tower_stays(start, model, train_data, val_data):
    """A user switches a tower's dropout off; an evaluation and a resume leave it off."""
    model.train()
    model.image.eval()
    modes, again = Modes(), Modes()
    run = interrupted(start, 6, model=model, callbacks=[modes])  # after the first evaluation
    resumed = Trainer.resume(run, train_data, val_data, callbacks=[again], device="cpu")
    resumed.fit()
    expected = [name for name, _ in model.named_modules() if name.split(".")[0] == "image"]
    assert len(modes.steps) == 6
    assert all(names == expected for names in [*modes.steps, *again.steps])
    assert not resumed.model.training


def test_second_fit_keeps_the_modes(start, model):
    model.train()
    model.text.blocks[0].eval()
    modes = Modes()
    trainer = start(callbacks=[modes, StopAt(2)], model=model, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.callbacks.pop()
    trainer.fit()
    assert all("text.blocks.0" in names and "text.blocks" not in names for names in modes.steps)


def test_frozen_tower_is_in_evaluation_mode(start, model, train_data, val_data):
    """Its dropout and its running statistics would change its embeddings."""
    modes, again = Modes(), Modes()
    run = interrupted(start, 3, model=freeze(model), callbacks=[modes])
    assert read_state(run / "state.safetensors").structure.evaluated == []
    Trainer.resume(run, train_data, val_data, callbacks=[again], device="cpu").fit()
    for names in [*modes.steps, *again.steps]:
        assert {name.split(".")[0] for name in names} == {"image"}


@pytest.mark.parametrize("background", [True, False])
def test_tied_parameters_stay_tied(start, tokenizer, train_data, val_data, background):
    def tied():
        model = make_model(tokenizer)
        model.text.blocks[0].mlp.down.weight = model.image.blocks[0].mlp.down.weight
        return model

    names = ["image.blocks.0.mlp.down.weight", "text.blocks.0.mlp.down.weight"]
    whole = start("whole", model=tied(), callbacks=[MetricsFile()], log_every=1, save_in_background=background)
    whole.fit()
    run = interrupted(start, 3, model=tied(), save_in_background=background)
    resumed = Trainer.resume(run, train_data, val_data, callbacks=[MetricsFile()], device="cpu")
    assert tied_names(resumed.model) == [names]
    resumed.fit()
    assert_same_run(run, whole.run_dir)
    weights = miniclip.load(run / "last").state_dict()
    assert torch.equal(weights[names[0]], weights[names[1]])


def with_dropout(model):
    model.image.projection.register_forward_hook(lambda module, inputs, output: output * 2)
    model.image.norm_after.eps = 1e-2
    model.image.extra = nn.Dropout(0.3)
    return model


def test_foreign_modules_and_hooks_must_be_there_again(start, model, tokenizer, train_data, val_data):
    whole = start("whole", model=with_dropout(make_model(tokenizer)), callbacks=[MetricsFile()], log_every=1)
    whole.fit()
    run = interrupted(start, 3, model=with_dropout(model))
    parts = ["image.extra: Dropout", "image.norm_after: LayerNorm", "image.projection: a hook"]
    assert read_state(run / "state.safetensors").structure.foreign == parts
    resumed = Trainer.resume(run, train_data, val_data, callbacks=[MetricsFile()], device="cpu")
    with pytest.raises(ValueError, match=f"had {', '.join(parts)}, which no checkpoint has: put it into trainer.model"):
        resumed.fit()
    resumed = Trainer.resume(run, train_data, val_data, callbacks=[MetricsFile()], device="cpu")
    with_dropout(resumed.model)
    resumed.fit()
    assert_same_run(run, whole.run_dir)


def test_foreign_modules_may_be_left_out_on_request(start, model, train_data, val_data):
    run = interrupted(start, 3, model=with_dropout(model))
    Trainer.resume(run, train_data, val_data, callbacks=[], device="cpu", allow_changes=True).fit()
    assert read_state(run / "state.safetensors").structure.foreign == []


def test_models_of_the_library_have_no_foreign_parts(model):
    assert structure_of(model) == Structure()
    assert foreign_parts(miniclip.fast.plain(model)) == []
    model.text.register_buffer("counts", torch.zeros(3), persistent=False)
    model.text.forward = model.text.forward
    assert foreign_parts(model) == ["text.counts: a buffer", f"text: {type(model.text).__name__}"]


class Patience(Callback):
    """Counter of steps, as a user's early stopping keeps one."""

    def __init__(self):
        self.count, self.started_with = 0, None

    def on_start(self, trainer):
        self.started_with = self.count

    def on_step(self, trainer, record):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_states_of_callbacks_are_restored(start, train_data, val_data):
    run = interrupted(start, 4, callbacks=[Patience(), Patience()])
    with pytest.raises(ValueError, match="callback Patience: started with with a state, now missing"):
        Trainer.resume(run, train_data, val_data, callbacks=[MetricsFile()], device="cpu")
    callbacks = [MetricsFile(), Patience(), Patience()]
    Trainer.resume(run, train_data, val_data, callbacks=callbacks, device="cpu").fit()
    for callback in callbacks[1:]:
        assert (callback.started_with, callback.count) == (4, 10)
    Trainer.resume(run, train_data, val_data, callbacks=[], device="cpu", allow_changes=True).fit()


def test_saved_state_of_a_callback_does_not_change_later():
    class Seen(Callback):
        def __init__(self):
            self.steps = [1]

        def state_dict(self):
            return {"steps": self.steps}

    seen = Seen()
    states = callback_states([seen])  # a thread writes it after training has continued
    seen.steps.append(2)
    assert states == {"Seen": {"steps": [1]}}


def test_state_of_a_callback_must_be_json(start):
    class Wrong(Callback):
        def state_dict(self):
            return {"best": torch.zeros(2)}

    with pytest.raises(TypeError, match=r"Wrong\.state_dict\(\) returns .* expected JSON values"):
        start(callbacks=[Wrong()]).fit()


@pytest.mark.parametrize(
    ("name", "change", "undo"),
    [
        (
            "torch.get_default_dtype",
            lambda: torch.set_default_dtype(torch.float64),
            lambda: torch.set_default_dtype(torch.float32),
        ),
        (
            "torch.are_deterministic_algorithms_enabled",
            lambda: torch.use_deterministic_algorithms(True),
            lambda: torch.use_deterministic_algorithms(False),
        ),
    ],
    ids=["default dtype", "deterministic"],
)
def test_settings_of_torch_belong_to_a_run(start, train_data, val_data, name, change, undo):
    run = interrupted(start, 3)
    change()
    try:
        with pytest.raises(ValueError, match=f"{name}: started with .*, now .*allow_changes=True"):
            Trainer.resume(run, train_data, val_data, callbacks=[], device="cpu")
    finally:
        undo()
    Trainer.resume(run, train_data, val_data, callbacks=[], device="cpu").fit()
