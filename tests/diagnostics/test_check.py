"""The check: what it finds in data made to have it, what it says of a model that cannot learn, what it leaves alone."""

import random

import pytest
import torch
from PIL import Image

from miniclip.cli import main
from miniclip.data import Captions, Shapes
from miniclip.diagnostics import check_data
from miniclip.diagnostics.check import PAIRS, Report, check, few_pairs
from miniclip.diagnostics.check_data import Finding, look_at
from miniclip.tokenizer import LibraryTokenizer
from miniclip.train import TrainConfig
from tests.diagnostics.test_doctor import PICTURES, SHAPES, Pairs
from tests.toys import make_model

CONFIG = TrainConfig(batch_size=8, lr=3e-3, precision="float32")
CAPTIONS = [[own[0]] for own in SHAPES.captions]


def severities(report):
    return {finding.name: finding.severity for finding in report.findings if finding.severity != "fine"}


def checked(tokenizer, data, val=None, model=None, steps=1, **settings):
    """A check; by default without the steps that it takes to overfit."""
    config = TrainConfig(**{"batch_size": 8, "lr": 3e-3, "precision": "float32", **settings})
    return check(model or make_model(tokenizer), data, val, config, steps=steps)


def data_findings(report):
    return {name: severity for name, severity in severities(report).items() if name != "learning by heart"}


def test_a_healthy_set_and_model(tokenizer, train_data, val_data):
    report = checked(tokenizer, train_data, val_data, steps=200)
    assert severities(report) == {}
    assert report.worst == "fine"
    assert "8 pairs, " in report["learning by heart"].what
    assert "30,000" not in str(report)
    assert str(report).endswith("13 fine")


def test_captions_that_are_doubled_cut_or_empty(tokenizer):
    captions = [["a star"]] * 5 + [["wide " * 100]] + [[""]] + CAPTIONS[7:]
    report = checked(tokenizer, Pairs(PICTURES, captions))
    assert data_findings(report) == {
        "repeated captions": "warning",
        "captions cut": "warning",
        "empty captions": "warning",
    }
    assert "the most frequent, 'a star', has 5 of 40 pictures" in report["repeated captions"].what
    assert report["captions cut"].what.startswith("1 of 40 are longer than the context of 77 tokens; the longest has ")
    assert "'wide wide " in report["captions cut"].what


def test_the_share_of_a_batch_that_repeats_is_what_drawing_gives(tokenizer):
    captions = [["a", "b"], ["a"], ["b", "c", "c"], ["d"], ["e", "a"]] * 4
    what = checked(tokenizer, Pairs(PICTURES[:20], captions), batch_size=3)["repeated captions"].what
    rng, repeated = random.Random(0), 0
    for _ in range(20_000):
        batch = [rng.choice(rng.choice(captions)) for _ in range(3)]
        repeated += sum(batch.count(caption) > 1 for caption in batch)
    said = float(what.split("in a batch of 3 ")[1].split("%")[0]) / 100
    assert said == pytest.approx(repeated / 60_000, abs=0.02)


def test_tokens_that_the_tokenizer_does_not_know(tokenizer):
    words = {"[UNK]": 0, "a": 1, "star": 2, "[PAD]": 3}
    library = LibraryTokenizer(
        {"model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}, "pre_tokenizer": {"type": "Whitespace"}}
    )
    assert library.unknown_id == 0
    data = Pairs(PICTURES[:2], [["a star"], ["a zebra eats a star"]])
    found = {finding.name: finding for finding in check_data.check_captions(data, library, 77, 2)}
    assert found["unknown tokens"].severity == "warning"
    assert "2 of 7 tokens are unknown to the tokenizer; the most in one: 'a zebra eats a star'" in (
        found["unknown tokens"].what
    )


def test_pictures_that_are_unreadable_doubled_blank_long_or_small(tokenizer, tmp_path):
    pictures = [*PICTURES[:20], PICTURES[3], Image.new("RGB", (16, 16), "red"), PICTURES[4].resize((80, 20))]
    pictures.append(PICTURES[5].resize((8, 8)))
    paths = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    (tmp_path / "broken é.png").write_bytes(paths[0].read_bytes()[:100])
    data = Captions([*paths, tmp_path / "broken é.png"], CAPTIONS[: len(paths) + 1])
    report = checked(tokenizer, data)
    assert data_findings(report) == {
        "unreadable pictures": "error",
        "doubled pictures": "note",
        "blank pictures": "note",
        "long pictures": "note",
        "small pictures": "note",
    }
    assert report.worst == "error"
    for name, expected in {
        "unreadable pictures": "broken é.png (",
        "doubled pictures": "3.png = ",
        "blank pictures": "21.png",
        "long pictures": "22.png (80 x 20)",
        "small pictures": "23.png (8 x 8)",
    }.items():
        assert expected in report[name].what
    assert checked(tokenizer, data, on_error="skip")["unreadable pictures"].severity == "warning"


def test_pictures_and_captions_of_both_sets(tokenizer):
    val = Pairs(PICTURES[:3], [*CAPTIONS[:1], ["no such thing"], ["nor such"]])
    report = checked(tokenizer, Pairs(PICTURES, CAPTIONS), val)
    assert data_findings(report) == {"pictures of both sets": "warning", "captions of both sets": "note"}
    assert report["pictures of both sets"].what.startswith("3 validation pictures are in the training data: picture 0")
    assert report["captions of both sets"].what.startswith("1 of 3 ")


def test_a_large_set_is_looked_at_in_part_and_says_so(tokenizer, monkeypatch):
    assert len(look_at(SHAPES, most=15).seen) == 15
    assert 0 < len(look_at(SHAPES, seconds=0).seen) < 40
    names = {picture.name for picture in look_at(SHAPES, most=15).seen}
    assert names != {f"picture {i}" for i in range(15)}, "from all over the set"
    monkeypatch.setattr(check_data, "CAPTIONS", 10)
    report = checked(tokenizer, SHAPES)
    assert "(of 10 captions looked at, 200 in all)" in report["captions cut"].what


def test_a_batch_that_does_not_fit(tokenizer, monkeypatch):
    monkeypatch.setattr("miniclip.diagnostics.check.free_bytes", lambda device: 1000)
    report = checked(tokenizer, SHAPES)
    assert report["memory"].severity == "warning"
    assert "micro_batch_size auto" in report["memory"].advice
    assert checked(tokenizer, SHAPES, micro_batch_size="auto")["memory"].severity == "fine"


class Deaf(torch.nn.Module):
    """An image tower that does not look."""

    def __init__(self, tower):
        super().__init__()
        self.tower, self.patches = tower, tower.patches

    def forward(self, pixels, kept=None):
        return self.tower(torch.zeros_like(pixels), kept)


def test_a_model_that_cannot_learn(tokenizer):
    model = make_model(tokenizer)
    model.image = Deaf(model.image)
    report = checked(tokenizer, SHAPES, model=model, steps=10)
    found = report["learning by heart"]
    assert found.severity == "error"
    assert "knowing nothing, to 2.0" in found.what
    assert "will learn nothing from more of them" in found.meaning


@pytest.mark.parametrize(("lr", "word", "better"), [(0.1, "high", "lr 1.0e-02"), (5e-5, "low", "lr 5.0e-04")])
def test_a_learning_rate_that_is_too_high_or_too_low(tokenizer, lr, word, better):
    found = checked(tokenizer, SHAPES, steps=60, lr=lr)["learning by heart"]
    assert found.severity == "warning"
    assert f"is too {word} for it" in found.meaning
    assert found.advice.startswith(better)


def test_nothing_to_learn_and_nobody_to_learn_it(tokenizer):
    assert "no two pairs" in checked(tokenizer, Pairs(PICTURES, [["a star"]] * 40))["learning by heart"].what
    model = make_model(tokenizer).requires_grad_(False)
    assert "frozen" in checked(tokenizer, SHAPES, model=model)["learning by heart"].what


def test_too_little_time_is_no_verdict(tokenizer):
    found = check(make_model(tokenizer), SHAPES, None, CONFIG, steps=1000, seconds=1e-6)["learning by heart"]
    assert found.severity == "note"


def test_pairs_to_overfit_have_different_captions(tokenizer):
    model = make_model(tokenizer)
    captions = [["a star"]] * 20 + [[f"{'so ' * 90}{i}"] for i in range(10)] + CAPTIONS[30:]  # ten are cut alike
    tokenizer._warned = False  # it says it once, maybe in an earlier test
    with pytest.warns(UserWarning, match="was cut"):
        pixels, tokens = few_pairs(model, Pairs(PICTURES, captions), TrainConfig(batch_size=100))
    assert len(pixels) == len(tokens) == 12
    assert len({tuple(row) for row in tokens.tolist()}) == 12
    assert PAIRS == 128


def test_the_run_is_left_as_it_is_to_the_bit(start, train_data):
    plain, looked_at = start("plain"), start("checked")
    tokenizer = looked_at.model.tokenizer
    before, counted = torch.get_rng_state(), tokenizer.truncated
    weights = {name: value.clone() for name, value in looked_at.model.state_dict().items()}
    report = looked_at.check(steps=5)
    assert isinstance(report, Report)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weights[name], value) for name, value in looked_at.model.state_dict().items())
    assert all(parameter.grad is None for parameter in looked_at.model.parameters())
    assert not looked_at.optimizer.state
    assert tokenizer.truncated == counted
    assert not looked_at.run_dir.exists()
    plain.fit()
    looked_at.fit()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, looked_at.model.state_dict()[name]), name


def test_a_report_in_words():
    report = Report(
        (Finding("a", "fine", "all well"), Finding("b", "warning", "bad " * 40, "it means this", "that may help"))
    )
    lines = str(report).splitlines()
    assert lines[0] == "fine     a: all well"
    assert "         means: it means this" in lines
    assert "         try:   that may help" in lines
    assert lines[-1] == "1 warning, 1 fine"
    assert max(map(len, lines)) <= 100
    with pytest.raises(KeyError):
        report["c"]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(check.__kwdefaults__, "steps", 2)
    photos = tmp_path / "my photos"
    photos.mkdir()
    for i in range(12):
        Shapes("train", 12)[i][0].save(photos / f"{i}.png")
        (photos / f"{i}.txt").write_text(CAPTIONS[i][0])
    (photos / "3.png").write_bytes(b"no picture")
    code = main(["train", "--data", str(photos), "--check", "--device", "cpu", "--precision", "float32"])
    printed, error = capsys.readouterr()
    assert code == 1, error
    assert "3.png" in printed
    assert printed.endswith("mend the errors, then check again\n")
    assert not (tmp_path / "runs").exists()
