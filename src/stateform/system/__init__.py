"""What a sequence model is: a System, for each batch element and head, with a state S_t of n keys by p values.

    S_t = A_t S_{t-1} + b_t k_t v_t^T,    A_t = decay_t + f_t w_t^T             state update
    y_t = (readout(S_t, q_t) + d_t v_t) / eta_t                                 readout

Letters: B batch, T time, H heads, n keys, p values, o outputs. q reads, k and v write, feedback reads at w and
writes at f.

Whatever it is made of, y_i is a sum of values with weights alpha_ij = phi(q_i^T A_i .. A_{j+1} b_j k_j) / eta_i. For
four tokens and one head, with a decay a = 1/2 a step and q = k = 1, alpha_ij = a^(i-j):

    >>> import torch
    >>> from stateform import System, run
    >>> one = torch.ones(1, 4, 1, 1)  # [B,T,H,n]
    >>> values = torch.tensor([8.0, 0.0, 0.0, 1.0]).view(1, 4, 1, 1)  # [B,T,H,p]
    >>> system = System(one, one, values, log_decay=torch.tensor([0.5]).log())
    >>> system.coefficients()[0, 0]
    tensor([[1.0000, 0.0000, 0.0000, 0.0000],
            [0.5000, 1.0000, 0.0000, 0.0000],
            [0.2500, 0.5000, 1.0000, 0.0000],
            [0.1250, 0.2500, 0.5000, 1.0000]])
    >>> run(system).flatten()  # alpha times the values
    tensor([8., 4., 2., 2.])

`system` the fields, `readout` and `transition` their kinds, `core` the normal form that the forms compute, `state` what
goes on, `shapes` what fits, `precision` every number about rounding.
"""

from . import tree as tree
from .chain import Chain
from .readout import LinearRead, Readout, RidgeRead, SoftmaxRead, Solver
from .state import State
from .system import System

__all__ = ["Chain", "LinearRead", "Readout", "RidgeRead", "SoftmaxRead", "Solver", "State", "System"]
