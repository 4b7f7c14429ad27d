"""Devices: the default, and the refusal of those that the machine does not have."""

from types import SimpleNamespace

import pytest
import torch

import miniclip
from miniclip import cli
from miniclip.data import Shapes
from miniclip.runtime import devices
from miniclip.runtime.devices import available_devices, default_device, select_device, send
from miniclip.train import Trainer
from tests.toys import make_model


@pytest.fixture
def machine(monkeypatch):
    """Return a function that pretends that this machine has GPUs, or Apple's."""

    monkeypatch.setattr(devices, "default_device", default_device)  # tests replace it on a machine with a GPU

    def pretend(gpus=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    pretend()
    return pretend


def refusal(device):
    with pytest.raises(ValueError, match="this machine has") as caught:
        select_device(device)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_default_is_the_best_device(machine):
    assert (available_devices(), default_device().type) == (["cpu"], "cpu")
    machine(gpus=2)
    assert (available_devices(), default_device()) == (["cuda:0", "cuda:1", "cpu"], torch.device("cuda"))
    machine(mps=True)
    assert (available_devices(), select_device(None).type) == (["mps", "cpu"], "mps")


def test_devices_of_the_machine_are_accepted(machine):
    assert select_device("cpu") == torch.device("cpu")
    assert select_device(torch.device("cpu")) == torch.device("cpu")
    assert select_device("meta").type == "meta"
    machine(gpus=2)
    assert select_device("cuda:1") == torch.device("cuda:1")
    assert select_device("cuda").type == "cuda"


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "gpu", "GPU", "mps", "xpu", "tpu", "cuda0", "cpu:-7", "", "cpuu"])
def test_missing_devices_are_refused_in_one_line(machine, device):
    message = refusal(device)
    assert message.startswith(f"device={device!r} ")
    assert "this machine has cpu" in message


def test_the_message_names_those_there_are(machine):
    assert refusal("cuda") == ("device='cuda' is not available (torch is installed without CUDA); this machine has cpu")
    machine(gpus=2)
    assert refusal("cuda:7") == "device='cuda:7' does not exist; this machine has cuda:0, cuda:1, cpu"
    assert refusal("gpu").endswith(
        "not the name of a device; this machine has cuda:0, cuda:1, cpu; did you mean 'cuda'?"
    )
    assert "did you mean" not in refusal("metal")


@pytest.mark.parametrize("device", [3.5, True, ["cuda"]], ids=["float", "bool", "list"])
def test_other_types_are_refused(device):
    with pytest.raises(TypeError, match="expected a name such as 'cuda' or 'cpu'"):
        select_device(device)


def test_every_entry_point_refuses(machine, toy_tokenizer, tmp_path, capsys):
    model = make_model(toy_tokenizer)
    for call in (
        lambda: miniclip.load("bert_vit_tiny", pretrained=False, device="gpu"),
        lambda: miniclip.load(tmp_path / "none", device="cuda"),
        lambda: Trainer(model, Shapes("train", 4), device="cuda:7"),
    ):
        with pytest.raises(ValueError, match="this machine has cpu"):
            call()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('device = "mps"\n')
    for arguments, spelled in (
        (["train", "--device", "cuda"], "--device cuda"),
        (["train", "--device", "gpu", "--check"], "--device gpu"),
        (["train", "--device", "cuda:7", "--dry-run"], "--device cuda:7"),
        (["train", "--config", str(recipe)], "--device mps"),
        (["eval", "nothing", "--device", "mps"], "--device mps"),
    ):
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"miniclip: {spelled} is not")


def test_allocation_decides_about_other_backends(machine, monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(devices.torch, "empty", fail)
    assert "xpu" in refusal("xpu")


@pytest.mark.parametrize(
    ("source", "target", "expected"), [("cuda", "cuda", True), ("cuda", "cpu", False), ("cpu", "mps", False)]
)
def test_only_copies_to_cuda_do_not_wait(source, target, expected):
    """A copy to the CPU could be read before it is complete, and one to MPS could read memory that is reused."""
    tensor = SimpleNamespace(device=torch.device(source), to=lambda device, non_blocking: non_blocking)
    assert send(tensor, torch.device(target)) is expected
