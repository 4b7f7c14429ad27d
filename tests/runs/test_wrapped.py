"""Models with wrapped or replaced parts: a run's checkpoints open again, or the trainer refuses them at the start."""

import pytest
import torch
from torch import nn

from miniclip.checkpoints.formats.safetensors import read_tensors
from miniclip.hub import load
from miniclip.runs.metrics_file import MetricsFile
from miniclip.train import Trainer
from tests.toys import make_model
from tests.train.test_trainer import StopAt


def compile_towers(model):
    model.image = torch.compile(model.image, backend="eager")
    model.text = torch.compile(model.text, backend="eager")
    return model


def compile_a_block(model):
    model.text.blocks[0] = torch.compile(model.text.blocks[0], backend="eager")
    model.text.blocks[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("wrap", [compile_towers, compile_a_block])
def test_a_run_with_compiled_parts_resumes(wrap, start, tokenizer, train_data, val_data):
    whole = start("whole", model=wrap(make_model(tokenizer)), callbacks=[MetricsFile()], log_every=1, ema_decay=0.9)
    whole.fit()
    stopped = start(
        "stopped", model=wrap(make_model(tokenizer)), callbacks=[MetricsFile(), StopAt(3)], log_every=1, ema_decay=0.9
    )
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    names, _ = read_tensors(stopped.run_dir / "state.safetensors")
    assert not [name for name in names if "_orig_mod" in name]
    load(stopped.run_dir / "last")
    resumed = Trainer.resume(stopped.run_dir, train_data, val_data, callbacks=[MetricsFile()], device="cpu")
    frozen = [name for name, parameter in resumed.model.named_parameters() if not parameter.requires_grad]
    assert bool(frozen) == (wrap is compile_a_block)
    resumed.fit()
    resumed_state = load(stopped.run_dir / "last").state_dict()
    for name, value in load(whole.run_dir / "last").state_dict().items():  # the resumed run computes in the fast forms
        torch.testing.assert_close(resumed_state[name], value, rtol=1e-2, atol=1e-3)


def lora(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"]))


def injected_lora(model):
    peft = pytest.importorskip("peft")
    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["qkv"]), model)


def weight_norm(model):
    nn.utils.parametrizations.weight_norm(model.image.projection)
    return model


def data_parallel_tower(model):
    model.image = nn.DataParallel(model.image)
    return model


REFUSED = {
    "compiled": (torch.compile, TypeError, r"model: found an? OptimizedModule; expected a CLIPModel"),
    "data parallel": (nn.DataParallel, TypeError, r"a DataParallel; expected a CLIPModel"),
    "peft": (lora, TypeError, r"a PeftModel; expected a CLIPModel.*merge_and_unload\(\)"),
    "injected": (injected_lora, ValueError, r"attention\.qkv is a peft\..*merge_and_unload\(\)"),
    "weight norm": (weight_norm, ValueError, r"image\.projection\.parametrizations\.weight\.original0"),
    "data parallel tower": (
        data_parallel_tower,
        TypeError,
        r"model\.image is a DataParallel; expected the tower inside",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_could_not_be_loaded_again_are_refused(case, start, model, tmp_path):
    change, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        start(model=change(model))
    assert not (tmp_path / "run").exists()
