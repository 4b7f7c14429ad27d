"""Fixtures of the layouts' tests: random models of other libraries, captions, and the comparison with them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

TOLERANCE = 2e-5  # on embeddings and logits, in float32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: the models are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Randomise all weights of a peer's model, biases, norms and tokens too, which begin as zeros or ones."""

    @torch.no_grad()
    def randomise(model: nn.Module) -> nn.Module:
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(noise * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        return model.eval()

    return randomise


@pytest.fixture
def captions() -> Callable[..., Tensor]:
    """Return token ids (4, context) as a peer's tokenizer gives them: of 2, 4, context - 1 and context tokens."""

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
    """Return the largest differences from a peer's embeddings (N, E) and (M, E) and logits (N, M)."""

    @torch.no_grad()
    def differences(
        model: nn.Module, pixels: Tensor, ids: Tensor, expected: tuple[Tensor, Tensor, Tensor]
    ) -> dict[str, float]:
        image, text, scale, bias = model(pixels, ids)
        image, text = nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)
        logits = scale * image @ text.T + (0 if bias is None else bias)
        names = ("image", "text", "logits")
        pairs = zip(names, (image, text, logits), expected, strict=True)
        return {name: float((value - other).abs().max()) for name, value, other in pairs}

    return differences


@pytest.fixture
def compare(differences) -> Callable[..., None]:
    """Assert a peer's embeddings and logits; the embeddings of different images and texts must differ."""

    def compare(model: nn.Module, pixels: Tensor, ids: Tensor, expected: tuple[Tensor, Tensor, Tensor]) -> None:
        for name, difference in differences(model, pixels, ids, expected).items():
            assert difference <= TOLERANCE, name
        for rows in expected[:2]:
            assert float(torch.pdist(rows).min()) > 1000 * TOLERANCE

    return compare


@pytest.fixture
def one_line() -> Callable[..., str]:
    """Assert that an exception's message is one line that contains these names."""

    def one_line(caught: pytest.ExceptionInfo, *names: object) -> str:
        message = str(caught.value)
        assert "\n" not in message
        assert [name for name in names if str(name) not in message] == [], message
        return message

    return one_line
