"""Captions, as strings, to embeddings: tokenizing and `encode_text` together, each library by the call its users make.

sentence-transformers puts texts in order by length before it cuts them into batches, as miniclip does; transformers and
open_clip take them as they come, 64 at a time.

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

from benchmarks import peers
from benchmarks.captions import english
from benchmarks.frame import OURS, Row, Scale, agree, in_turns
from miniclip import export
from miniclip.config import preset
from miniclip.hub import fresh
from miniclip.tokenizer import Tokenizer

Call = Callable[[list[str]], Tensor]
AT_ONCE = 64


def rows(scale: Scale) -> Iterator[Row]:
    torch.manual_seed(0)
    config = peers.smaller(preset("vit_b_16"), 1) if scale.small else preset("vit_b_16")
    ours = fresh(config.replace_image(layers=1)).eval().to(scale.device)
    ours.tokenizer = Tokenizer.load(open_clip.tokenizer.default_bpe())
    captions = english(16 if scale.small else 256, 1, list(ours.tokenizer.vocab))
    calls: dict[str, Call] = {OURS: partial(ours.encode_text, normalize=False)}
    for layout, makers in (
        ("open_clip", {"open_clip": by_open_clip}),
        ("transformers", {"transformers": by_transformers, "sentence-transformers": by_sentence_transformers}),
    ):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peers crop pictures otherwise; here are none
            export(ours, Path(folder), layout=layout)
            calls |= {name: make(Path(folder), scale.device) for name, make in makers.items()}
    worst = agree({name: call(captions).float().cpu() for name, call in calls.items()}, 1e-4, "encode_text of strings")
    timed = {name: partial(call, captions) for name, call in calls.items()}
    work = dict.fromkeys(timed, len(captions))
    # every text costs it the same, whatever the others are: some of them will do
    timed["open_clip"], work["open_clip"] = partial(calls["open_clip"], captions[:AT_ONCE]), min(AT_ONCE, len(captions))
    values = in_turns(timed, scale.rounds, work)
    reach = {"open_clip": 7.0} | {name: 2.7 for name in calls if name not in (OURS, "open_clip")}
    note = f"float32, tokenizing and all; they differ by {worst:.0e} at most"
    yield Row("encode_text", f"{len(captions)} captions, from strings", "texts/s", values, reach, note=note)


def by_open_clip(folder: Path, device: str) -> Call:
    tokenize = open_clip.tokenizer.SimpleTokenizer()
    contender = peers.open_clip(folder)
    contender.model.to(device)
    return lambda captions: contender.texts(tokenize(captions).to(device))


def by_transformers(folder: Path, device: str) -> Call:
    from transformers import AutoTokenizer, CLIPModel

    tokenize, model = AutoTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder).eval().to(device)

    @torch.no_grad()
    def call(captions: list[str]) -> Tensor:
        parts = [captions[i : i + AT_ONCE] for i in range(0, len(captions), AT_ONCE)]
        ready = (tokenize(part, padding=True, truncation=True, return_tensors="pt").to(device) for part in parts)
        return torch.cat([peers.features(model.get_text_features(**part)) for part in ready])

    return call


def by_sentence_transformers(folder: Path, device: str) -> Call:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device=device)
    return lambda captions: model.encode(captions, convert_to_tensor=True, show_progress_bar=False)
