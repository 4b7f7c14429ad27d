"""Speed from strings to embeddings: tokenizing and `encode_text`, by the usual call of each library.

sentence-transformers sorts texts by length before it makes batches, as miniclip does. transformers and open_clip get
them in the given order, 64 at a time.

python -m benchmarks strings
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import open_clip.tokenizer
import torch
from torch import Tensor

from benchmarks import baselines
from benchmarks.captions import english
from benchmarks.harness import MINICLIP, Row, Scale, interleaved, require_agreement
from miniclip import export
from miniclip.config import preset
from miniclip.hub import fresh
from miniclip.tokenizer import Tokenizer

Call = Callable[[list[str]], Tensor]
BATCH_SIZE = 64


def rows(scale: Scale) -> Iterator[Row]:
    torch.manual_seed(0)
    config = baselines.with_layers(preset("vit_b_16"), 1) if scale.small else preset("vit_b_16")
    model = fresh(config.replace_image(layers=1)).eval().to(scale.device)
    model.tokenizer = Tokenizer.load(open_clip.tokenizer.default_bpe())
    captions = english(16 if scale.small else 256, 1, list(model.tokenizer.vocab))
    calls: dict[str, Call] = {MINICLIP: partial(model.encode_text, normalize=False)}
    for layout, makers in (
        ("open_clip", {"open_clip": by_open_clip}),
        ("transformers", {"transformers": by_transformers, "sentence-transformers": by_sentence_transformers}),
    ):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about image preprocessing, which is not used here
            export(model, Path(folder), layout=layout)
            calls |= {name: make(Path(folder), scale.device) for name, make in makers.items()}
    worst = require_agreement(
        {name: call(captions).float().cpu() for name, call in calls.items()}, 1e-4, "encode_text of strings"
    )
    timed = {name: partial(call, captions) for name, call in calls.items()}
    work = dict.fromkeys(timed, len(captions))
    # every text costs open_clip the same, so a part of them is enough
    timed["open_clip"], work["open_clip"] = (
        partial(calls["open_clip"], captions[:BATCH_SIZE]),
        min(BATCH_SIZE, len(captions)),
    )
    values = interleaved(timed, scale.rounds, work)
    target = {"open_clip": 7.0} | {name: 2.7 for name in calls if name not in (MINICLIP, "open_clip")}
    note = f"float32, tokenizing included; embeddings differ by at most {worst:.0e}"
    yield Row("encode_text", f"{len(captions)} captions, from strings", "texts/s", values, target, note=note)


def by_open_clip(folder: Path, device: str) -> Call:
    tokenize = open_clip.tokenizer.SimpleTokenizer()
    contender = baselines.open_clip(folder)
    contender.model.to(device)
    return lambda captions: contender.texts(tokenize(captions).to(device))


def by_transformers(folder: Path, device: str) -> Call:
    from transformers import AutoTokenizer, CLIPModel

    tokenize, model = AutoTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder).eval().to(device)

    @torch.no_grad()
    def call(captions: list[str]) -> Tensor:
        batches = [captions[i : i + BATCH_SIZE] for i in range(0, len(captions), BATCH_SIZE)]
        inputs = (tokenize(batch, padding=True, truncation=True, return_tensors="pt").to(device) for batch in batches)
        return torch.cat([baselines.pooled_features(model.get_text_features(**batch)) for batch in inputs])

    return call


def by_sentence_transformers(folder: Path, device: str) -> Call:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device=device)
    return lambda captions: model.encode(captions, convert_to_tensor=True, show_progress_bar=False)
