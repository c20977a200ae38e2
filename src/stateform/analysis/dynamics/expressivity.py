"""What the transitions of a System can express: selection, parity, counting, permutations, and a finite memory.

Each verdict is one of three: excluded by the system's structure (whatever its parameters and inputs), reached (by
eigenvalues that were seen), or open (neither). The criteria are necessary conditions for tracking a state in finite
precision:

    parity          some A_t with an eigenvalue that is not real and >= 0            (arXiv 2411.12537, theorem 1)
    counting mod m  in one layer, some A_t with an eigenvalue that is not real, for m that is no power of 2
                                                                                     (arXiv 2411.12537, theorem 2)
    permutations    transitions that do not commute; a product of r reflections can move r + 1 elements
                                                                                     (arXiv 2502.10297)

where A_t is the transition of a whole token, the product of its micro-steps. They say nothing about a cache of keys and
values, nor about a nonlinear recurrence, whose System is its linearisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import require
from ...system import System
from ...system.core import fold
from ..structure import constant_transition, token_steps, token_transitions

SMALL = 1e-3
"""An eigenvalue closer than this (relative to the largest) to the real half line is not told from it."""
NEGATIVE = "arXiv 2411.12537"
PARITY, COUNTING = f"{NEGATIVE}, theorem 1", f"{NEGATIVE}, theorem 2"
PERMUTATIONS = "arXiv 2502.10297"
LINEARITY = "S_t = sum_j A^{t-j} b_j k_j v_j^T"
COEFFICIENTS = "arXiv 2510.09389, principle 1"
FINITE = "linear recurrent layers in finite precision, any number of them, whatever reads the state"
ONE_LAYER = "one layer; more of them may do it"
NECESSARY = "a necessary condition in finite precision; that training finds the solution is not said"
REFLECTION = -0.9
"""An eigenvalue below this counts as that of a reflection, whose own is -1."""


@dataclass(frozen=True)
class Reach:
    """The eigenvalues of the transitions A_t that were seen, over all systems, tokens and heads."""

    count: int
    """How many."""
    least: float | None
    """Least real one (None: all were complex)."""
    radius: float
    """Largest modulus."""
    angle: float
    """Largest angle of one that is not real, in radians (0: all were real)."""
    step: float | None
    """Least real one of a single micro-step."""
    commutes: bool
    """True if the transitions of neighbouring tokens commuted, A B = B A."""

    @property
    def negative(self) -> bool:
        """True if one was real and negative."""
        return self.least is not None and self.least < -SMALL

    @property
    def text(self) -> str:
        """The eigenvalues in words."""
        real = "none real" if self.least is None else f"least real one {_short(self.least)}"
        turned = f", angles up to {self.angle:.2f}" if self.angle else ""
        return f"{self.count} eigenvalues seen: {real}{turned}, largest modulus {_short(self.radius)}"

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """`holds` is True if reached, False if excluded by structure, None if neither was found; and why."""

    holds: bool | None
    why: str
    source: str = ""
    """The theorem that it rests on."""
    premises: str = ""
    """What the theorem takes for granted, or which of its premises does not hold here."""

    @property
    def word(self) -> Literal["reached", "excluded", "open"]:
        """The verdict in a word."""
        return "open" if self.holds is None else "reached" if self.holds else "excluded"


@dataclass(frozen=True)
class Expressivity:
    """What the transitions of a layer can express."""

    tracks: str
    """The verdicts on the tracking of a state, in a few words."""
    recall: str
    """What is kept of the past."""
    selection: Verdict
    """Yes if the transition depends on the input."""
    parity: Verdict
    counting: Verdict
    permutations: Verdict
    memory: Verdict
    """Yes if a finite state holds all that is read of the past."""
    reach: Reach | None
    """None where eigenvalues decide nothing: a cache, a nonlinear recurrence."""

    def verdicts(self) -> dict[str, Verdict]:
        """List the verdicts by name."""
        return {x: getattr(self, x) for x in ("selection", "parity", "counting", "permutations", "memory")}

    def __str__(self) -> str:
        rows = [
            f"{name:<13}{v.word:<9}{v.why}{f' [{v.source}]' if v.source else ''}" for name, v in self.verdicts().items()
        ]
        return "\n".join([f"recall       {self.recall}", *rows])

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        verdicts = {
            name: {"verdict": v.word, "why": v.why, "source": v.source, "premises": v.premises}
            for name, v in self.verdicts().items()
        }
        reached = None if self.reach is None else self.reach.to_dict()
        return {"tracks": self.tracks, "recall": self.recall, **verdicts, "eigenvalues": reached}


@torch.no_grad()
def reach(systems: Sequence[System]) -> Reach:
    """Find where the eigenvalues of transitions lie, for systems with a linear readout; 0 for what overflows."""
    values, steps, commutes = [], [], True
    for system in systems:
        single = whole = _eigenvalues_of_steps(system)
        if system.f is not None or system.transition is not None:
            A = _without_overflow(token_transitions(system))
            whole = whole if system.micro == 1 else torch.linalg.eigvals(A)
            now, later = A[:, :-1], A[:, 1:]
            size = (torch.linalg.matrix_norm(now) * torch.linalg.matrix_norm(later)).clamp_min(1e-12)
            difference = torch.linalg.matrix_norm(now @ later - later @ now) / size
            commutes = commutes and not bool((difference > SMALL).any())
        elif system.micro > 1:
            steps_apart = single.expand(-1, max(system.micro, single.shape[1]), -1, -1)
            whole = steps_apart.unflatten(1, (-1, system.micro)).prod(2)
        values.append(_visible(whole))
        steps.append(_visible(single))
    seen, single = torch.cat(values), torch.cat(steps)
    angles = seen[seen.imag != 0].angle().abs()
    return Reach(
        len(seen), _least(seen), float(seen.abs().max()) if len(seen) else 0.0,
        float(angles.max()) if len(angles) else 0.0, _least(single), commutes,
    )  # fmt: skip


def _eigenvalues_of_steps(system: System) -> Tensor:
    """Compute the eigenvalues of every micro-step's transition.

    The characteristic polynomial of diag(a) + f w^T knows f and w by the products f_i w_i alone. Where none of these is
    positive, as in the delta rule, it is that of the symmetric matrix diag(a) - g g^T with g_i = sqrt(-f_i w_i), which
    can be solved however badly the decays are scaled.
    """
    core = fold(system)
    if core.f is None or core.w is None or system.decay_kind != "diagonal":
        return (
            system.spectrum()
            if system.transition is None
            else torch.linalg.eigvals(_without_overflow(token_steps(system)))
        )
    products = core.f * core.w
    if products.is_complex() or system.is_complex or system.sign is not None or bool((products > 0).any()):
        return torch.linalg.eigvals(_without_overflow(token_steps(system)))
    g = (-products).sqrt()
    a = replace(core, f=None, w=None).transition().dense(system.n)
    return torch.linalg.eigvalsh(_without_overflow(a - g.unsqueeze(-1) * g.unsqueeze(-2)).flatten(2, 3)) + 0j


def _without_overflow(A: Tensor) -> Tensor:
    """Set to zero what eigenvalues cannot be found with: matrices [..., n, n] that overflowed, and tiny entries."""
    A = torch.where(torch.isfinite(A.abs()).all(-1).all(-1)[..., None, None], A, 0.0)
    return torch.where(A.abs() < 1e-30 * A.abs().amax((-2, -1), keepdim=True), 0.0, A)


def _visible(values: Tensor) -> Tensor:
    """Select the finite eigenvalues; imaginary parts too small to be told from rounding are dropped."""
    values = values[torch.isfinite(values.abs())].to(torch.complex128)
    if len(values) == 0:
        return values
    real = values.imag.abs() <= SMALL * values.abs().max()
    return torch.complex(values.real, torch.where(real, 0.0, values.imag))


def _least(values: Tensor) -> float | None:
    real = values.real[values.imag == 0]
    return float(real.min()) if len(real) else None


def _short(x: float) -> str:
    return f"{x:.3g}" if abs(x) >= SMALL else "0.000"


def expressivity(systems: Sequence[System], *, nonlinear: bool = False) -> Expressivity:
    """Judge what a layer's transitions can express, from its systems for some parameters and inputs.

    Args:
        systems: of one layer, all of one structure; the more and the wilder the parameters, the more is reached.
        nonlinear: the parts of these systems depend on the state: they are linearisations.

    The Systems of a chain are as layers of a stack: it expresses what one of them does.
    """
    require(len(systems) > 0, "expressivity needs at least one system")
    members = [_expressivity_of_one(one, nonlinear) for one in zip(*(x.systems for x in systems), strict=True)]
    *before, found = members
    for other in before:
        parity, counting, permutations, selection = (
            max(getattr(found, name), getattr(other, name), key=lambda v: (v.holds is not False) + (v.holds is True))
            for name in ("parity", "counting", "permutations", "selection")
        )
        found = Expressivity(
            found.tracks if parity is found.parity else other.tracks, f"{other.recall}, then {found.recall}",
            selection, parity, counting, permutations,
            other.memory if found.memory.holds else found.memory, found.reach,
        )  # fmt: skip
    return found


def _expressivity_of_one(systems: Sequence[System], nonlinear: bool) -> Expressivity:
    """Judge what the transitions of one System express, for several parameters and inputs."""
    system = systems[0]
    recall = _recall(system)
    varies = not constant_transition(system)
    memory = _memory(system)
    if nonlinear:
        no = Verdict(None, "a nonlinear recurrence: the eigenvalues of its linearisation decide nothing", NEGATIVE,
                     "not met: the recurrence is not linear in its state")  # fmt: skip
        picked = Verdict(True, "what is kept depends on input and state")
        return Expressivity("nonlinear", recall, picked, no, no, no, memory, None)
    if system.readout.cached:
        why = "no recurrent state: the past is kept as it is, and the criteria on A_t say nothing"
        no = Verdict(None, why, NEGATIVE, "not met: there is no state of a fixed size")
        picked = Verdict(True, "the weights depend on query and key", COEFFICIENTS)
        return Expressivity(f"keeps {recall}", recall, picked, no, no, no, memory, None)
    selection = Verdict(varies, "A_t depends on the input" if varies else "A is the same for every input")
    found = reach(systems)
    if not varies:
        why = "A is constant: in one layer, what a token adds to the state does not depend on the others"
        no = Verdict(False, why, LINEARITY, "of one layer: in a stack, inputs depend on earlier tokens")
        parity = _parity(system, found) if _is_positive_diagonal(system) else no
        return Expressivity("no: A constant", recall, selection, parity, no, no, memory, found)
    parity, counting = _parity(system, found), _counting(system, found)
    permutations, moved = _permutations(system, found, parity)
    if not parity.holds:
        tracks = "no parity" if parity.holds is False else "parity not seen"
    else:
        weak = found.least is not None and not found.angle and found.least > REFLECTION
        words = [f"parity (to {found.least:.1g})" if weak else "parity"]
        words += ["mod m"] if counting.holds else []
        words += [f"permutes {moved}" if moved else "order"] if permutations.holds else []
        tracks = ", ".join(words)
    return Expressivity(tracks, recall, selection, parity, counting, permutations, memory, found)


def _recall(system: System) -> str:
    if system.readout.cached:
        near = f"the last {system.window} tokens" if system.causal else f"tokens less than {system.window} away"
        return "every token" if system.window is None else near
    return f"a finite state of {system.state_size} numbers"


def _is_positive_diagonal(system: System) -> bool:
    """True if A_t is a positive diagonal by structure."""
    return all(getattr(system, x) is None for x in ("phase", "sign", "transition", "f"))


def _parity(system: System, found: Reach) -> Verdict:
    if _is_positive_diagonal(system):
        what = "A_t = I" if system.decay_kind == "identity" else "every eigenvalue is exp(log decay), real and positive"
        return Verdict(False, f"{what}: no number of layers has parity in finite precision", PARITY, FINITE)
    if found.negative or found.angle:
        return Verdict(True, found.text, PARITY, NECESSARY)
    return Verdict(None, f"none but real ones >= 0; {found.text}", PARITY, NECESSARY)


def _counting(system: System, found: Reach) -> Verdict:
    real = system.phase is None and not system.is_complex
    if real and system.f is None and system.transition is None:
        return Verdict(False, "a real diagonal has real eigenvalues", COUNTING, ONE_LAYER)
    if real and system.micro == 1 and system.decay_kind in ("identity", "scalar"):
        what = "a_t I + f_t w_t^T has the eigenvalues a_t and a_t + w_t^T f_t, which are real"
        return Verdict(False, what, COUNTING, ONE_LAYER)
    text = found.text if found.angle else f"none but real ones; {found.text}"
    return Verdict(True if found.angle else None, text, COUNTING, NECESSARY)


def _permutations(system: System, found: Reach, parity: Verdict) -> tuple[Verdict, int]:
    """Judge whether permutations are possible, and of how many elements a token can move (0: not known)."""
    holds, why, moved = _order(system, found, parity)
    return Verdict(holds, why, PERMUTATIONS, ONE_LAYER if holds is False else NECESSARY), moved


def _order(system: System, found: Reach, parity: Verdict) -> tuple[bool | None, str, int]:
    if system.f is None and system.transition is None:
        return False, "diagonal transitions commute: the order of the tokens is lost", 0
    if not parity.holds:
        none = "none can be" if parity.holds is False else "none was seen"
        return parity.holds, f"a reflection has a negative eigenvalue, and {none}", 0
    if found.commutes:
        return None, "all transitions seen commute", 0
    if system.transition is not None:
        return True, "dense transitions that do not commute", 0
    if found.step is not None and found.step < REFLECTION:
        r = system.micro
        return True, f"a product of {r} reflection{'s' if r > 1 else ''} a token, which moves {r + 1} elements", r + 1
    return None, f"transitions do not commute, but the least eigenvalue seen is {_short(found.step or 0.0)}, not -1", 0


def _memory(system: System) -> Verdict:
    """Principle 1 of coefficient dynamics: only a linear phi has a finite state."""
    if not system.readout.cached:
        more = ", with the Gram matrix of the keys" if system.readout.gram else ""
        return Verdict(True, f"phi is linear: a state of {system.state_size} numbers holds all that is read{more}",
                       COEFFICIENTS)  # fmt: skip
    if system.window is not None and system.causal:
        why = f"the last {system.window} tokens are kept, {system.window * system.state_size} numbers, and no others"
        return Verdict(True, why, COEFFICIENTS)
    return Verdict(False, "phi = exp: no finite state gives all of its coefficients; the cache grows with the tokens",
                   COEFFICIENTS, "of all inputs: on a given text an approximate state may be small")  # fmt: skip
