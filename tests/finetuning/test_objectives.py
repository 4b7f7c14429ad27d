"""Objectives: values against plain formulas, gradients, and runs that resume bit for bit."""

import json
import math
import shutil

import pytest
import torch
from torch.autograd import gradcheck

import miniclip
from miniclip.data import Shapes
from miniclip.errors import CheckpointError
from miniclip.finetuning.anchoring import START, TEACHER
from miniclip.finetuning.objectives import cosine_distance, distillation, relative_distance
from miniclip.runs.metrics_file import MetricsFile
from miniclip.runs.state import read_state
from miniclip.runtime import distributed
from miniclip.tokenizer import Tokenizer
from miniclip.train import TrainConfig, Trainer
from tests.toys import StopAt, make_model


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_distillation_is_the_divergence_of_both_softmaxes():
    images, texts, teacher_images, teacher_texts = random(3, 4), random(3, 4), random(3, 5), random(3, 5)
    scale, teacher_scale = 7.0, 3.0

    def distributions(x, y, factor, dim):
        cosines = [[float(torch.cosine_similarity(a, b, dim=0)) for b in y] for a in x]
        return (factor * torch.tensor(cosines, dtype=torch.float64)).softmax(dim)

    expected = 0.0
    for dim in (0, 1):
        p, q = (
            distributions(teacher_images, teacher_texts, teacher_scale, dim),
            distributions(images, texts, scale, dim),
        )
        expected += float((p * (p / q).log()).sum()) / 6
    value = distillation((images, texts, torch.tensor(scale)), (teacher_images, teacher_texts, teacher_scale))
    assert float(value) == pytest.approx(expected)
    same = distillation((images, texts, torch.tensor(scale)), (2 * images, 3 * texts, scale))
    assert float(same) == pytest.approx(0.0, abs=1e-12)


def test_gradients():
    images, texts, scale = (x.requires_grad_() for x in (random(3, 4), random(3, 4), random(()).exp()))
    teacher = random(3, 5), random(3, 5), 3.0
    assert gradcheck(lambda *student: distillation(student, teacher), (images, texts, scale))
    assert gradcheck(lambda x: cosine_distance(x, texts.detach()), (images,))
    weight, start = random(2, 3).requires_grad_(), random(2, 3)
    relative_distance([weight], [start]).backward()
    torch.testing.assert_close(
        weight.grad.double(), 2 * (weight.detach() - start) / start.square().sum(), rtol=1e-5, atol=0
    )


def test_distances():
    x, y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, -3.0]])
    assert float(cosine_distance(x, y)) == pytest.approx((1 - math.sqrt(0.5) + 2) / 2)
    starts = [torch.tensor([3.0]), torch.tensor([[4.0, 0.0]])]
    assert float(relative_distance([x + 0.5 for x in starts], starts)) == pytest.approx(0.75 / 25)


@pytest.fixture
def teacher(tmp_path, tokenizer):
    model = make_model(tokenizer, embed_dim=24)
    miniclip.save(model, tmp_path / "teacher")
    return str(tmp_path / "teacher")


def all_objectives(teacher):
    return {"teacher": teacher, "distillation": 1.0, "anchor_weights": 3.0, "anchor_embeddings": 2.0}


def test_runs_resume_bit_for_bit(start, train_data, val_data, teacher):
    settings = all_objectives(teacher)
    whole, stopped = (start(run, [MetricsFile()], **settings, save_every=3) for run in ("whole", "stopped"))
    whole.fit()
    stopped.callbacks.append(StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    again = Trainer.resume(stopped.run_dir, train_data, val_data, device="cpu", callbacks=[MetricsFile()])
    assert 0 < again.step < 10
    again.fit()
    first, second = (read_state(trainer.run_dir / "state.safetensors") for trainer in (whole, again))
    assert all(torch.equal(first.weights[name], value) for name, value in second.weights.items())
    assert [r["loss"] for r in again.history.steps] == [r["loss"] for r in whole.history.steps]


def test_micro_batches_change_nothing(start, teacher):
    runs = [start(f"{micro}", [], **all_objectives(teacher), epochs=1, micro_batch_size=micro) for micro in (None, 3)]
    for run in runs:
        run.fit()
    for a, b in zip(runs[0].history.steps, runs[1].history.steps, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


def test_objectives_keep_the_model_near_the_other_one(start, train_data, teacher):
    """Each weight reduces its own distance; both anchors start at 0, where the loss is that of a run without them."""
    plain = start("plain", [], min_crop_area=1.0)
    before = {name: weight.clone() for name, weight in plain.model.state_dict().items()}
    plain.fit()
    for objective in ("anchor_weights", "anchor_embeddings"):
        run = start(objective, [], min_crop_area=1.0, **{objective: 30.0})
        run.fit()
        assert run.history.steps[0]["loss"] == pytest.approx(plain.history.steps[0]["loss"], rel=1e-6)
        moved, moved_freely = (
            sum(float((weight - before[name]).square().sum()) for name, weight in model.state_dict().items())
            for model in (run.model, plain.model)
        )
        assert moved < moved_freely


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "vit_b_32"}, "teacher is vit_b_32, and distillation is not given"),
        ({"distillation": 1.0}, "distillation is 1.0, and teacher is not given"),
        ({"anchor_embeddings": 1.0, "flip": True, "swap_left_right": True}, "left and right exchanged would stay near"),
        ({"anchor_weights": 1.0, "tune_image": "lora"}, r"image.blocks.0.attention.qkv.lora_A is an adapter"),
        ({"anchor_weights": 1.0, "fsdp": True}, "anchor_weights does not work with fsdp"),
    ],
)
def test_objectives_that_cannot_be_computed_are_refused(start, settings, message):
    with pytest.raises(ValueError, match=message):
        start(**settings)


def test_resume_without_the_starting_weights_or_with_another_teacher_is_refused(
    start, train_data, val_data, teacher, tokenizer
):
    trainer = start("run", [MetricsFile()], **all_objectives(teacher), epochs=1)
    trainer.fit()
    miniclip.save(make_model(tokenizer, embed_dim=8), teacher, overwrite=True)
    with pytest.raises(ValueError, match=r"whose weights or tokenizer are not those of .* now"):
        Trainer.resume(trainer.run_dir, train_data, val_data)
    (trainer.run_dir / TEACHER).unlink()
    (trainer.run_dir / START).unlink()
    with pytest.raises(CheckpointError, match=r"start.safetensors: not found"):
        Trainer.resume(trainer.run_dir, train_data, val_data)


def rank_run(folder):
    """Train with all objectives and with a frozen text tower that is encoded once."""
    with distributed.process_group("cpu"):
        data = Shapes("train", 30, image_size=16)
        tokenizer = Tokenizer.train([caption for group in data.captions for caption in group], 600)
        model = make_model(tokenizer)
        model.text.requires_grad_(False)
        if distributed.is_main():
            miniclip.save(make_model(tokenizer, embed_dim=8), folder / "teacher")
        distributed.barrier()
        settings = all_objectives(str(folder / "teacher")) | {"cache_frozen": True}
        config = TrainConfig(epochs=1, batch_size=9, precision="float32", **settings)
        run_dir = folder / f"run-{distributed.world_size()}"
        trainer = Trainer(model, data, config=config, run_dir=run_dir, callbacks=[], device="cpu")
        trainer.fit()
        losses = [[record["loss"], record["grad_norm"]] for record in trainer.history.steps]
        (folder / f"{distributed.world_size()}-{distributed.rank()}.json").write_text(json.dumps(losses))


def test_ranks_compute_the_step_of_one_process(ranks, tmp_path):
    ranks(2, rank_run, tmp_path)
    shutil.rmtree(tmp_path / "teacher")
    rank_run(tmp_path)
    expected, *others = (json.loads((tmp_path / name).read_text()) for name in ("1-0.json", "2-0.json", "2-1.json"))
    for other in others:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(expected), rtol=1e-5, atol=0)
