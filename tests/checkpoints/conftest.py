"""What the tests of the layouts share: peers' models that are random everywhere, captions, and the comparison."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

TOLERANCE = 2e-5  # on embeddings and logits, in float32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models here are tiny: a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Make each weight of a peer's model tell: biases, norms and tokens too, which all begin as zeros or ones."""

    @torch.no_grad()
    def randomise(model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(noise * 0.1)
        return model.eval()

    return randomise


@pytest.fixture
def captions() -> Callable[..., Tensor]:
    """Token ids (4, context) as a peer's tokenizer gives them: captions of 1, 3 and most words and a cut one."""

    def captions(context: int, vocabulary: int, end: int, pad: int = 0) -> Tensor:
        ids = torch.randint(3, vocabulary - 1, (4, context))
        ids[ids >= end] += 1  # any token but the end
        ids[ids == vocabulary] = 3
        for row, length in enumerate((2, 4, context - 1, context)):
            ids[row, length - 1] = end
            ids[row, length:] = pad
        return ids

    return captions


@pytest.fixture
def differences() -> Callable[..., dict[str, float]]:
    """How far our model is, at most, from a peer's embeddings (N, E) and (M, E) and logits (N, M)."""

    @torch.no_grad()
    def differences(
        ours: nn.Module, pixels: Tensor, ids: Tensor, theirs: tuple[Tensor, Tensor, Tensor]
    ) -> dict[str, float]:
        image, text, scale, bias = ours(pixels, ids)
        logits = scale * image @ text.T + (0 if bias is None else bias)
        names = ("image", "text", "logits")
        found = zip(names, (image, text, logits), theirs, strict=True)
        return {name: float((one - other).abs().max()) for name, one, other in found}

    return differences


@pytest.fixture
def compare(differences) -> Callable[..., None]:
    """Hold our model to a peer's embeddings and logits, which must not be alike for different pictures and texts."""

    def compare(ours: nn.Module, pixels: Tensor, ids: Tensor, theirs: tuple[Tensor, Tensor, Tensor]) -> None:
        for name, difference in differences(ours, pixels, ids, theirs).items():
            assert difference <= TOLERANCE, name
        for rows in theirs[:2]:
            assert float(torch.pdist(rows).min()) > 1000 * TOLERANCE

    return compare


@pytest.fixture
def one_line() -> Callable[..., str]:
    """Hold an exception's message to one line that names these."""

    def one_line(caught: pytest.ExceptionInfo, *names: object) -> str:
        message = str(caught.value)
        assert "\n" not in message
        assert [name for name in names if str(name) not in message] == [], message
        return message

    return one_line
