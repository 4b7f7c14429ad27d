"""The step and the encoders where tensors have no data: none is on another device, and no value is read.

Reading a value waits for a GPU. Fake tensors on "cuda" refuse both, but have no backward pass without a GPU. Tensors on
"meta" have one, and refuse most of it.
"""

from contextlib import nullcontext

import pytest
import torch

from miniclip import contrastive_loss, sigmoid_loss
from miniclip.config import CLIPConfig, ImageConfig, TextConfig
from miniclip.data.augmentation import Augment
from miniclip.data.loader import Batch
from miniclip.evaluation.retrieval import Embeddings, ranks_of
from miniclip.explanation.relevance import METHODS, image_relevance, text_relevance
from miniclip.fast import patches
from miniclip.inference.model import CLIPModel
from miniclip.losses import on_gpu
from miniclip.runs.nonfinite import finite_rows
from miniclip.train import TrainConfig
from miniclip.train.ema import EMA
from miniclip.train.gradient_caching import cached_step
from miniclip.train.optimizer import build_optimizer
from miniclip.train.step import Inputs, update
from miniclip.train.step_arguments import loss_function, step_options
from tests.fake_gpu import fake_gpu
from tests.toys import IMAGE_KINDS, TEXT_KINDS

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
CONTEXT = 9


def make_model(device, image="class", text="bert"):
    image_config = ImageConfig(16, 8, 16, 1, 2, **IMAGE_KINDS[image])
    text_config = TextConfig(CONTEXT, 600, 16, 1, 2, **TEXT_KINDS[text])
    with device:
        return CLIPModel(CLIPConfig(image_config, text_config, 16, logit_scale=10.0, logit_bias=-10.0))


def random_inputs(device, size, captions=1):
    pixels = torch.empty(size, 3, 16, 16, device=device)
    return Inputs(pixels, torch.zeros(size * captions, CONTEXT, dtype=torch.int64, device=device))


def loss_of_batch(model, config, size):
    """The trainer's loss of a batch that the loader has left on the CPU."""
    rows, tokens = torch.arange(size), torch.zeros(size * config.captions_per_image, CONTEXT, dtype=torch.int64)
    return loss_function(config, model).for_batch(Batch(torch.empty(size, 3, 16, 16), tokens, rows, rows, rows))


@pytest.mark.parametrize(
    ("image", "text", "settings"),
    [
        ("class", "causal", {"precision": "bfloat16"}),
        ("attention", "bert", {"precision": "float32", "loss": "sigmoid", "captions_per_image": 2}),
    ],
)
def test_a_step_keeps_to_its_gpu_and_reads_nothing(image, text, settings):
    """With gradients that are given."""
    with fake_gpu():
        model, config = make_model(CUDA, image, text), TrainConfig(**settings)
        options, optimizer, ema = step_options(config, CUDA), build_optimizer(model, config), EMA(model, 0.9)
        inputs = random_inputs(CUDA, 6, config.captions_per_image)
        pixels = Augment(0.5, 10.0, flip=True, color_jitter=0.3).apply(inputs.pixels.byte(), torch.empty(6, 9))
        with options.autocast():
            output = model(*inputs._replace(pixels=pixels))
        loss = loss_of_batch(model, config, 6)(output)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        result = update(model, optimizer, loss, output, options)
        ema.update(model, 1)
        values = [*result.metrics.values(), finite_rows(result.output), *ema.values.values()]
        assert {value.device.type for value in values} == {"cuda"}
        assert str(output.text_embeddings.dtype).removeprefix("torch.") == config.precision
        assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    "options", [{}, {"chunk_size": 4}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "chunk_size": 4}], ids=str
)
def test_losses_take_ids_from_the_cpu_and_read_nothing(options):
    with fake_gpu():
        pairs, ids = torch.empty(2, 6, 4, device=CUDA).unbind(), torch.arange(6)
        for labels in ({"ids": ids}, {"ids": ids, "text_ids": ids}):
            losses = [
                loss(*pairs, *numbers, **labels, **options)
                for loss, *numbers in ((contrastive_loss, 9.0), (sigmoid_loss, 9.0, -9.0))
            ]
            assert {loss.device.type for loss in losses} == {"cuda"}


def test_encoded_texts_and_ranks_keep_to_their_gpu_and_read_nothing():
    with fake_gpu():
        model = make_model(CUDA, text="causal").eval()
        texts = model.text.forward_shared(random_inputs(CUDA, 3).tokens, 2)
        ranks = ranks_of(Embeddings(texts, texts, torch.arange(3, device=CUDA)))
        assert {rank.device.type for rank in ranks.values()} == {"cuda"}


class Recorder:
    """Optimizer that takes no step."""

    defaults, param_groups = {"fused": True}, ()

    def __init__(self, model):
        self.step, self.zero_grad = nullcontext, model.zero_grad


@pytest.fixture
def on_meta(monkeypatch):
    """Let autocast, and the patches of a GPU, take the device "meta"."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(patches, "DEVICES", ("meta",))


@pytest.mark.parametrize("settings", [{}, {"captions_per_image": 2, "label_smoothing": 0.1}], ids=str)
def test_the_backward_pass_of_gradient_caching_reads_nothing(on_meta, settings):
    model, config = make_model(META), TrainConfig(precision="float32", **settings)
    parts = [random_inputs(META, size, config.captions_per_image) for size in (3, 2)]
    result = cached_step(model, Recorder(model), parts, loss_of_batch(model, config, 5), step_options(config, CPU))
    assert {value.device.type for value in result.metrics.values()} == {"meta"}


@pytest.mark.parametrize("function", [on_gpu.Contrastive, on_gpu.Sigmoid])
def test_the_backward_pass_of_the_losses_on_a_gpu_reads_nothing(on_meta, function):
    sides, ids = torch.empty(2, 5, 4, device=META).unbind(), torch.arange(5, device=META)
    numbers = [torch.empty((), device=META) for _ in range(1 + (function is on_gpu.Sigmoid))]
    leaves = [leaf.requires_grad_() for leaf in (*sides, *numbers)]
    function.apply(*leaves[:2], ids, 2, *leaves[2:]).backward()
    assert [leaf.grad.shape for leaf in leaves] == [leaf.shape for leaf in leaves]


@pytest.mark.parametrize("method", METHODS)
def test_explanations_read_nothing(method):
    model, others = make_model(META, image="mean"), torch.empty(2, 16, device=META)
    pixels, tokens, _ = random_inputs(META, 2)
    assert image_relevance(model.image, pixels, others, method).shape == (2, 4)
    assert text_relevance(model.text, tokens, tokens > 0, others, method).shape == tokens.shape


def test_encoders_read_only_their_inputs(toy_config, toy_tokenizer, on_meta):
    with META:
        model = CLIPModel(toy_config, toy_tokenizer).eval()
    captions = ["a dog", "a red circle above a blue square", "a dog"]
    for texts in (captions, toy_tokenizer(captions)):
        assert model.encode_text(texts, batch_size=2).device.type == "meta"
    for images in (torch.zeros(3, 3, 16, 16), torch.zeros(3, 3, 16, 16, dtype=torch.uint8)):
        assert model.encode_image(images, batch_size=2).device.type == "meta"
