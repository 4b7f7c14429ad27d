"""The GPU's table: kinds of kernels, rows that were not measured, both shares of the peak, rows that a stop leaves."""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.gpu import profile
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.models import compile_apart
from benchmarks.gpu.profile import kind_of
from benchmarks.gpu.table import PEAK, GpuRow, Session, absent, makers_peak, to_markdown, write_tables


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        (
            "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_nn_align8>",
            "matrix products",
        ),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("fmha_cutlassB_bf16_aligned_64x64_k64_sm80", "attention"),
        ("sm80_xmma_wgrad_implicit_gemm_indexed_tf32f32", "convolution"),
        (
            "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>",
            "optimizer and clipping",
        ),
        ("triton_red_fused_native_layer_norm_backward_3", "norms"),
        ("void at::native::vectorized_layer_norm_kernel<float, float>", "norms"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("triton_poi_fused__to_copy_add_7", "elementwise and reductions"),
        ("triton_tem_fused_mm_2", "matrix products"),
        ("void at::native::reduce_kernel<512, 1>", "elementwise and reductions"),
        ("ncclKernel", "other"),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert kind_of(name) == kind


def test_a_mark_around_kernels_is_not_a_kernel(monkeypatch):
    """torch marks each step of an optimizer, over the time of its kernels."""

    def event(name, start, end, mark=False):
        span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        return SimpleNamespace(name=name, time_range=span, device_type=DeviceType.CUDA, is_user_annotation=mark)

    events = [event("gemm", 0, 3000), event("Optimizer.step#AdamW.step", 5000, 9000, True), event("adam", 5000, 9000)]
    monkeypatch.setattr(profile, "profile", lambda **_: nullcontext(SimpleNamespace(events=lambda: events)))
    for name, answer in {"is_available": True, "is_initialized": True, "synchronize": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    times = profile.time_by_kind(lambda: None, 1)
    assert times == {"matrix products": 3.0, "optimizer and clipping": 4.0, "no kernel": 2.0}


@pytest.mark.slow
def test_models_that_are_compiled_apart_share_no_graph(model):
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    for _ in range(2):
        compile_apart(model, backend=count)
        model.image(torch.zeros(2, 3, 16, 16))
    assert len(graphs) == 2


def test_the_table_has_shares_advantages_and_reasons():
    rows = [
        GpuRow(PEAK, "", "TFLOP/s", {"miniclip": [800.0, 790.0]}),
        GpuRow("step", "a", "pairs/s", {"miniclip": [4e3], "peer": [2e3]}, {"miniclip": 1e4}, flops=1e11, notes=["n"]),
        GpuRow("loss", "b", "ms", {"miniclip": [50.0], "peer": [25.0]}, lower_is_better=True),
        GpuRow("loss", "c", skipped="OutOfMemoryError: no"),
        GpuRow("profile", "d", "ms", {"norms": [2.0], "copies": [3.0]}),
    ]
    lines = to_markdown(rows, {}).splitlines()
    assert "| step: a<br>n | 4,000 pairs/s, 10,000 MiB | peer 2,000 pairs/s (**2.00**) | 50%, unknown |" in lines
    assert "| loss: b | 50 ms | peer 25 ms (**0.50**) |  |" in lines
    assert "| loss: c | not measured: OutOfMemoryError: no | | |" in lines
    assert "| profile: d | copies 3, norms 2 ms | | |" in lines
    assert makers_peak("NVIDIA H100 80GB HBM3") == makers_peak("NVIDIA H200") == 989.5
    assert makers_peak("NVIDIA T4") is None


def test_a_row_that_fails_or_is_too_late_has_its_reason(tmp_path):
    session = Session(False, "cpu", 1, time.monotonic() + 10, tmp_path)

    def fail(row):
        raise RuntimeError("two\nlines")

    session.measure("a", "fails", fail)
    session.measure("a", "is late", fail, seconds=60)
    session.measure("a", "exits", lambda row: sys.exit("results differ"))
    write_tables(tmp_path)
    reasons = [row["skipped"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]]
    assert reasons[0] == "RuntimeError: two lines"
    assert reasons[1].startswith("about 60 s are needed")
    assert reasons[2] == "SystemExit: results differ"


def test_an_absent_peer_has_its_reason():
    assert absent("json") is None
    assert absent("no_such_peer").startswith("no_such_peer is absent (ModuleNotFoundError")


def test_a_part_runs_in_its_process_and_writes_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])  # the part's process is `python -m benchmarks gpu peak`
    main(["peak", "--small", "--device", "cpu", "--out", str(tmp_path)])
    assert "| matrix product in bf16: 256 x 256 of normal numbers |" in (tmp_path / "gpu.md").read_text()
    assert json.loads((tmp_path / "machine.json").read_text())["versions"]["torch"]
