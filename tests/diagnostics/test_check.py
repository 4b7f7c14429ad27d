"""The check before a run: findings on prepared data and models, and no side effects."""

import io
import random

import pytest
import torch
from PIL import Image

from miniclip.cli import main
from miniclip.data import Captions, Shapes
from miniclip.diagnostics.check import check
from miniclip.diagnostics.checks import captions as caption_checks
from miniclip.diagnostics.checks import images as image_checks
from miniclip.diagnostics.checks.images import sample_images
from miniclip.diagnostics.checks.overfit import MAX_PAIRS, select_pairs
from miniclip.diagnostics.findings import CheckReport, Finding
from miniclip.tokenizer import LibraryTokenizer
from miniclip.train import TrainConfig
from tests.diagnostics.test_doctor import IMAGES, SHAPES, Pairs
from tests.toys import make_model

CONFIG = TrainConfig(batch_size=8, lr=3e-3, precision="float32")
CAPTIONS = [[group[0]] for group in SHAPES.captions]


def severities(report):
    return {finding.name: finding.severity for finding in report.findings if finding.severity != "fine"}


def run_check(tokenizer, data, val=None, model=None, steps=1, **settings):
    """Run a check; by default with a single step of the overfit test."""
    config = TrainConfig(**{"batch_size": 8, "lr": 3e-3, "precision": "float32", **settings})
    return check(model or make_model(tokenizer), data, val, config, steps=steps)


def data_findings(report):
    return {name: severity for name, severity in severities(report).items() if name != "overfit test"}


def test_healthy_data_and_model_pass(tokenizer, train_data, val_data):
    report = run_check(tokenizer, train_data, val_data, steps=200)
    assert severities(report) == {}
    assert report.worst == "fine"
    assert "8 pairs, " in report["overfit test"].observation
    assert "30,000" not in str(report)
    assert str(report).endswith("14 fine")


def test_reports_repeated_truncated_and_empty_captions(tokenizer):
    captions = [["a star"]] * 5 + [["wide " * 100]] + [[""]] + CAPTIONS[7:]
    report = run_check(tokenizer, Pairs(IMAGES, captions))
    assert data_findings(report) == {
        "repeated captions": "warning",
        "truncated captions": "warning",
        "empty captions": "warning",
    }
    assert "the most frequent, 'a star', has 5 of 40 images" in report["repeated captions"].observation
    assert report["truncated captions"].observation.startswith(
        "1 of 40 are longer than the context of 77 tokens; the longest has "
    )
    assert "'wide wide " in report["truncated captions"].observation


def test_repeated_fraction_of_a_batch_matches_simulation(tokenizer):
    captions = [["a", "b"], ["a"], ["b", "c", "c"], ["d"], ["e", "a"]] * 4
    observation = run_check(tokenizer, Pairs(IMAGES[:20], captions), batch_size=3)["repeated captions"].observation
    rng, repeated = random.Random(0), 0
    for _ in range(20_000):
        batch = [rng.choice(rng.choice(captions)) for _ in range(3)]
        repeated += sum(batch.count(caption) > 1 for caption in batch)
    fraction = float(observation.split("in a batch of 3, ")[1].split("%")[0]) / 100
    assert fraction == pytest.approx(repeated / 60_000, abs=0.02)


def test_reports_unknown_tokens(tokenizer):
    words = {"[UNK]": 0, "a": 1, "star": 2, "[PAD]": 3}
    library = LibraryTokenizer(
        {"model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}, "pre_tokenizer": {"type": "Whitespace"}}
    )
    assert library.unknown_id == 0
    data = Pairs(IMAGES[:2], [["a star"], ["a zebra eats a star"]])
    findings = {finding.name: finding for finding in caption_checks.check_captions(data, library, 77, 2)}
    assert findings["unknown tokens"].severity == "warning"
    assert "2 of 7 tokens are unknown to the tokenizer; the worst caption: 'a zebra eats a star'" in (
        findings["unknown tokens"].observation
    )


def test_reports_unreadable_duplicate_blank_elongated_and_small_images(tokenizer, tmp_path):
    images = [*IMAGES[:20], IMAGES[3], Image.new("RGB", (16, 16), "red"), IMAGES[4].resize((80, 20))]
    images.append(IMAGES[5].resize((8, 8)))
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    (tmp_path / "broken é.png").write_bytes(paths[0].read_bytes()[:100])
    data = Captions([*paths, tmp_path / "broken é.png"], CAPTIONS[: len(paths) + 1])
    report = run_check(tokenizer, data)
    assert data_findings(report) == {
        "unreadable images": "error",
        "duplicate images": "note",
        "blank images": "note",
        "elongated images": "note",
        "small images": "note",
    }
    assert report.worst == "error"
    for name, expected in {
        "unreadable images": "broken é.png (",
        "duplicate images": "3.png = ",
        "blank images": "21.png",
        "elongated images": "22.png (80 x 20)",
        "small images": "23.png (8 x 8)",
    }.items():
        assert expected in report[name].observation
    assert run_check(tokenizer, data, on_error="skip")["unreadable images"].severity == "warning"


def test_reports_images_and_captions_shared_by_train_and_validation(tokenizer):
    val = Pairs(IMAGES[:3], [*CAPTIONS[:1], ["no such thing"], ["nor such"]])
    report = run_check(tokenizer, Pairs(IMAGES, CAPTIONS), val)
    assert data_findings(report) == {"shared images": "warning", "shared captions": "note"}
    assert report["shared images"].observation.startswith("3 validation images are in the training data: image 0")
    assert report["shared captions"].observation.startswith("1 of 3 ")


def test_reports_near_duplicates_at_another_size_and_quality(tokenizer):
    copies = []
    for image in IMAGES[:3]:
        file = io.BytesIO()
        image.resize((44, 44)).save(file, "JPEG", quality=60)
        copies.append(Image.open(file).convert("RGB"))
    blank = Image.new("RGB", (16, 16), "white")
    report = run_check(tokenizer, Pairs([*IMAGES, blank], [*CAPTIONS, ["blank"]]), Pairs([*copies, blank], [["x"]] * 4))
    assert report["near duplicates"].severity == "warning"
    assert report["near duplicates"].observation.startswith(
        "3 validation images are nearly the same as training images: image 0 = image 0"
    )


def test_large_datasets_are_sampled_and_the_report_states_it(tokenizer, monkeypatch):
    assert len(sample_images(SHAPES, limit=15).summaries) == 15
    with monkeypatch.context() as patch:
        patch.setattr(image_checks, "available_cores", lambda: 1)  # with many cores, the first round has all images
        assert 0 < len(sample_images(SHAPES, seconds=0).summaries) < 40
    names = {image.name for image in sample_images(SHAPES, limit=15).summaries}
    assert names != {f"image {i}" for i in range(15)}, "a random sample, not the first images"
    monkeypatch.setattr(caption_checks, "MAX_CAPTIONS", 10)
    report = run_check(tokenizer, SHAPES)
    assert "(sample of 10 from 200)" in report["truncated captions"].observation


def test_warns_if_a_batch_does_not_fit_into_memory(tokenizer, monkeypatch):
    monkeypatch.setattr("miniclip.diagnostics.checks.memory.free_bytes", lambda device: 1000)
    report = run_check(tokenizer, SHAPES)
    assert report["memory"].severity == "warning"
    assert "micro_batch_size auto" in report["memory"].advice
    assert run_check(tokenizer, SHAPES, micro_batch_size="auto")["memory"].severity == "fine"


class Blind(torch.nn.Module):
    """Image tower that ignores its input."""

    def __init__(self, tower):
        super().__init__()
        self.tower, self.patches = tower, tower.patches

    def forward(self, pixels, kept=None):
        return self.tower(torch.zeros_like(pixels), kept)


def test_model_that_ignores_images_fails_the_overfit_test(tokenizer):
    model = make_model(tokenizer)
    model.image = Blind(model.image)
    report = run_check(tokenizer, SHAPES, model=model, steps=10)
    finding = report["overfit test"]
    assert finding.severity == "error"
    assert "chance, to 2.0" in finding.observation
    assert "will learn nothing from more of them" in finding.meaning


@pytest.mark.parametrize(("lr", "word", "better"), [(0.1, "high", "lr 1.0e-02"), (5e-5, "low", "lr 5.0e-04")])
def test_suggests_a_better_learning_rate(tokenizer, lr, word, better):
    finding = run_check(tokenizer, SHAPES, steps=60, lr=lr)["overfit test"]
    assert finding.severity == "warning"
    assert f"is too {word}," in finding.meaning
    assert finding.advice.startswith(better)


def test_equal_captions_and_frozen_models_are_errors(tokenizer):
    assert "no two pairs" in run_check(tokenizer, Pairs(IMAGES, [["a star"]] * 40))["overfit test"].observation
    model = make_model(tokenizer).requires_grad_(False)
    assert "frozen" in run_check(tokenizer, SHAPES, model=model)["overfit test"].observation


def test_time_limit_gives_a_note(tokenizer):
    finding = check(make_model(tokenizer), SHAPES, None, CONFIG, steps=1000, seconds=1e-6)["overfit test"]
    assert finding.severity == "note"


def test_selected_pairs_have_different_captions(tokenizer):
    model = make_model(tokenizer)
    captions = (
        [["a star"]] * 20 + [[f"{'so ' * 90}{i}"] for i in range(10)] + CAPTIONS[30:]
    )  # ten are equal after truncation
    tokenizer._warned = False  # it warns once, maybe in an earlier test
    with pytest.warns(UserWarning, match="was cut"):
        pixels, tokens = select_pairs(model, Pairs(IMAGES, captions), TrainConfig(batch_size=100))
    assert len(pixels) == len(tokens) == 12
    assert len({tuple(row) for row in tokens.tolist()}) == 12
    assert MAX_PAIRS == 128


def test_check_does_not_change_the_run(start, train_data):
    plain, checked = start("plain"), start("checked")
    tokenizer = checked.model.tokenizer
    before, counted = torch.get_rng_state(), tokenizer.truncated
    weights = {name: value.clone() for name, value in checked.model.state_dict().items()}
    report = checked.check(steps=5)
    assert isinstance(report, CheckReport)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weights[name], value) for name, value in checked.model.state_dict().items())
    assert all(parameter.grad is None for parameter in checked.model.parameters())
    assert not checked.optimizer.state
    assert tokenizer.truncated == counted
    assert not checked.run_dir.exists()
    plain.fit()
    checked.fit()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, checked.model.state_dict()[name]), name


def test_report_text():
    report = CheckReport(
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


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(check.__kwdefaults__, "steps", 2)
    photos = tmp_path / "my photos"
    photos.mkdir()
    for i in range(12):
        Shapes("train", 12)[i][0].save(photos / f"{i}.png")
        (photos / f"{i}.txt").write_text(CAPTIONS[i][0])
    (photos / "3.png").write_bytes(b"not an image")
    code = main(["train", "--data", str(photos), "--check", "--device", "cpu", "--precision", "float32"])
    printed, error = capsys.readouterr()
    assert code == 1, error
    assert "3.png" in printed
    assert printed.endswith("fix the errors, then check again\n")
    assert not (tmp_path / "runs").exists()
