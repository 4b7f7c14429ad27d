"""The distributed losses: value and gradients of one process with the whole batch, with less memory.

The file also holds the function of a rank, which runs all cases.
"""

import itertools
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from miniclip.losses import contrastive_loss, reference, sigmoid_loss
from miniclip.runtime import distributed

SIZES = {2: [(4, 4), (1, 6), (5, 0)], 3: [(3, 3, 3), (1, 4, 2), (0, 7, 0)]}  # rows of each rank
FEATURES, E = 6, 5
MEMORY = {"n": 128, "columns": 16, "E": 32}
ERRORS = ("width", "ids", "chunk", "shape", "empty", "precision", "number")


def cases(count):
    """Yield rows of each rank, whether there are ids, whether the loss is sigmoid, scale, chunk_size and dtype."""
    for sizes, with_ids, sigmoid in itertools.product(SIZES[count], (False, True), (False, True)):
        for scale, chunk, dtype in (
            (10.0, None, torch.float64),
            (1.0, 1, torch.float64),
            (100.0, 2, torch.float64),
            (0.0, 3, torch.float64),
            (14.0, 2, torch.float32),
        ):
            yield sizes, with_ids, sigmoid, scale, chunk, dtype


def make_case(number, total, with_ids, scale, dtype):
    """Rows, parameters and ids of a case, the same in every process: two linear towers, scale and bias."""
    generator = torch.Generator().manual_seed(number)
    rows = [torch.randn(total, FEATURES, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    towers = [torch.randn(FEATURES, E, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    numbers = [torch.tensor(scale, dtype=dtype), torch.tensor(-2.0, dtype=dtype)]
    ids = torch.randint(0, max(1, total // 2), (total,), generator=generator) if with_ids else None
    return rows, [p.requires_grad_() for p in towers + numbers], ids


def loss_and_gradients(module, part, rows, parameters, ids, sigmoid, **options):
    """Loss of a part of the rows; the gradients are those of 3 times the loss."""
    x, y = (side[part] @ tower for side, tower in zip(rows, parameters[:2], strict=True))
    function = module.sigmoid_loss if sigmoid else module.contrastive_loss
    loss = function(x, y, *parameters[2 : 4 if sigmoid else 3], ids=None if ids is None else ids[part], **options)
    (3.0 * loss).backward()
    return loss.detach()


class Losses:
    """The public functions, which detect the process group themselves."""

    contrastive_loss, sigmoid_loss = staticmethod(contrastive_loss), staticmethod(sigmoid_loss)


def work(folder):
    """Run all cases on this rank."""
    torch.use_deterministic_algorithms(True)
    results = {"cases": []}
    with distributed.process_group("cpu"):
        for number, (sizes, with_ids, sigmoid, scale, chunk, dtype) in enumerate(cases(distributed.world_size())):
            rows, parameters, ids = make_case(number, sum(sizes), with_ids, scale, dtype)
            start = sum(sizes[: distributed.rank()])
            part = slice(start, start + sizes[distributed.rank()])
            loss = loss_and_gradients(Losses, part, rows, parameters, ids, sigmoid, chunk_size=chunk)
            distributed.average_gradients(parameters)
            results["cases"].append([loss, *(p.grad for p in parameters if p.grad is not None)])
        results["ddp"] = averaged_by_ddp()
        results["errors"] = [error_of(kind) for kind in ERRORS]
        results["largest"] = [largest_tensor(sigmoid) for sigmoid in (False, True)]
        results["bf16"] = under_autocast()
        results["certain"] = [certain_pairs(sigmoid) for sigmoid in (False, True)]
        results["ids"] = with_ids_of_small_types()
        torch.save(results, Path(folder) / f"{distributed.rank()}.pt")


class Towers(torch.nn.Module):
    """A user's model: two linear towers and a scale."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.sides = torch.nn.ModuleList(torch.nn.Linear(FEATURES, E) for _ in range(2))
        self.scale = torch.nn.Parameter(torch.tensor(7.0))

    def forward(self, images, texts):
        return self.sides[0](images), self.sides[1](texts), self.scale


def uneven_part(total):
    """Rows of this rank; the last rank has more than the others."""
    rank, count = distributed.rank(), distributed.world_size()
    size = total // count
    return slice(rank * size, total if rank == count - 1 else (rank + 1) * size)


def averaged_by_ddp():
    """Gradients after DistributedDataParallel's average, in a user's own loop."""
    model = Towers().double()
    rows = torch.randn(2, 9, FEATURES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)  # it must live until its gradients are averaged
    contrastive_loss(*wrapped(*rows[:, uneven_part(9)])).backward()
    return [p.grad for p in model.parameters()]


def error_of(kind):
    """The error of this rank if only rank 1 passes an argument that does not match."""
    x, y, ids, chunk = torch.ones(3, 4), torch.ones(3, 4), torch.arange(3), None
    if kind == "empty":
        x = y = torch.ones(0, 4)
        ids = ids[:0]
    elif distributed.rank() == 1:
        x = y = torch.ones(3, 5) if kind == "width" else x
        ids = None if kind == "ids" else ids
        chunk = 0 if kind == "chunk" else None
        y = torch.ones(2, 4) if kind == "shape" else y
        x, y = (x.double(), y.double()) if kind == "precision" else (x, y)
        x, y = (x[0, 0], y[0, 0]) if kind == "number" else (x, y)
    try:
        contrastive_loss(x, y, 1.0, ids, chunk)
    except ValueError as error:
        return str(error)


def make_certain_pairs(dtype, sigmoid):
    """Images that equal their texts, at a high scale: parameters, and the loss as a function of rows."""
    images = (
        torch.eye(6, 8, dtype=dtype) if sigmoid else torch.randn(64, 99, generator=torch.Generator().manual_seed(0))
    )
    numbers = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in ((32.0, -10.0) if sigmoid else (100.0,))]
    return images.to(dtype), numbers


def certain_pairs(sigmoid):
    """Loss of pairs that a model is certain of, and the gradients of scale and bias."""
    images, numbers = make_certain_pairs(torch.float32, sigmoid)
    part = images[uneven_part(len(images))].requires_grad_()
    loss = (sigmoid_loss if sigmoid else contrastive_loss)(part, part.detach(), *numbers, chunk_size=4)
    loss.backward()
    distributed.average_gradients(numbers)
    return [loss.item(), *(number.grad.item() for number in numbers)]


def with_ids_of_small_types():
    """Losses with ids and with labels whose types differ between the ranks, and the same with int64."""
    x, ids = torch.eye(3, 4) + distributed.rank(), torch.tensor([1, 2, 1])
    small = ids.to(torch.int16 if distributed.rank() else torch.int32)
    return [contrastive_loss(x, x, 3.0, kind, text_ids=text).item() for kind in (ids, small) for text in (None, kind)]


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def largest_tensor(sigmoid):
    n = MEMORY["n"]
    x, y = (torch.randn(n, MEMORY["E"], requires_grad=True) for _ in range(2))
    ids = torch.arange(n) // 2
    with Largest() as largest:
        function = sigmoid_loss if sigmoid else contrastive_loss
        function(x, y, 10.0, *([-10.0] if sigmoid else []), ids=ids, chunk_size=MEMORY["columns"]).backward()
    return largest.elements


def under_autocast():
    """The dtype of the loss of bfloat16 embeddings, its distance from the float32 loss, and a finite gradient."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(distributed.rank())).bfloat16().requires_grad_()
    exact = contrastive_loss(x.detach().float(), -x.detach().float(), 5.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(x, -x, 5.0)
    loss.backward()
    return loss.dtype, float((loss - exact).abs()), bool(x.grad.isfinite().all())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Cached results of each rank, by the number of ranks."""
    return {}


@pytest.fixture(params=[2, pytest.param(3, marks=pytest.mark.slow)])
def ranks_results(request, results, ranks, tmp_path):
    if request.param not in results:
        ranks(request.param, work, tmp_path)
        results[request.param] = [torch.load(tmp_path / f"{r}.pt") for r in range(request.param)]
    return results[request.param]


def test_value_and_gradients_equal_those_of_one_process(ranks_results):
    for number, case in enumerate(cases(len(ranks_results))):
        sizes, with_ids, sigmoid, scale, _, dtype = case
        rows, parameters, ids = make_case(number, sum(sizes), with_ids, scale, torch.float64)
        if dtype == torch.float32:  # the same inputs, computed in float64
            rows, parameters, ids = make_case(number, sum(sizes), with_ids, scale, dtype)
            rows = [side.double() for side in rows]
            parameters = [p.detach().double().requires_grad_() for p in parameters]
        loss = loss_and_gradients(reference, slice(None), rows, parameters, ids, sigmoid)
        expected = [loss, *(p.grad for p in parameters if p.grad is not None)]
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        for rank in ranks_results:
            for a, b in zip(rank["cases"][number], expected, strict=True):
                assert a.dtype == dtype
                error = float((a.double() - b).abs().max())
                assert error <= tolerance * max(1.0, scale) * max(1e-3, float(b.abs().max())), (case, error)


def test_the_loss_is_bitwise_equal_on_all_ranks(ranks_results):
    for number in range(len(ranks_results[0]["cases"])):
        assert len({float(rank["cases"][number][0]) for rank in ranks_results}) == 1


def test_distributed_data_parallel_averages_to_the_gradient_of_one_process(ranks_results):
    model = Towers().double()
    rows = torch.randn(2, 9, FEATURES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    reference.contrastive_loss(*model(*rows)).backward()
    for rank in ranks_results:
        for gradient, parameter in zip(rank["ddp"], model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-14)


def test_a_wrong_argument_of_one_rank_raises_on_all_ranks(ranks_results):
    for rank, errors in enumerate(r["errors"] for r in ranks_results):
        assert all(error.startswith(f"rank {rank}: image embeddings (") for error in errors), errors


def test_a_loss_near_zero_is_accurate(ranks_results):
    """The gradients of a certain pair are those of its mistake, 3e-10, not the difference of two numbers near 1."""
    for number, sigmoid in enumerate((False, True)):
        images, numbers = make_certain_pairs(torch.float64, sigmoid)
        value = (reference.sigmoid_loss if sigmoid else reference.contrastive_loss)(images, images, *numbers)
        value.backward()
        expected = [value.item(), *(number.grad.item() for number in numbers)]
        for rank in ranks_results:
            assert rank["certain"][number] == pytest.approx(expected, rel=1e-5, abs=1e-30)


def test_ids_may_have_other_integer_types(ranks_results):
    for rank in ranks_results:
        pairs, labels, *small = rank["ids"]
        assert small == [pairs, labels]


def test_no_tensor_is_larger_than_n_by_c(ranks_results):
    n, columns, width = MEMORY.values()
    total = n * len(ranks_results)
    assert n * max(columns, width) < total * min(columns, width) * len(ranks_results), "the test would miss N x C"
    for rank in ranks_results:
        assert max(rank["largest"]) <= max(n * columns, n * width, total)


def test_bfloat16_embeddings_under_autocast(ranks_results):
    for dtype, error, finite in (rank["bf16"] for rank in ranks_results):
        assert dtype == torch.float32
        assert error < 1e-6
        assert finite
