"""A GPU without data: tensors of the device "cuda" on any machine. The tests' only private symbol of torch is here."""

from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from miniclip.losses import on_gpu


@contextmanager
def fake_gpu():
    """Context in which tensors have a shape, a dtype and a device, but no data.

    An operation on tensors of two devices raises, and so does one that reads a value, for which a GPU would have to be
    waited for. There is no backward pass.
    """
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), FakeTensorMode():
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(on_gpu, "_sums_in_float32", lambda _: True)  # it is tried out with real numbers
        yield
