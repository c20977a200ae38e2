"""The released S4 and S4D: the blocks of models/s4/s4.py (a kernel of the kind "dplr" or "diag"), and models/s4/s4d.py.

Each channel has a Lambda, a B and a P of its own (or all have the same). Of conjugate pairs one half is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import require
from .naming import NamedWeights, Ours, names

OUT = {"out_proj.weight": "output_linear.0.weight", "out_proj.bias": "output_linear.0.bias"}


@names("s4.s4")
def s4(w: NamedWeights) -> Ours:
    """Read a block with a kernel "dplr" of rank 1, and exponentials for steps and real parts.

    Its C is that of a kernel cut off after `l_kernel` tokens, C (I - A^l): it is changed back.
    """
    C, B, A, log_dt = _diagonal(w)
    P = torch.view_as_complex(w["layer.kernel.P"].double())
    require(P.shape[0] == 1, f"P of {w.file} has rank {P.shape[0]}; the feedback of our S4 has rank 1")
    B, A, P = (x.expand(len(C), -1) for x in (B, A, P[0]))
    C, B, A, P = (torch.cat([x, x.conj()], -1) for x in (C, B, A, P))
    length = int(w["layer.kernel.l_kernel"])
    if length:
        C = _uncut(C, A, P, log_dt.double().exp(), length)
    kept = w["layer.kernel.C"].dtype
    pairs = {name: torch.view_as_real(x.resolve_conj()).to(kept) for name, x in (("C", C), ("B", B), ("P", P))}
    weights = {
        **_around(w), **pairs, "log_dt": log_dt, "log_decay_rate": (-A.real).log().to(kept),
        "frequency": A.imag.to(kept),
    }  # fmt: skip
    return Ours("s4", {"d_state": C.shape[-1], "per_channel": True}, weights, len(C))


@names("s4.diagonal")
def diagonal(w: NamedWeights) -> Ours:
    """Read a block with a kernel "diag", of the rule "zoh": S4D, with B as a part of C."""
    C, B, A, log_dt = _diagonal(w)
    kept = w["layer.kernel.C"].dtype
    A = A.expand(len(C), -1)
    weights = {
        **_around(w), "C": torch.view_as_real(C * B).to(kept), "A_log": (-A.real).log().to(kept),
        "A_imag": A.imag.to(kept), "log_dt": log_dt,
    }  # fmt: skip
    return Ours("s4d", {"d_state": 2 * C.shape[-1]}, weights, len(C))


@names("s4.s4d")
def s4d(w: NamedWeights) -> Ours:
    """Read the minimal S4D, whose last map is a convolution of one tap."""
    weights = w.renamed({"C": "kernel.C", "log_dt": "kernel.log_dt", "A_log": "kernel.log_A_real", "D": "D", **OUT})
    weights |= {"A_imag": w["kernel.A_imag"], "out_proj.weight": weights["out_proj.weight"].squeeze(-1)}
    return Ours("s4d", {"d_state": 2 * weights["C"].shape[1]}, weights, len(weights["D"]))


def _diagonal(w: NamedWeights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read C [channels,n], B and A [channels or 1,n], complex, and the logarithm of the steps [channels]."""
    C, B = (torch.view_as_complex(w[f"layer.kernel.{x}"].double()) for x in "CB")
    log_dt = w["layer.kernel.inv_dt"]
    require(C.shape[0] == 1, f"{w.file} has {C.shape[0]} outputs for each channel; our layer has one")
    require(log_dt.shape[-1] == 1, f"{w.file} has {log_dt.shape[-1]} steps for each channel; our layer has one")
    A = -torch.complex(w["layer.kernel.A_real"].double().exp(), w["layer.kernel.A_imag"].double())
    return C[0], B[0], A, log_dt.squeeze(-1)


def _around(w: NamedWeights) -> dict[str, Tensor]:
    """Read what is around the kernel: D, and the last map."""
    return {**w.renamed(OUT), "D": w["layer.D"].squeeze(0)}


def _uncut(C: Tensor, A: Tensor, P: Tensor, dt: Tensor, length: int) -> Tensor:
    """Solve C (I - T^length) = given for C [channels,n], with T the bilinear transition of diag(A) - P P^*."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    half = (torch.diag_embed(A) - P[:, :, None] * P.conj()[:, None]) * (dt / 2)[:, None, None]
    T = torch.linalg.solve(eye - half, eye + half)
    return torch.linalg.solve(eye - torch.linalg.matrix_power(T, length), C[:, None], left=False)[:, 0]
