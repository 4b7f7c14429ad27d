"""Collectives of several ranks, and their joint exit. The file also holds the functions of the ranks."""

import json
import time
from pathlib import Path

import pytest
import torch

from miniclip.runtime import distributed

SIZES = {2: (3, 1), 4: (2, 0, 3, 1)}  # rows of each rank


@pytest.mark.parametrize("n", [0, 1, 3, 4, 10, 11])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_rank_slices_cover_all_rows_evenly(monkeypatch, n, count):
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    slices = [distributed.rank_slice(n, which) for which in range(count)]
    assert [i for rows in slices for i in range(n)[rows]] == list(range(n))
    lengths = [len(range(n)[rows]) for rows in slices]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_rank_slice_example(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    slices = [distributed.rank_slice(10, which) for which in range(4)]
    assert slices == [slice(0, 3), slice(3, 6), slice(6, 8), slice(8, 10)]


def test_a_single_process_communicates_nothing():
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.all_gather(x) is x
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
    assert distributed.on_main(lambda: 5) == 5
    assert distributed.rank_slice(7) == slice(0, 7)
    with distributed.process_group():
        assert distributed.world_size() == 1
    with pytest.raises(ValueError, match="local error"), distributed.process_group():
        raise ValueError("local error")


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1"}, {"RANK": None}])
def test_a_single_process_has_no_group(monkeypatch, variables):
    environment = dict.fromkeys(distributed.VARIABLES, "1") | ({"WORLD_SIZE": "2"} if variables else {})
    for name, value in ({} if not variables else environment | variables).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    distributed.init("cpu")
    assert distributed.world_size() == 1


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    for name, value in {**dict.fromkeys(distributed.VARIABLES, "1"), "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"has 2 GPUs, and rank 1 would need number 3: .*--nproc-per-node 2"):
        distributed.init()


def test_buckets(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 40)
    tensors = [torch.zeros(n) for n in (4, 6, 1, 20, 2)] + [torch.zeros(1).double(), torch.zeros(2).double()]
    sizes = [[t.numel() for t in bucket] for bucket in distributed._buckets(tensors)]
    assert sizes == [[4, 6], [1], [20], [2], [1, 2]]


def work(folder: Path) -> None:
    """Run all collectives on this rank, and save the results."""
    with distributed.process_group("cpu"):
        rank, count = distributed.rank(), distributed.world_size()
        out = {"numbers": distributed.all_gather_ints([rank, 10 * rank])}
        out["any"] = [distributed.any_rank(flag) for flag in (False, rank == count - 1, True)]
        out["main"] = distributed.on_main(lambda: (Path("a"), rank))
        try:
            distributed.on_main(lambda: (Path("a") / "b" / str(rank)).read_text())
        except FileNotFoundError as error:
            out["error"] = str(error)

        rows = torch.arange(sum(SIZES[count]) * 2.0, dtype=torch.float64).view(-1, 2)
        start = sum(SIZES[count][:rank])
        local = rows[start : start + SIZES[count][rank]].clone().requires_grad_()
        gathered = distributed.all_gather(local)
        (gathered.sin().cumsum(0) * (rank + 1)).sum().backward()  # the loss differs between ranks by a factor
        out["gathered"], out["gradient"] = gathered.detach(), local.grad
        out["integers"] = distributed.all_gather(torch.full((SIZES[count][rank],), rank))

        distributed.BUCKET_BYTES = 100
        parameters = [torch.full((n,), float(rank), requires_grad=True) for n in (3, 30, 2, 5)]
        for factor, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, (rank + 1.0) * (factor + 1))
        parameters[2].grad = None
        distributed.average_gradients(parameters)
        out["means"] = [p.grad for p in parameters]

        model = torch.nn.BatchNorm1d(3)
        torch.nn.init.constant_(model.weight, rank + 5.0)
        model.running_mean.fill_(rank + 7.0)
        distributed.broadcast_weights(model)
        out["copied"] = [model.weight.detach(), model.running_mean, model.weight.requires_grad]

        if rank == count - 1:  # the others must wait for the last
            time.sleep(0.3)
        out["before barrier"] = time.time()
        distributed.barrier()
        out["after barrier"] = time.time()
        torch.save(out, folder / f"{rank}.pt")


def fail(folder: Path) -> None:
    """The last rank fails; the others wait for it in a collective."""
    with distributed.process_group("cpu"):
        if distributed.rank() == distributed.world_size() - 1:
            raise ValueError("the learning rate is a banana")
        distributed.all_reduce(torch.ones(1))


def leave_early(folder: Path) -> None:
    """Rank 0 is done at once; rank 1 takes half a second, and rank 0 must wait for it."""
    with distributed.process_group("cpu"):
        rank = distributed.rank()
        time.sleep(rank / 2)
        done = time.time()
    (folder / str(rank)).write_text(json.dumps([done, time.time()]))


@pytest.fixture(scope="module")
def results():
    return {}


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.slow)])
def outputs(request, results, ranks, tmp_path):
    if request.param not in results:
        ranks(request.param, work, tmp_path, seconds=60)
        results[request.param] = [
            torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(request.param)
        ]
    return results[request.param]


def test_numbers_and_objects(outputs):
    for out in outputs:
        assert out["numbers"] == [[rank, 10 * rank] for rank in range(len(outputs))]
        assert out["any"] == [False, True, True]
        assert out["main"] == (Path("a"), 0)
        assert "a/b/0" in out["error"]


def test_all_gather_with_gradient(outputs):
    sizes = SIZES[len(outputs)]
    rows = torch.arange(sum(sizes) * 2.0, dtype=torch.float64).view(-1, 2).requires_grad_()
    rows.sin().cumsum(0).sum().backward()
    expected = rows.grad * sum(range(1, len(outputs) + 1))  # gradient of the sum of all ranks' losses
    for out, gradient in zip(outputs, expected.split(sizes), strict=True):
        assert torch.equal(out["gathered"], rows.detach())
        torch.testing.assert_close(out["gradient"], gradient, rtol=1e-12, atol=0)
        assert out["integers"].tolist() == [rank for rank, n in enumerate(sizes) for _ in range(n)]


def test_gradients_are_averaged_and_missing_ones_stay_none(outputs):
    mean = sum(range(1, len(outputs) + 1)) / len(outputs)
    for out in outputs:
        assert [None if g is None else set(g.tolist()) for g in out["means"]] == [{mean}, {2 * mean}, None, {4 * mean}]


def test_weights_and_buffers_are_copied_from_rank_0(outputs):
    for out in outputs:
        weight, mean, requires_grad = out["copied"]
        assert set(weight.tolist()) == {5.0}
        assert set(mean.tolist()) == {7.0}
        assert requires_grad


def test_barrier(outputs):
    assert min(out["after barrier"] for out in outputs) >= max(out["before barrier"] for out in outputs)


@pytest.mark.slow
def test_a_failure_is_printed_once_and_ends_all_ranks(ranks, tmp_path):
    results = ranks(2, fail, tmp_path, seconds=60, succeed=False)
    assert [code for code, *_ in results] == [1, 1]
    assert "the learning rate is a banana" in results[1][2]
    assert results[0][2] == ""


@pytest.mark.slow
def test_ranks_leave_together(ranks, tmp_path):
    ranks(2, leave_early, tmp_path, seconds=60)
    (_, left), (done, _) = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert left >= done, "rank 0 left before rank 1 was done"
