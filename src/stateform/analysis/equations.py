"""The equations of a System, with the parts that it has and no others, in the letters of `System`."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..forms.scores import turns_only
from ..system import System
from ..system.core import fold
from ..system.readout import RidgeRead, SoftmaxRead
from ..system.shapes import PER_TOKEN


class _Letters:
    """The parts of a system as they are written: `k_t`, `k` if constant, `k_{t,j}` with micro-steps."""

    def __init__(self, system: System) -> None:
        self.system, self.parts = system, system.tensors()

    def __call__(self, name: str, letter: str = "") -> str:
        per_step = self.system.micro > 1 and name not in PER_TOKEN
        index = "" if self.system.is_constant(name) else "_{t,j}" if per_step else "_t"
        return (letter or name) + index

    @property
    def decay(self) -> str:
        """The open-loop decay; nothing for the identity."""
        if self.system.transition is not None:
            return self("transition", "A") + " "
        name = next((x for x in ("log_decay", "phase", "sign") if x in self.parts), None)
        if name is None:
            return ""
        a = self._a(name)
        return f"diag({a}) " if self.system.decay_kind == "diagonal" else f"{a} "

    def _a(self, name: str) -> str:
        names = [x for x in ("log_decay", "phase", "sign") if x in self.parts]
        return self(next((x for x in names if not self.system.is_constant(x)), name), "a")

    @property
    def strength(self) -> str:
        """The write strength; nothing where there is none."""
        gate = next((x for x in ("b", "log_b") if x in self.parts), None)
        return "" if gate is None else self(gate, "b") + " "

    def written(self, value: str) -> str:
        """Write what a step adds to the state."""
        return f"{self.strength}{self('k')}{value}"

    def meaning(self) -> list[str]:
        """Say what a and b are, and f and w where they follow from k, b and a."""
        lines, parts = [], self.parts
        if {"log_decay", "phase", "sign"} & set(parts):
            angle = f"i {self('phase', 'theta')}" if "phase" in parts else ""
            if "rate" in parts:
                log = f"{self('log_decay', 'dt')} {self('rate', 'A')}"
            else:
                log = self("log_decay", "g") if "log_decay" in parts else ""
            sign = self("sign") + " " if "sign" in parts else ""
            exponent = " + ".join(x for x in (log, angle) if x)
            name = next(x for x in ("log_decay", "phase", "sign") if x in parts)
            lines.append(f"{self._a(name)} = {sign}" + (f"exp({exponent})" if exponent else ""))
        found = [f"{self(name)} = {sign}{text}" for name, (sign, text) in self.feedback.items()]
        return [*lines, *self.gates(), *([", ".join(found)] if found else [])]

    def gates(self) -> list[str]:
        """Say what b is, if its logarithm is given."""
        return [f"{self('log_b', 'b')} = exp({self('log_b')})"] if "log_b" in self.parts else []

    def fed_back(self, S: str) -> str:
        """Write f (w^T S), with f and w as multiples of k where they are."""
        sign, f = self.feedback.get("f", ("", self("f")))
        minus, w = self.feedback.get("w", ("", self("w")))
        w = f"({minus}{w})" if minus or " " in w else w
        return f" {sign or '+'} {f} " + (f"({w}^T {S})" if S else f"{w}^T")

    @cached_property
    def feedback(self) -> dict[str, tuple[str, str]]:
        """The sign and the multiple of k that f and w are, where their values say so."""
        system = self.system
        if system.f is None or system.is_complex or system.transition is not None:
            return {}
        core = fold(system)

        def full(x: Tensor) -> Tensor:
            return x.expand(*x.shape[:2], *core.heads, *x.shape[4:]).flatten(2, 3)

        assert core.f is not None and core.w is not None
        k, f, w = full(core.k), full(core.f), full(core.w)
        one = torch.ones_like(k[..., :1])
        log = core.log if core.log is None or core.rate is None else core.log * core.rate
        a = one if log is None else full(log).exp()
        b = system.gate("b", 1.0).unsqueeze(-1)
        name, strength = self("k"), self.strength
        decay = self.decay if core.log is not None else ""
        multiples = {f"{strength}{name}": b * k, name: k}
        if decay:
            multiples |= {f"{decay}{strength}{name}": a * b * k, f"{decay}{name}": a * k}
        found = {}
        for letter, x in (("f", f), ("w", w)):
            for sign, s in (("", 1), ("-", -1)):
                text = next(
                    (t for t, y in multiples.items() if torch.allclose(*torch.broadcast_tensors(x, s * y))), None
                )
                if text is not None:
                    found[letter] = sign, text
        return found


def equations(system: System) -> list[str]:
    """State update, readout and what the letters stand for, a line each.

    How f and w follow from k, b and the decay is found by comparing their values. Of a chain, those of each System.
    """
    before = [line for x in system.systems[:-1] for line in [*_equations(x), "then, made of these y_t:"]]
    return [*before, *_equations(system)]


def _equations(system: System) -> list[str]:
    s = _Letters(system)
    if system.readout.cached:
        return _attention(system, s)
    S, r = "S" if system.v is not None else "h", system.micro
    now, before = (f"{S}_{{t,j}}", f"{S}_{{t,j-1}}") if r > 1 else (f"{S}_t", f"{S}_{{t-1}}")
    kept = f"{s.decay}{before}"
    if system.f is not None:
        kept += s.fed_back(before)
    lines = [f"{now} = {kept} + {s.written('' if system.v is None else ' ' + s('v') + '^T')}"]
    if r > 1:
        lines.append(f"j = 1 .. {r} steps a token, {S}_{{t,0}} = {S}_{{t-1,{r}}}, {S}_t = {S}_{{t,{r}}}")
    return [*lines, *_read(system, s, f"{S}_{{t-1}}" if system.exclusive else f"{S}_t"), *s.meaning()]


def _read(system: System, s: _Letters, S: str) -> list[str]:
    if system.readout.gram:
        return [f"y_t^T = x_t^T {S}", *_solved(system, s), f"G_t as S_t, with {s('k')} in place of {s('v')}"]
    if system.q is None:
        read = S if system.w_out is None else f"w_out {S}"
    else:
        read = f"{s('q')}^T {S}"
    if system.is_complex and not (system.q is None and system.w_out is None):
        read = f"Re({read})"
    if system.d is not None:
        read += f" + {s('d')}" + ("" if system.v is None else f" {s('v')}^T")
    y = "y_t" if system.v is None else "y_t^T"
    if system.eta is None:
        return [f"{y} = {read}"]
    over = f"({read})" if system.d is not None else read
    if isinstance(system.eta, Tensor):
        return [f"{y} = {over} / {_floored(system, s, s('eta'))}"]
    total = f"{s('q')}^T s_t" if not system.exclusive else f"{s('q')}^T s_{{t-1}}"
    total += f" + {s('d')}" if system.d is not None else ""
    return [
        f"{y} = {over} / eta_t",
        f"eta_t = {_floored(system, s, total)}",
        f"s_t as S_t, with 1 in place of {s('v')}",
    ]


def _solved(system: System, s: _Letters) -> list[str]:
    """Write the query of a ridge readout."""
    q, ridge, read = s("q"), s("ridge"), system.readout
    assert isinstance(read, RidgeRead)
    if s.parts["ridge"].shape[-1] == system.n and s.parts["ridge"].ndim in (2, 4):
        ridge = f"diag({ridge})"
    else:
        ridge += " |G_t|_F I" if read.relative else " I"
    solved = f"(G_t + R_t)^{{-1}} {q}"
    if read.mix is None:
        return [f"x_t = {solved}", f"R_t = {ridge}"]
    return [f"x_t = {q} + {s('mix')} (z_t - {q})", f"z_t = {solved}", f"R_t = {ridge}"]


def _floored(system: System, s: _Letters, eta: str) -> str:
    if system.eta_floor is None:
        return eta
    floor = s("eta_floor") if isinstance(system.eta_floor, Tensor) else f"{system.eta_floor:g}"
    return f"max(|{eta}|, {floor})"


def _visible_keys(read: SoftmaxRead) -> str:
    """Say which j are seen at t."""
    if read.window is None:
        return "j <= t" if read.causal else "j"
    return f"t - {read.window} < j <= t" if read.causal else f"|t - j| < {read.window}"


def _attention(system: System, s: _Letters) -> list[str]:
    read = system.readout
    assert isinstance(read, SoftmaxRead)
    seen = _visible_keys(read)
    score, moved = _score(system, s)
    inside = score if read.cap is None else f"{read.cap:g} tanh({score} / {read.cap:g})"
    for name, term in (("bias", "bias_j"), ("distance", "r_{t-j}"), ("blocks", f"m_{{t,j // {read.block}}}")):
        inside += f" + {term}" if name in system.parts else ""
    weight = f"exp({inside})"
    if read.forget is not None:
        weight = f"{'a^{t-j}' if system.is_constant('forget') else 'a_t .. a_{j+1}'} {weight}"
    eta = {"sum": f"sum_{{{seen}}} {weight}"}.get(system.eta) if isinstance(system.eta, str) else None
    more = (f" + {s('d')}" if system.d is not None else "") + (" + exp(sink)" if read.sink is not None else "")
    drawn = " + exp(sink) z_t / eta_t" if read.sink_value is not None else ""
    return [
        f"y_t = sum_{{{seen}}} alpha_tj v_j" + (f" + {s('d')} v_t / eta_t" if system.d is not None else "") + drawn,
        f"alpha_tj = {weight}" + ("" if system.eta is None else " / eta_t"),
        *([f"eta_t = {eta}{more}"] if eta else []),
        *moved,
        *s.gates(),
    ]


def _score(system: System, s: _Letters) -> tuple[str, list[str]]:
    """Write the argument of softmax, and what moves the keys in it."""
    k = "b_j k_j" if system.b is not None or system.log_b is not None else "k_j"
    if turns_only(system):
        if system.phase is None:
            return f"q_t^T {k}", []
        constant = system.is_constant("phase")
        turn = f"R{'' if constant else '_t'} = diag(exp(i {s('phase', 'theta')})), rotations of pairs of keys"
        return f"Re(q_t^T {'R^{t-j}' if constant else 'R_t .. R_{j+1}'} {k})", [turn]
    score = f"q_t^T A_t .. A_{{j+1}} {k}"
    feedback = s.fed_back("") if system.f is not None else ""
    a = s.decay.strip()
    decay = a if a.startswith("diag") else f"{a} I" if a else "I"
    lines = [f"A_t = {decay}{feedback}", *s.meaning()]
    return f"Re({score})" if system.is_complex else score, [x for x in lines if x not in s.gates()]


def realisation(system: System) -> list[str]:
    """Write the framework's h_t = Lambda_t h_{t-1} + B_t u_t, y_t = C_t h_t + D_t u_t for a system, a line each.

    Source: arXiv 2405.15731, eq. 11 and 15, with h = vec(S), key-major; the division by eta is in C and D. Written
    out in numbers by `System.matrices`.
    """
    if system.readout.cached:
        if not system.causal:
            return ["no recurrent h_t: a token sees later ones too"]
        if system.window is not None:
            return [f"no recurrent h_t: the state is a ring of the last {system.window} keys and values"]
        rotated = " of the rotated keys and queries" if system.phase is not None else ""
        rotated = rotated if turns_only(system) else " of the keys as A has moved them"
        return [
            "h_t = vec(S_t) is infinite: exp(q^T k) = phi(q)^T phi(k) has no finite feature map phi (Lemma 1)",
            f"Lambda_t = eta_{{t-1}}/eta_t I, B_t = phi(k_t) (x) I / eta_t, C_t = phi(q_t)^T (x) I{rotated}",
        ]
    s, n, p, r = _Letters(system), system.n, system.p, system.micro
    eye = f" (x) I_{p}" if p > 1 else ""
    A = s.decay.strip()
    if system.decay_kind in ("identity", "scalar") and n > 1:
        A = f"{s.decay}I_{n}"
    if system.f is not None:
        A = f"{A} + {s('f')} {s('w')}^T"
    B = s.written("")
    if system.v is None:
        B = f"{s.strength}w_in" if system.w_in is not None else f"the map from u_t to {B}"
    steps = []
    if r > 1:
        steps.append(f"A_{{t,j}} = {A}")
        A, B = f"A_{{t,{r}}} .. A_{{t,1}}", f"[ A_{{t,{r}}} .. A_{{t,j+1}} {B} ], j = 1 .. {r},"
    C = ("I" if system.w_out is None else "w_out") if system.q is None else f"{s('q')}^T"
    C = "x_t^T" if system.readout.gram else C
    eta = "" if system.eta is None else " / eta_t"
    read = "C_t h_{t-1}" if system.exclusive else "C_t h_t"
    read = f"Re({read})" if system.is_complex and (system.q is not None or system.w_out is not None) else read
    size = f"{system.state_heads} x {n * p} {'complex' if system.is_complex else 'real'}"
    return [
        f"h_t = Lambda_t h_{{t-1}} + B_t u_t,  y_t = {read} + D_t u_t",
        f"u_t = {'the input' if system.v is None else 'v_t'},  h_t = vec(S_t): {size} numbers",
        *steps,
        f"Lambda_t = {f'({A})' if eye and ' + ' in A else A}{eye}",
        f"B_t = {B}{eye}",
        f"C_t = {C}{eye}{eta}",
        "D_t = " + (f"{s('d')} I{eta}" if system.d is not None else "0"),
    ]
