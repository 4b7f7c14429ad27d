"""The losses of a large batch, forward and backward: time and memory, in bf16, float32 and TF32.

Embeddings are unit vectors. At 4,096 pairs, every form is compared in value and gradient with the reference in float64.
The gradient's radial part is left out of the comparison, since miniclip normalises inside the loss.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.peak import allow_tf32
from benchmarks.gpu.steps import peak_mib
from benchmarks.gpu.table import GpuRow, Session, absent, working
from benchmarks.harness import MINICLIP, interleaved
from miniclip import contrastive_loss, sigmoid_loss
from miniclip.losses import reference

SCALE, BIAS = 20.0, -10.0
TOLERANCES = {"bf16": 3e-2, "float32": 1e-4, "TF32": 1e-2}  # relative to the gradient's norm
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def rows(session: Session) -> None:
    """Write the rows."""
    pairs, width = (256, 32) if session.small else (65_536, 512)
    for name, sigmoid in (("contrastive loss", False), ("sigmoid loss", True)):
        forms, absences = (sigmoid_forms if sigmoid else contrastive_forms)()
        for precision in ("bf16", "float32", "TF32"):
            if precision == "TF32" and session.device == "cpu":
                continue
            case = f"N = {pairs:,}, E = {width}, {precision}, forward and backward"
            fill = partial(measure, session, (pairs, width), forms, absences, sigmoid, precision)
            session.measure(name, case, fill, 8)


def contrastive_forms() -> tuple[dict[str, Loss], list[str]]:
    """Return the contrastive losses of miniclip and the installed peers, and why others are missing."""
    forms: dict[str, Loss] = {"miniclip": lambda x, y, scale, bias: contrastive_loss(x, y, scale)}
    absences = [reason for peer in ("memeff", "open_clip") if (reason := absent(peer))]
    if not absent("memeff"):
        import memeff

        # its temperature is a number; `stable` would scale the gradient by another factor
        memory_efficient = memeff.MemoryEfficientCLIPLoss(1 / SCALE, normalized_inputs=True, stable=False)
        forms["memeff"] = lambda x, y, scale, bias: memory_efficient(x, y)
    if not absent("open_clip"):
        from open_clip.loss import ClipLoss

        dense = ClipLoss()
        forms["open_clip, dense"] = lambda x, y, scale, bias: dense(x, y, scale)
    return forms, absences


def sigmoid_forms() -> tuple[dict[str, Loss], list[str]]:
    """Return the sigmoid losses of miniclip and the installed peers, and why others are missing."""
    forms: dict[str, Loss] = {"miniclip": sigmoid_loss}
    absences = [reason for peer in ("siglip_kernel", "open_clip") if (reason := absent(peer))]
    if not absent("siglip_kernel"):
        from siglip_kernel import fused_siglip_loss

        forms["siglip-kernel"] = lambda x, y, scale, bias: fused_siglip_loss(x, y, scale.log(), bias)
    if not absent("open_clip"):
        from open_clip.loss import SigLipLoss

        dense = SigLipLoss()
        forms["open_clip, dense"] = lambda x, y, scale, bias: dense(x, y, scale, bias)
    return forms, absences


def measure(
    session: Session,
    size: tuple[int, int],
    forms: dict[str, Loss],
    absences: list[str],
    sigmoid: bool,
    precision: str,
    row: GpuRow,
) -> None:
    """Compare the forms at a smaller size, then time them; a form that fails is named in the notes."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    row.notes += absences
    row.unit, row.lower_is_better = "ms", True
    with allow_tf32(precision == "TF32"):
        small = inputs(session, (min(size[0], 4096), size[1]), dtype)
        exact = gradients(exact_loss(sigmoid), [leaf.detach().double().requires_grad_() for leaf in small])
        batch, agreeing = inputs(session, size, dtype), {}
        for name, loss in forms.items():
            try:
                row.notes.append(f"{name}: {compare(gradients(loss, small), exact, TOLERANCES[precision])}")
            except (Exception, SystemExit) as error:
                if name == MINICLIP:
                    raise
                row.notes.append(f"{name} is left out: {' '.join(str(error).split())[:160]}")
            else:
                agreeing[name] = partial(gradients, loss, batch)
        calls = working(row, agreeing)
        if session.device == "cuda":
            row.memory = {name: peak_mib(call, before=partial(clear, batch)) for name, call in calls.items()}
        rates = interleaved(calls, session.rounds)
        row.values = {name: [1e3 / rate for rate in values] for name, values in rates.items()}


def inputs(session: Session, size: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Return unit vectors of both sides, scale and bias, as leaves."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randn(2, *size, generator=generator).to(session.device)
    sides[1] += 0.5 * sides[0]
    x, y = torch.nn.functional.normalize(sides, dim=-1).to(dtype)
    numbers = [torch.tensor(value, device=session.device) for value in (SCALE, BIAS)]
    return [leaf.detach().clone().requires_grad_() for leaf in (x, y, *numbers)]


def clear(leaves: list[Tensor]) -> None:
    """Remove the gradients."""
    for leaf in leaves:
        leaf.grad = None


def exact_loss(sigmoid: bool) -> Loss:
    """Return the reference."""
    if sigmoid:
        return reference.sigmoid_loss
    return lambda x, y, scale, bias: reference.contrastive_loss(x, y, scale)


def gradients(loss: Loss, leaves: list[Tensor]) -> list[Tensor]:
    """Return value and gradients of both sides."""
    clear(leaves)
    value = loss(*leaves)
    value.backward()
    return [value.detach(), leaves[0].grad, leaves[1].grad, leaves[0].detach(), leaves[1].detach()]


def compare(actual: list[Any], exact: list[Any], tolerance: float) -> str:
    """Return how far value and gradients are from the exact ones; exit if that is more than the tolerance."""
    value = float((actual[0].double() - exact[0]).abs() / exact[0].abs())
    errors = []
    for index in (1, 2):
        unit = exact[index + 2]
        grad = actual[index].double()
        grad -= (grad * unit).sum(dim=1, keepdim=True) * unit / (unit * unit).sum(dim=1, keepdim=True)
        errors.append(float((grad - exact[index]).norm() / exact[index].norm()))
    if not max(errors) < tolerance or not value < tolerance:
        raise SystemExit(f"value off by {value:.1e}, gradients by {max(errors):.1e}")
    return f"value off by {value:.0e}, gradients by {max(errors):.0e}"
