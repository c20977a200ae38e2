"""The same recurrence in Numba and in C: why the compiled loops are C.

    pip install numba; python benchmarks/vehicle.py

Gated linear attention with 12 heads of 64 keys and values, 2048 tokens, float32, one decay a key: the plain loop over
time, in Numba parallel over heads and with fast mathematics, and as `stateform::matrix`. Both take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numba
import numpy as np
import torch

from stateform.clock import Pace, seconds, spread, take_turns
from stateform.loops.matrix import matrix

T, H, N, P = 2048, 12, 64, 64


@numba.njit(parallel=True, fastmath=True, nogil=True)
def loop(q: np.ndarray, k: np.ndarray, v: np.ndarray, log: np.ndarray, y: np.ndarray) -> None:
    """y_t = q_t^T S_t, S_t = exp(log_t) S_{t-1} + k_t v_t^T, for arrays [T,H,.]."""
    for h in numba.prange(q.shape[1]):
        S = np.zeros((q.shape[2], v.shape[2]), dtype=q.dtype)
        read = np.empty(v.shape[2], dtype=q.dtype)
        for t in range(q.shape[0]):
            read[:] = 0
            for i in range(q.shape[2]):
                a, ki, qi = np.exp(log[t, h, i]), k[t, h, i], q[t, h, i]
                for c in range(v.shape[2]):
                    s = a * S[i, c] + ki * v[t, h, c]
                    S[i, c] = s
                    read[c] += qi * s
            y[t, h] = read


def main() -> None:
    torch.manual_seed(0)
    numba.set_num_threads(torch.get_num_threads())
    q, k, v = torch.randn(T, H, N), torch.randn(T, H, N) / 8, torch.randn(T, H, P)
    log = -torch.rand(T, H, N)
    out = np.empty((T, H, P), dtype=np.float32)
    given = [x.numpy() for x in (q, k, v, log)]
    axes = [x[None, :, None] for x in (q, k, v, log)]
    S = torch.zeros(1, 1, H, N, P)

    def in_c() -> torch.Tensor:
        y: torch.Tensor = matrix.loops(*axes, None, None, S, T, False, False)[0]
        return y

    print(f"Numba compiles and runs in {seconds(lambda: loop(*given, out)):.1f} s")
    difference = (in_c()[0, :, 0] - torch.from_numpy(out)).abs().max() / in_c().abs().max()
    print(f"largest difference, relative: {float(difference):.1e}")
    runs: dict[str, Callable[[], object]] = {"Numba": lambda: loop(*given, out), "C": in_c}
    times: dict[str, list[float]] = {}
    take_turns({name: lambda run=run: run for name, run in runs.items()}, 31, times, pace=Pace(most=1))
    for name, found in ((name, spread(seconds_)) for name, seconds_ in times.items()):
        print(f"{name}: {found['median']:.2f} ms ({found['low']:.2f} to {found['high']:.2f})")
    print(f"Numba over C: {median(times['Numba']) / median(times['C']):.2f}")


if __name__ == "__main__":
    main()
