"""Ranks: what they exchange, and that none is left waiting. The file is also the program that each rank runs."""

import sys
import time
from pathlib import Path

import pytest
import torch

from miniclip.runtime import distributed

SIZES = {2: (3, 1), 4: (2, 0, 3, 1)}  # rows of each rank


@pytest.mark.parametrize("n", [0, 1, 3, 4, 10, 11])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_parts_are_all_rows_once_and_nearly_even(monkeypatch, n, count):
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    parts = [distributed.part(n, which) for which in range(count)]
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    lengths = [len(range(n)[part]) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_the_example_of_its_docstring(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    assert [distributed.part(10, which) for which in range(4)] == [slice(0, 3), slice(3, 6), slice(6, 8), slice(8, 10)]


def test_one_process_exchanges_nothing():
    x = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(x) is x
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
    assert distributed.on_main(lambda: 5) == 5
    assert distributed.part(7) == slice(0, 7)
    with distributed.ranks():
        assert distributed.world_size() == 1
    with pytest.raises(ValueError, match="mine"), distributed.ranks():
        raise ValueError("mine")


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1"}, {"RANK": None}])
def test_a_process_of_its_own_joins_nobody(monkeypatch, variables):
    environment = dict.fromkeys(distributed.VARIABLES, "1") | ({"WORLD_SIZE": "2"} if variables else {})
    for name, value in ({} if not variables else environment | variables).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    distributed.start("cpu")
    assert distributed.world_size() == 1


def test_more_ranks_than_gpus(monkeypatch):
    for name, value in {**dict.fromkeys(distributed.VARIABLES, "1"), "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"has 2 GPUs, and rank 1 would need number 3: .*--nproc-per-node 2"):
        distributed.start()


def test_buckets(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 40)
    tensors = [torch.zeros(n) for n in (4, 6, 1, 20, 2)] + [torch.zeros(1).double(), torch.zeros(2).double()]
    sizes = [[t.numel() for t in bucket] for bucket in distributed._buckets(tensors)]
    assert sizes == [[4, 6], [1], [20], [2], [1, 2]]


def work(folder: Path) -> None:
    """A rank's part of the tests below."""
    with distributed.ranks("cpu"):
        me, count = distributed.rank(), distributed.world_size()
        out = {"numbers": distributed.all_ranks([me, 10 * me])}
        out["any"] = [distributed.any_rank(flag) for flag in (False, me == count - 1, True)]
        out["main"] = distributed.on_main(lambda: (Path("a"), me))
        try:
            distributed.on_main(lambda: (Path("a") / "b" / str(me)).read_text())
        except FileNotFoundError as error:
            out["error"] = str(error)

        rows = torch.arange(sum(SIZES[count]) * 2.0, dtype=torch.float64).view(-1, 2)
        start = sum(SIZES[count][:me])
        mine = rows[start : start + SIZES[count][me]].clone().requires_grad_()
        everyone = distributed.gather(mine)
        (everyone.sin().cumsum(0) * (me + 1)).sum().backward()  # another loss on each rank: (me + 1) times the same
        out["gathered"], out["gradient"] = everyone.detach(), mine.grad
        out["integers"] = distributed.gather(torch.full((SIZES[count][me],), me))

        distributed.BUCKET_BYTES = 100
        parameters = [torch.full((n,), float(me), requires_grad=True) for n in (3, 30, 2, 5)]
        for factor, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, (me + 1.0) * (factor + 1))
        parameters[2].grad = None
        distributed.average_gradients(parameters)
        out["means"] = [p.grad for p in parameters]

        model = torch.nn.BatchNorm1d(3)
        torch.nn.init.constant_(model.weight, me + 5.0)
        model.running_mean.fill_(me + 7.0)
        distributed.copy_weights(model)
        out["copied"] = [model.weight.detach(), model.running_mean, model.weight.requires_grad]

        time.sleep(0.3 * me)  # the first must wait for the last
        distributed.meet()
        out["met"] = time.time()
        torch.save(out, folder / f"{me}.pt")


def fail(folder: Path) -> None:
    """The last rank fails; the others wait for a sum that never comes."""
    with distributed.ranks("cpu"):
        if distributed.rank() == distributed.world_size() - 1:
            raise ValueError("the learning rate is a banana")
        distributed.total(torch.ones(1))


def leave_early(folder: Path) -> None:
    """Rank 0 is done at once; rank 1 takes a second, and must not be left alone with a failed exchange."""
    with distributed.ranks("cpu"):
        me = distributed.rank()
        time.sleep(me)
    (folder / str(me)).write_text(str(time.time()))


@pytest.fixture(scope="module")
def results():
    return {}


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request, results, ranks, tmp_path):
    if request.param not in results:
        ranks(request.param, "-m", "tests.runtime.test_distributed", "work", tmp_path, seconds=60)
        results[request.param] = [
            torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(request.param)
        ]
    return results[request.param]


def test_small_exchanges(found):
    for out in found:
        assert out["numbers"] == [[rank, 10 * rank] for rank in range(len(found))]
        assert out["any"] == [False, True, True]
        assert out["main"] == (Path("a"), 0)
        assert "a/b/0" in out["error"]


def test_gather_with_gradient(found):
    sizes = SIZES[len(found)]
    rows = torch.arange(sum(sizes) * 2.0, dtype=torch.float64).view(-1, 2).requires_grad_()
    rows.sin().cumsum(0).sum().backward()
    expected = rows.grad * sum(range(1, len(found) + 1))  # the sum of all ranks' losses
    for out, mine in zip(found, expected.split(sizes), strict=True):
        assert torch.equal(out["gathered"], rows.detach())
        torch.testing.assert_close(out["gradient"], mine, rtol=1e-12, atol=0)
        assert out["integers"].tolist() == [rank for rank, n in enumerate(sizes) for _ in range(n)]


def test_gradients_are_averaged_and_one_that_is_missing_stays_so(found):
    mean = sum(range(1, len(found) + 1)) / len(found)
    for out in found:
        assert [None if g is None else set(g.tolist()) for g in out["means"]] == [{mean}, {2 * mean}, None, {4 * mean}]


def test_weights_and_buffers_are_those_of_rank_0(found):
    for out in found:
        weight, mean, trained = out["copied"]
        assert set(weight.tolist()) == {5.0}
        assert set(mean.tolist()) == {7.0}
        assert trained


def test_they_meet(found):
    times = [out["met"] for out in found]
    assert max(times) - min(times) < 0.25, "the ranks slept 0.3 s one longer than the other"


@pytest.mark.slow
def test_a_failure_is_told_once_and_ends_all_at_once(ranks, tmp_path):
    results = ranks(2, "-m", "tests.runtime.test_distributed", "fail", tmp_path, seconds=60, succeed=False)
    assert [code for code, *_ in results] == [1, 1]
    assert "the learning rate is a banana" in results[1][2]
    assert results[0][2] == ""


@pytest.mark.slow
def test_ranks_leave_together(ranks, tmp_path):
    ranks(2, "-m", "tests.runtime.test_distributed", "leave_early", tmp_path, seconds=60)
    first, last = (float((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert abs(first - last) < 0.7, "rank 0 was gone a second before rank 1"


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
