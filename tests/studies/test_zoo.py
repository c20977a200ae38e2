"""The zoo and the cards: computed rows that are true, equations that give the outputs, examples that run."""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import stateform as sf
from stateform.analysis import equations, expressivity, reach, realisation
from stateform.analysis.structure import describe
from stateform.architectures import REGISTRY, accepted
from stateform.cli import main
from stateform.forms import FORMS, in_order
from stateform.forms.recurrent import Recurrent
from stateform.studies import comparison
from stateform.studies.zoo import insert
from stateform.system.shapes import PER_TOKEN

D = 16
NAMES = sf.names()


@pytest.fixture(scope="module")
def cards() -> dict[str, sf.Card]:
    return {}


def card(name: str, cards: dict[str, sf.Card]) -> sf.Card:
    if name not in cards:
        cards[name] = sf.show(name, d_model=D)
    return cards[name]


class Again(Recurrent):
    """One form more."""

    name, letter, order = "again", "a", 15


def test_a_new_form_is_told_by_what_it_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = list(FORMS.values())
    assert len({form.letter for form in forms}) == len({form.order for form in forms}) == len(forms)
    assert all(len(form.letter) == 1 for form in forms)
    assert in_order(["unknown", *FORMS])[-1] == "unknown"
    before = [str(sf.zoo([name], d_model=D)) for name in ("lru", "gru")]
    assert "r recurrent, c chunkwise, s scan, m matrix, v convolution, n newton" in " ".join(before[0].split())
    assert re.search(r" rcs\w[v-] ", before[0]) and re.search(r" r[c-][s-][m-][v-]n ", before[1])
    monkeypatch.setitem(FORMS, "again", Again())
    after = str(sf.zoo(["lru"], d_model=D))
    assert re.search(r" racs\w[v-] ", after) and "r recurrent, a again, c chunkwise" in " ".join(after.split())
    assert "recurrent, again, chunkwise" in str(sf.show("softmax", d_model=D))
    found = sf.compare(["softmax", "lru"], d_model=D, max_length=12, repeats=1)
    (grid,) = [grid for grid in comparison.grids(found.result) if grid.key == "certificate"]
    assert [column.heading for column in grid.columns][2:5] == ["recurrent", "again", "chunkwise"]
    for layer in found.result["layers"]:
        assert layer["certificate"]["ok"] and "again" in layer["certificate"]["forms"]
        assert layer["cost"]["forward_ms"]["again"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.drawn(0.5)
def test_every_layer_has_a_card_whose_example_runs(name: str, cards: dict[str, sf.Card]) -> None:
    found = card(name, cards)
    layer = sf.build(name, d_model=D)
    assert found.row.parameters == sum(math.prod(shape) for shape in found.parameters.values())
    assert found.row.parameters == sum(p.numel() for p in layer.parameters())
    assert set(found.row.exists) == set(layer.forms(torch.zeros(1, 24, D)))
    assert {x.name: x.default for x in found.options} == {
        k: "required" if p.default is p.empty else repr(p.default) for k, p in accepted(type(layer)).items()
    }
    assert all(x.meaning for x in found.options), "every option is described in the docstring"
    assert {x.name for x in found.parts} == set(layer.system(torch.zeros(1, 3, D)).tensors())
    for text in (found.row.transition, found.row.read, found.row.state, found.row.expresses.tracks):
        assert text
        assert "|" not in text
    assert " ".join(found.row.summary.split()) in " ".join(str(found).split())
    names: dict[str, Any] = {}
    exec(found.example, names)
    assert names["y"].shape == (2, 100, D)
    assert names["y_t"].shape == (2, D)


# -- the equations, evaluated -------------------------------------------------------------------------------------


def value(text: str, env: dict[str, Any]) -> Any:
    """An equation's right side: sums of products, written side by side, of columns, matrices and numbers."""
    text = text.strip()
    for operators in ((" / ",), (" + ", " - ")):
        parts = split(text, operators)
        if len(parts) > 1:
            total = value(parts[0], env)
            for sign, part in zip(parts[1::2], parts[2::2], strict=True):
                x = value(part, env)
                total = total / x if sign == " / " else total + x if sign == " + " else total - x
            return total
    factors = split(text, (" ",))[::2]
    out = factor(factors[0], env)
    for text in factors[1:]:
        x = factor(text, env)
        out = out @ x if np.ndim(out) == 2 and np.ndim(x) == 2 and np.shape(out)[1] == np.shape(x)[0] else out * x
    return out


def split(text: str, operators: tuple[str, ...]) -> list[str]:
    """The text at its outermost operators: operand, operator, operand, ..."""
    depth, start, bars, out = 0, 0, 0, []
    for i, c in enumerate(text):
        bars += c == "|"
        depth += (c in "({") - (c in ")}") + (c == "|") * (1 if bars % 2 else -1)
        found = next((x for x in operators if depth == 0 and text.startswith(x, i)), None)
        if found and i >= start:
            out += [text[start:i], found]
            start = i + len(found)
    return [*out, text[start:]]


def factor(text: str, env: dict[str, Any]) -> Any:
    if text.endswith("^T"):
        return np.transpose(factor(text[:-2], env))
    if text.endswith("^{-1}"):
        return np.linalg.inv(factor(text[:-5], env))
    if text.startswith("-"):
        return -factor(text[1:], env)
    if text.startswith("("):
        return value(text[1:-1], env)
    if text.startswith("|"):
        return np.linalg.norm(value(text.strip("|_F"), env))
    if text.startswith("max("):
        return np.maximum(*(value(x, env) for x in split(text[4:-1], (", ",))[::2]))
    for name, function in (("exp", np.exp), ("Re", np.real), ("diag", lambda x: np.diag(np.ravel(x)))):
        if text.startswith(f"{name}("):
            return function(value(text[len(name) + 1 : -1], env))
    return env[text] if text in env else float(text)


def parts_of(system: sf.System, head: int, step: int, token: int) -> dict[str, Any]:
    """The letters of one head at one step, under every name that the equations may use."""
    letters = {"log_decay": "g", "phase": "theta", "transition": "A", "rate": "A"}
    letters |= {"log_decay": "dt"} if "rate" in system.tensors() else {}
    env: dict[str, Any] = {"i": 1j}
    for name, x in system.tensors().items():
        if name == "w_out":
            env[name] = x[:, head].detach().numpy()
            continue
        constant = system.is_constant(name)
        x = x[None, None] if constant else x
        at = token if name in PER_TOKEN else step
        z = x[0, 0 if constant else at, head * x.shape[2] // system.H]
        z = (z.unsqueeze(-1) if z.ndim == 1 else z).detach().numpy()
        for index in ("", "_t", "_{t,j}"):
            env[letters.get(name, name) + index] = z if z.ndim else float(z)
    return env


def by_its_equations(system: sf.System, head: int) -> np.ndarray:
    """y of one head, from the text of the equations alone."""
    lines = [line for line in equations(system) if not line.startswith(("j =", "s_t as", "G_t as"))]
    texts = dict(line.split(" = ", 1) for line in lines)
    S = next(x for x in texts if x.startswith(("S", "h")))
    order = [x for x in texts if x[0] in "ab"] + [S]
    state = np.zeros((system.n, system.p), dtype=complex)
    total = np.zeros((system.n, system.n if system.readout.gram else 1), dtype=complex)
    r, letter, out = system.micro, S[0], []
    for t in range(system.T):
        before, sum_before = state, total
        for step in range(t * r, (t + 1) * r):
            env = parts_of(system, head, step, t)
            for index in ("_{t-1}", "_{t,j-1}"):
                env[letter + index] = state
            for name in order:
                env[name] = value(texts[name], env)
            if system.eta == "sum" or system.readout.gram:
                env["v_t"], keep = np.ones((1, 1)) if system.eta == "sum" else env["k_t"], env["v_t"]
                env[letter + "_{t-1}"] = total
                total = value(texts[S], env)
                env["v_t"] = keep
            state = env[S]
        env |= {"S_t": state, "h_t": state, "S_{t-1}": before, "h_{t-1}": before}
        env |= {"s_t": total, "s_{t-1}": sum_before, "G_t": total, "I": np.eye(system.n)}
        for name in ("eta_t", "R_t", "z_t", "x_t"):
            if name in texts:
                env[name] = value(texts[name], env)
        out.append(np.ravel(value(texts["y_t" if "y_t" in texts else "y_t^T"], env)))
    return np.stack(out)


LINEAR = [n for n in NAMES if n not in ("lru", "s5")]


@pytest.mark.parametrize("name", [*LINEAR, "deltaproduct(gated=True)", "mlstm(gate_cap=None)"])
def test_the_equations_give_the_outputs(name: str) -> None:
    torch.manual_seed(3)
    layer = sf.build(name, d_model=D).double()
    with torch.no_grad():
        whole = layer.system(torch.randn(1, 5, D, dtype=torch.float64))
    assert [line for one in whole.systems for line in equations(one)] == [
        line for line in equations(whole) if not line.startswith("then")
    ]
    for system in whole.systems:
        if system.readout.cached:
            continue
        want = sf.run(system).detach()
        for head in range(0, system.H, max(1, system.H // 3)):
            got = by_its_equations(system, head)
            np.testing.assert_allclose(got, want[0, :, head].reshape(5, -1).numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["lru", "s5"])
def test_the_equations_give_the_outputs_of_a_map_over_all_heads(name: str) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        system = sf.build(name, d_model=D).double().system(torch.randn(1, 5, D, dtype=torch.float64))
        want = sf.run(system)
    total = sum(by_its_equations(system, head) for head in range(system.H))
    np.testing.assert_allclose(total, want[0, :, 0].numpy(), rtol=1e-9, atol=1e-11)


r, B, T, H, N, P = torch.randn, 1, 5, 2, 3, 4
MADE = {
    "constant modulus, varying phase": {"log_decay": -r(H).abs(), "phase": r(B, T, H, N)},
    "signs": {"log_decay": -r(B, T, H, 1).abs(), "sign": r(H, N).sign()},
    "signs alone": {"sign": r(B, T, H).sign()},
    "product decay with phase": {"log_decay": (r(B, T, H).abs(), -r(H, N).abs()), "phase": r(H, N)},
    "feedback that is no multiple of k": {"log_decay": -r(H, N).abs(), "f": r(H, N), "w": r(B, T, H, N)},
    "constant dense": {"transition": r(H, N, N), "d": r(H), "eta": r(B, T, H).exp()},
    "a floor a token": {"eta": r(H), "eta_floor": r(B, T, H).abs(), "d": r(B, T, H), "exclusive": True},
    "sum, direct, exclusive": {"eta": "sum", "d": r(B, T, H).abs(), "exclusive": True, "b": r(H).abs()},
    "micro": {"micro": 2, "log_decay": -r(B, 2 * T, H, N).abs(), "f": r(B, 2 * T, H, N), "w": r(H, N)},
    "ridge": {"readout": "ridge", "ridge": r(B, T, H).exp(), "log_decay": -r(H).abs(), "b": r(B, T, H).exp()},
}


@pytest.mark.parametrize("name", MADE)
def test_the_equations_of_systems_that_no_layer_has(name: str) -> None:
    given = MADE[name]
    steps = T * given.get("micro", 1)
    system = sf.System(r(B, T, H, N).abs(), r(B, steps, H, N).abs(), r(B, steps, H, P), **given).to(torch.float64)
    want = sf.run(system)
    if name == "constant modulus, varying phase":
        assert "a_t = exp(g + i theta_t)" in equations(system)
    for head in range(H):
        np.testing.assert_allclose(by_its_equations(system, head), want[0, :, head].numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("window", [None, 3])
def test_the_equations_of_attention(window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 6, 2, 3, dtype=torch.float64) for _ in range(3))
    g = -torch.rand(2, dtype=torch.float64)
    system = sf.System(q, k, v, forget=g, readout="exp", eta="sum", window=window)
    texts = equations(system)
    seen = "j <= t" if window is None else "t - 3 < j <= t"
    assert texts[:2] == [f"y_t = sum_{{{seen}}} alpha_tj v_j", "alpha_tj = a^{t-j} exp(q_t^T k_j) / eta_t"]
    alpha = system.coefficients()[0, 1].numpy()
    for t in range(6):
        weights = {j: math.exp(float(g[1]) * (t - j)) * math.exp(float(q[0, t, 1] @ k[0, j, 1])) for j in range(t + 1)}
        weights = {j: w for j, w in weights.items() if window is None or t - window < j}
        for j, w in weights.items():
            assert alpha[t, j] == pytest.approx(w / sum(weights.values()))


@pytest.mark.parametrize(("window", "seen"), [(None, "j"), (3, "|t - j| < 3")])
def test_the_words_of_attention_to_both_sides(window: int | None, seen: str) -> None:
    q = torch.randn(1, 6, 2, 3)
    system = sf.System(q, q, q, readout="exp", eta="sum", causal=False, window=window)
    assert equations(system)[0] == f"y_t = sum_{{{seen}}} alpha_tj v_j"
    assert realisation(system) == ["no recurrent h_t: a token sees later ones too"]
    assert ("those less than 3 away are seen" in describe(system)) == (window == 3)


def test_feedback_is_named_only_where_it_is_so() -> None:
    with torch.no_grad():
        system = sf.build("gated_deltanet", d_model=D).double().system(torch.randn(1, 4, D, dtype=torch.float64))
    assert "f_t = k_t, w_t = -a_t b_t k_t" in equations(system)
    assert "Lambda_t = (a_t I_4 + f_t w_t^T) (x) I_4" in realisation(system)
    other = sf.System(
        system.q, system.k, system.v, log_decay=system.log_decay, b=system.b, f=system.f, w=1.01 * system.w
    )
    assert "f_t = k_t" in equations(other)
    assert "+ k_t (w_t^T S_{t-1})" in equations(other)[0]


# -- what is claimed ----------------------------------------------------------------------------------------------


def only(spec: str, **sizes: Any) -> Any:
    return sf.zoo([spec], **sizes).rows[0]


def test_sizes_are_those_of_the_papers() -> None:
    assert only("mamba2", d_model=64).state == "2 x 64 x 64"  # expand 2, heads of 64 values, 64 keys
    assert only("mamba2", d_model=64).state_size == 2 * 64 * 64
    assert only("mamba", d_model=64).state_size == 2 * 64 * 16
    assert only("linear", d_model=64).state == "4 x 16 x 17"  # with the normaliser
    assert only("taylor").state_size == 4 * math.comb(4 + 2, 2) * 17
    assert (only("softmax").state_size, only("softmax").state_growth) == (0, 2 * 64)
    assert only("softmax(n_kv_heads=1)").state_growth == 2 * 16
    assert only("sliding_window(window=5)").state_size == 5 * 2 * 64
    assert only("sliding_window").state_growth == 0
    assert only("lru").state == "64 complex"
    assert only("gla", n_heads=2, d_state=8).state == "2 x 8 x 32"


REACHED, EXCLUDED, OPEN = True, False, None
# From arXiv 2411.12537 (theorems 1, 2 and its table of eigenvalues) and 2502.10297: parity, counting, permutations.
KNOWN = {
    "linear": (EXCLUDED, EXCLUDED, EXCLUDED),
    "gla": (EXCLUDED, EXCLUDED, EXCLUDED),
    "mamba": (EXCLUDED, EXCLUDED, EXCLUDED),
    "mamba2": (EXCLUDED, EXCLUDED, EXCLUDED),
    "mlstm": (EXCLUDED, EXCLUDED, EXCLUDED),
    "rg_lru": (EXCLUDED, EXCLUDED, EXCLUDED),
    "deltanet": (OPEN, EXCLUDED, OPEN),
    "deltanet(allow_negative_eigenvalues=True)": (REACHED, EXCLUDED, REACHED),
    "gated_deltanet": (OPEN, EXCLUDED, OPEN),
    "gated_deltanet(allow_negative_eigenvalues=True)": (REACHED, EXCLUDED, REACHED),
    "deltaproduct": (REACHED, REACHED, REACHED),
    "deltaproduct(allow_negative_eigenvalues=False)": (OPEN, OPEN, OPEN),
    "gateloop": (REACHED, REACHED, EXCLUDED),
    "retention": (EXCLUDED, EXCLUDED, EXCLUDED),
    "s4d": (EXCLUDED, EXCLUDED, EXCLUDED),
    "softmax": (OPEN, OPEN, OPEN),
}


@pytest.mark.parametrize("spec", KNOWN)
def test_what_is_known_to_be_expressible(spec: str) -> None:
    e = only(spec, d_model=D).expresses
    assert (e.parity.holds, e.counting.holds, e.permutations.holds) == KNOWN[spec], e


@pytest.mark.parametrize("seed", [1, 2])
def test_verdicts_do_not_hang_on_the_draw(seed: int) -> None:
    for spec in ("deltanet", "deltanet(allow_negative_eigenvalues=True)", "deltaproduct", "kda", "gateloop"):
        assert only(spec, d_model=D, seed=seed).expresses.tracks == only(spec, d_model=D).expresses.tracks


def test_the_words() -> None:
    tracks = {spec: only(spec, d_model=D).expresses.tracks for spec in ("deltanet", "softmax", "gla", "s4d")}
    assert tracks == {
        "deltanet": "parity not seen",
        "softmax": "keeps every token",
        "gla": "no parity",
        "s4d": "no: A constant",
    }
    assert only("deltaproduct(n_h=3)", d_model=D).expresses.tracks == "parity, mod m, permutes 4"
    assert only("deltanet(allow_negative_eigenvalues=True)", d_model=D).expresses.tracks == "parity, permutes 2"


def householder(*angles: float, beta: float = 2.0, tokens: int = 1) -> sf.System:
    """Products of I - beta k k^T in the plane, one reflection a step at the angles given, so many tokens in all."""
    k = torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)[None, :, None]
    v = torch.ones(1, len(angles), 1, 1, dtype=torch.float64)
    return sf.System(k[:, :tokens], k, v, f=-beta * k, w=k, micro=len(angles) // tokens)


def test_two_reflections_are_a_rotation_by_twice_their_angle() -> None:
    one, two = reach([householder(0.3)]), reach([householder(0.3, 1.0)])
    assert (one.least, one.angle, one.radius) == (pytest.approx(-1), 0.0, pytest.approx(1))
    assert two.angle == pytest.approx(2 * 0.7)
    assert two.step == pytest.approx(-1)
    third = expressivity([householder(0.0, math.pi / 3)]).counting
    assert third.holds  # a rotation by 2 pi / 3 counts mod 3
    assert reach([householder(0.3, 1.0, beta=0.9)]).angle == 0  # products of two positive matrices have real ones


def test_a_growing_eigenvalue_is_not_called_a_reflection() -> None:
    found = expressivity([householder(0.3, beta=1.3)])
    assert found.parity.holds
    assert found.tracks == "parity (to -0.3)"


def test_only_reflections_permute() -> None:
    found = expressivity([householder(0.3, 1.0, tokens=2)])
    assert (found.permutations.holds, found.tracks) == (True, "parity, permutes 2")
    assert expressivity([householder(0.3, 1.0, tokens=2, beta=1.3)]).permutations.holds is None
    assert expressivity([householder(0.3, 0.3, tokens=2)]).permutations.holds is None  # they commute


def test_turning_alone_is_enough_for_parity() -> None:
    x = torch.ones(1, 4, 1, 1, dtype=torch.float64)
    found = expressivity([sf.System(x, x, x, phase=math.pi / 2 * x)])
    assert found.reach is not None
    assert (found.reach.least, found.reach.angle) == (None, pytest.approx(math.pi / 2))
    assert (found.parity.holds, found.counting.holds, found.permutations.holds) == (True, True, False)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_eigenvalues_of_a_diagonal_with_feedback(sign: float) -> None:
    torch.manual_seed(0)
    a, k, q = torch.rand(1, 6, 2, 3, dtype=torch.float64), *torch.randn(2, 1, 6, 2, 3, dtype=torch.float64)
    system = sf.System(q, k, k, log_decay=a.log(), f=sign * k, w=a * k)
    want = np.linalg.eigvals(np.stack([np.diag(x) for x in a.reshape(-1, 3).numpy()]) + sign * outer(k, a * k)).real
    found = reach([system])
    assert (found.least, found.radius) == (pytest.approx(want.min()), pytest.approx(np.abs(want).max()))


def outer(x: Tensor, y: Tensor) -> np.ndarray:
    return np.einsum("bi,bj->bij", x.reshape(-1, 3).numpy(), y.reshape(-1, 3).numpy())


class Elman(sf.Layer):
    """h_t = tanh(w h_{t-1} + u_t) per channel, as the System of its linearisation."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.w = nn.Parameter(torch.full((d_model,), 0.9))

    def system(self, u: Tensor, past: sf.Past | None = None) -> sf.System:
        h = torch.zeros_like(u[:, 0])
        slopes, offsets = [], []
        for u_t in u.unbind(1):
            new = torch.tanh(self.w * h + u_t)
            slopes.append(self.w * (1 - new**2))
            offsets.append(new - slopes[-1] * h)
            h = new
        a = torch.stack(slopes, 1).unsqueeze(-1).unsqueeze(-1)
        return sf.System(None, torch.stack(offsets, 1).unsqueeze(-1), None, transition=a)


def test_a_nonlinear_recurrence_is_told_from_a_linear_one_with_a_window() -> None:
    found = sf.zoo([Elman], d_model=4).rows[0]
    assert found.nonlinear
    assert (found.expresses.tracks, found.expresses.parity.holds, found.expresses.reach) == ("nonlinear", None, None)
    assert "from input and state" in found.transition
    assert "the recurrence is nonlinear" in str(sf.show(Elman, d_model=4))
    for spec in ("mamba(d_conv=20)", "kda", "rg_lru(reset_first=True)", "rwkv7"):
        assert not only(spec, d_model=D).nonlinear


def test_options_that_change_the_dynamics_are_listed(cards: dict[str, sf.Card]) -> None:
    assert card("deltanet", cards).variants == {
        "allow_negative_eigenvalues=True": {"tracks": ("parity not seen", "parity, permutes 2")}
    }
    assert card("softmax", cards).variants["positions='none'"]["transition"][1] == "none: every token is kept"
    assert card("gla", cards).variants == {"allow_negative_eigenvalues=True": {"tracks": ("no parity", "parity")}}
    assert card("hgrn2", cards).variants == {}


def test_a_layer_of_ones_own_has_a_row(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"import torch\nfrom torch import Tensor, nn\nimport stateform as sf\n{inspect.getsource(Elman)}")
    found = sf.zoo([f"{file}:Elman", "gla"], d_model=4)
    assert [r.family for r in found.rows] == ["gated", "yours"]
    shown = sf.show(f"{file}:Elman", d_model=4)
    assert shown.row.summary.startswith("h_t = tanh")
    exec(shown.example, {})


# -- how it is shown ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> sf.Zoo:
    return sf.zoo(NAMES, d_model=D)  # other tests may have registered more


def test_every_layer_has_a_row(whole: sf.Zoo) -> None:
    assert sorted(r.name for r in whole.rows) == NAMES
    assert all(r.paper for r in whole.rows if REGISTRY[r.name].cls.__module__.startswith("stateform."))
    assert sf.zoo(family="delta").rows[0].name == "deltanet"
    assert json.loads(json.dumps(whole.to_dict())) == whole.to_dict()
    markdown = whole.to_markdown().splitlines()
    assert len(markdown) == 2 + len(NAMES)
    assert len({line.count("|") for line in markdown}) == 1


@pytest.mark.parametrize("width", [24, 44, 66, 80, 120, 200])
def test_it_fits_the_terminal(width: int, whole: sf.Zoo, cards: dict[str, sf.Card]) -> None:
    for thing in (whole, card("deltaproduct", cards)):
        console = Console(width=width, no_color=True)
        with console.capture() as capture:
            console.print(thing)
        lines = capture.get().splitlines()
        assert max(map(len, lines)) <= width
        if thing is whole and width >= 80:
            firsts = {line.split(" ")[0] for line in lines}
            assert set(NAMES) <= firsts
            words = {word for row in whole.rows for word in f"{row.transition} {row.expresses.tracks}".split()}
            assert words <= set(capture.get().split()), "words are broken"


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in an empty folder, not in a terminal: its exit code, output and errors."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stateform", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        return int(code or 0), *capsys.readouterr()

    return run


def test_the_commands(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- zoo -->\nold\n<!-- /zoo -->\nafter\n")
    code, out, err = command("zoo", "mamba2", "softmax", "--json", "zoo.json", "--into", "page.md", "--markdown")
    assert (code, err) == (0, "")
    found = sf.zoo(["mamba2", "softmax"])
    assert out == found.to_markdown()
    assert json.loads((tmp_path / "zoo.json").read_text()) == found.to_dict()
    assert page.read_text() == f"before\n<!-- zoo -->\n\n{found.to_markdown()}\n<!-- /zoo -->\nafter\n"
    _, piped, _ = command("zoo", "--family", "delta")
    assert re.search(r"^kda +diagonal per key, from the input, with rank-1 feedback .* 2510.26692 *$", piped, re.M)
    _, shown, _ = command("show", "qlstm(reversed=True)", "--d-model", "32")
    assert 'sf.build("qlstm(reversed=True)", d_model=32)' in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("zoo", "mamba9"), "unknown layer 'mamba9': did you mean mamba"),
        (("zoo", "--family", "delt"), "there is no family 'delt' here: did you mean delta?"),
        (("zoo", "--into", "none.md"), "there is no file none.md"),
        (("show", "gated_delta"), "did you mean gated_deltanet"),
        (("show", "gla(gates=2)"), "gla(gates=2) has no option 'gates'"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], words: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, err = command(*arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_table_needs_its_place() -> None:
    for text in ("nothing", "<!-- zoo -->\n", "<!-- /zoo -->\n<!-- zoo -->\n"):
        with pytest.raises(sf.StateformError, match="no place for the table"):
            insert(text, "| a |\n")
    with pytest.raises(sf.StateformError, match="has no option depth"):
        sf.show("gla", depth=3)


def test_it_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    sf.zoo(["mamba2"], d_model=D)
    sf.show("gla", d_model=D)
    assert torch.equal(torch.rand(1), want)
