"""Softmax whose scores hold transitions, sinks, caps, biases and blocks, beside dense equations written out here."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

import stateform as sf
from stateform import StateformError, System, run
from stateform.system.precision import relative_error, tolerance

FORMS = ("recurrent", "chunkwise", "matrix")
B, H, N, P = 2, 2, 8, 4


def parts(T: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    q, k, v = (torch.randn(B, T, H, x, dtype=torch.float64) for x in (N, N, P))
    return (0.5 * q).to(dtype), k.to(dtype), v.to(dtype)


def apart(got: Tensor, want: Tensor) -> float:
    return float(relative_error(got, want).max()) if want.numel() else 0.0


def reflections(T: int) -> tuple[Tensor, Tensor]:
    """f and w of A = I - beta w w^T, with beta in (0, 2)."""
    w = normalize(torch.randn(B, T, H, N, dtype=torch.float64), dim=-1)
    return -2 * torch.rand(B, T, H, 1, dtype=torch.float64) * w, w


def attended(q: Tensor, k: Tensor, v: Tensor, A: Tensor) -> Tensor:
    """Softmax of q_i^T A_i ... A_{j+1} k_j, each product of dense A [B,T,H,n,n] applied as it comes."""
    keys, y = k[:, :0], []
    for t in range(k.shape[1]):
        keys = torch.cat([torch.einsum("bhmn,blhn->blhm", A[:, t], keys), k[:, t : t + 1]], 1)
        alpha = torch.einsum("bhn,blhn->blh", q[:, t], keys).softmax(1)
        y.append(torch.einsum("blh,blhp->bhp", alpha, v[:, : t + 1]))
    return torch.stack(y, 1)


@pytest.mark.parametrize("form", FORMS)
def test_a_rotation_is_rope(form: str) -> None:
    q, k, v = parts(300)
    phase = torch.linspace(0.01, 2, N, dtype=torch.float64).expand(H, N)
    turned = run(System(q, k, v, phase=phase, readout="exp", eta="sum"), form)
    carried = run(System(q, k, v, phase=phase, log_decay=torch.zeros(H), readout="exp", eta="sum"), form)
    assert apart(carried, turned) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_reflections_are_their_dense_product(form: str) -> None:
    T = 257
    q, k, v = parts(T)
    f, w = reflections(T)
    want = attended(q, k, v, torch.eye(N, dtype=torch.float64) + f.unsqueeze(-1) * w.unsqueeze(-2))
    assert apart(run(System(q, k, v, f=f, w=w, readout="exp", eta="sum"), form), want) < 1e-10


def test_decays_signs_and_feedback_together_are_their_dense_product() -> None:
    q, k, v = parts(40)
    f, w = reflections(40)
    g, sign = -torch.rand(B, 40, H, N, dtype=torch.float64), torch.randn(H, N, dtype=torch.float64).sign()
    A = torch.diag_embed(sign * g.exp()) + f.unsqueeze(-1) * w.unsqueeze(-2)
    system = System(q, k, v, log_decay=g, sign=sign, f=f, w=w, readout="exp", eta="sum")
    for form in FORMS:
        assert apart(run(system, form), attended(q, k, v, A)) < 1e-12
    alpha = system.coefficients()
    assert apart(torch.einsum("bhij,bjhp->bihp", alpha, v), attended(q, k, v, A)) < 1e-12
    assert torch.equal(system.coefficients(queries=[3, 39]), alpha[:, :, [3, 39]])


def test_single_precision_keeps_its_digits_over_4096_tokens() -> None:
    T = 4096
    q, k, v = parts(T)
    f, w = reflections(T)
    forget = -0.01 * torch.rand(B, T, H, dtype=torch.float64)
    system = System(q, k, v, f=f, w=w, forget=forget, readout="exp", eta="sum")
    low = system.to(torch.float32)
    want = run(low.to(torch.float64), "chunkwise")
    assert apart(run(low, "chunkwise").double(), want) < tolerance(torch.float32, T, rounded=4)


@pytest.mark.parametrize("sizes", [(1,) * 20, (7, 300, 13), (260, 1, 1, 60)])
def test_a_stream_goes_on_from_its_state(sizes: tuple[int, ...]) -> None:
    T = sum(sizes)
    q, k, v = parts(T)
    f, w = reflections(T)
    system = System(q, k, v, f=f, w=w, log_decay=-torch.rand(H, dtype=torch.float64), window=50, readout="exp",
                    eta="sum", bias=torch.randn(B, T, H, dtype=torch.float64),
                    sink=torch.randn(H).double(), sink_value=torch.randn(B, T, H, P).double(), block=7,
                    blocks=shown(T, 7))  # fmt: skip
    whole, last = run(system, "matrix", return_state=True)
    for form in FORMS:
        state, y, at = None, [], 0
        for size in sizes:
            part, state = run(system[at : at + size], form, initial_state=state, return_state=True)
            y.append(part)
            at += size
        assert state is not None
        assert apart(torch.cat(y, 1), whole) < 1e-12
        for name in last:
            assert apart(state[name], last[name]) < 1e-12


def shown(T: int, block: int) -> Tensor:
    """Draw biases of blocks for T queries; a third of the blocks is hidden."""
    blocks = torch.randn(B, T, H, -(-T // block), dtype=torch.float64)
    return blocks.masked_fill(torch.rand(blocks.shape) < 0.3, -math.inf)


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


def test_chunks_take_memory_linear_in_length() -> None:
    made = []
    for T in (512, 2048):
        q, k, v = parts(T)
        f, w = reflections(T)
        with Largest() as largest, torch.no_grad():
            run(System(q, k, v, f=f, w=w, readout="exp", eta="sum"), "chunkwise")
        made.append(largest.numbers)
    assert made[1] <= 4.1 * made[0]
    assert made[1] < B * H * 2048 * 2048


def test_gradients_of_all_that_is_inside_and_outside() -> None:
    T = 6
    q, k, v = parts(T)
    f, w = reflections(T)
    more = {
        "log_decay": -torch.rand(B, T, H, N).double(), "phase": torch.randn(H, N).double(), "f": f, "w": w,
        "forget": -torch.rand(B, T, H).double(), "bias": torch.randn(B, T, H).double(),
        "distance": torch.randn(H, 3).double(), "sink": torch.randn(H).double(),
        "sink_value": torch.randn(B, T, H, P).double(), "blocks": torch.randn(B, T, H, 3).double(),
    }  # fmt: skip
    given = [x.requires_grad_() for x in (q, k, v, *more.values())]

    def y(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor, form: str) -> Tensor:
        named = dict(zip(more, rest, strict=True))
        return run(System(q, k, v, **named, cap=2.0, block=2, readout="exp", eta="sum"), form)  # type: ignore[arg-type]

    for form in FORMS:
        assert torch.autograd.gradcheck(lambda *xs, form=form: y(*xs, form=form), given, fast_mode=True)


# -- what is outside -------------------------------------------------------------------------------------------------


def logits(q: Tensor, k: Tensor) -> Tensor:
    """q_i^T k_j [B,H,T,T], -inf for later keys."""
    later = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    return torch.einsum("bihn,bjhn->bhij", q, k).masked_fill(later, -math.inf)


def of(system: System, x: Tensor, v: Tensor) -> None:
    """Compare every form with softmax of x."""
    want = torch.einsum("bhij,bjhp->bihp", x.softmax(-1), v)
    for form in FORMS:
        assert apart(run(system, form), want) < 1e-12


def test_a_sink_takes_its_share() -> None:
    q, k, v = parts(20)
    sink = torch.randn(H, dtype=torch.float64)
    x = logits(q, k)
    share = torch.sigmoid(x.logsumexp(-1) - sink[:, None])  # of what is read
    want = torch.einsum("bhij,bjhp->bihp", x.softmax(-1) * share[..., None], v)
    for form in FORMS:
        assert apart(run(System(q, k, v, sink=sink, readout="exp", eta="sum"), form), want) < 1e-12
    none = System(q, k, v, sink=torch.full((H,), -math.inf).double(), readout="exp", eta="sum")
    assert apart(run(none), run(System(q, k, v, readout="exp", eta="sum"))) < 1e-12


def test_a_cap_bounds_the_logits() -> None:
    q, k, v = parts(20)
    plain = torch.einsum("bihn,bjhn->bhij", q, k)
    later = torch.ones(20, 20, dtype=torch.bool).triu(1)
    of(
        System(q, k, v, cap=1.5, readout="exp", eta="sum"),
        (1.5 * (plain / 1.5).tanh()).masked_fill(later, -math.inf),
        v,
    )


def test_biases_of_keys_and_of_distances_are_added() -> None:
    q, k, v = parts(20)
    bias, distance = torch.randn(B, 20, 1, dtype=torch.float64), torch.randn(H, 5, dtype=torch.float64)
    far = (torch.arange(20)[:, None] - torch.arange(20)).clamp(0, 4)
    x = logits(q, k) + bias.movedim(1, 2).unsqueeze(2) + distance[:, far]
    of(System(q, k, v, bias=bias, distance=distance, readout="exp", eta="sum"), x, v)


def test_blocks_are_shown_and_hidden_for_each_query() -> None:
    q, k, v = parts(20)
    blocks = shown(20, 3)
    blocks[torch.arange(B)[:, None], torch.arange(20), :, torch.arange(20) // 3] = 0.5  # else some see nothing
    x = logits(q, k) + blocks.transpose(1, 2).repeat_interleave(3, -1)[..., :20]
    of(System(q, k, v, blocks=blocks, block=3, readout="exp", eta="sum"), x, v)


@pytest.mark.parametrize("ages", [(11, 11), (11, 4)])
def test_blocks_are_counted_from_the_first_token_of_each_row(ages: tuple[int, int]) -> None:
    """Rows of several ages go on together: the cache of the younger begins with nothing."""
    q, k, v = parts(20)
    blocks = shown(20, 3)
    whole = System(q, k, v, blocks=blocks, block=3, readout="exp", eta="sum")
    states, rest = [], []
    for row, age in enumerate(ages):
        one = whole.gather(lambda x, _, row=row: x[row : row + 1])  # type: ignore[misc]
        states.append(run(one[:age], return_state=True)[1])
        rest.append(one[age : age + 5])
    joined = {name: torch.cat([s.tensors()[name] for s in rest]) for name in ("q", "k", "v", "blocks")}
    new = System(joined["q"], joined["k"], joined["v"], blocks=joined["blocks"], block=3, readout="exp", eta="sum")
    want = run(whole, "matrix")
    for form in FORMS:
        y = run(new, form, initial_state=sf.State.cat(states))
        for row, age in enumerate(ages):
            assert apart(y[row], want[row, age : age + 5]) < 1e-12


def test_two_sums_have_one_normaliser() -> None:
    """The sink is the logarithm of another sum of weights, its value their mean."""
    q, k, v = parts(20)
    others, their = torch.rand(B, 20, H, 5, dtype=torch.float64), torch.randn(B, 20, H, 5, P, dtype=torch.float64)
    weights = logits(q, k).exp()
    numerator = torch.einsum("bhij,bjhp->bihp", weights, v) + torch.einsum("bihj,bihjp->bihp", others, their)
    want = numerator / (weights.sum(-1).transpose(1, 2) + others.sum(-1)).unsqueeze(-1)
    mean = torch.einsum("bihj,bihjp->bihp", others, their) / others.sum(-1, keepdim=True)
    for form in FORMS:
        system = System(q, k, v, sink=others.sum(-1).log(), sink_value=mean, readout="exp", eta="sum")
        assert apart(run(system, form), want) < 1e-12


@pytest.mark.parametrize("name", ["bias", "distance", "blocks"])
def test_a_read_that_sees_nothing_is_zero_and_has_gradients(name: str) -> None:
    q, k, v = (x.requires_grad_() for x in parts(5))
    bias = torch.zeros(B, 5, H, dtype=torch.float64)
    bias[:, :2] = -math.inf
    blocks = torch.zeros(B, 5, H, 3, dtype=torch.float64)
    blocks[:, :2] = blocks[..., 0] = -math.inf
    distance = torch.tensor([[-math.inf] * 2 + [0.0, -math.inf]]).double().expand(H, 4)  # only the last but one is seen
    more: dict[str, Any] = {
        "bias": {"bias": bias}, "distance": {"distance": distance}, "blocks": {"blocks": blocks, "block": 2},
    }[name]  # fmt: skip
    for form in FORMS:
        y = run(System(q, k, v, **more, readout="exp", eta="sum"), form)
        assert torch.equal(y[:, :2], torch.zeros_like(y[:, :2]))
        own = v[:, 0] if name == "distance" else v[:, 2]
        assert torch.equal(y[:, 2], own) or apart(y[:, 2], own) < 1e-12
        for x in torch.autograd.grad(y.square().sum(), (q, k, v)):
            assert torch.isfinite(x).all()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"transition": torch.eye(N).double().expand(H, N, N)}, "takes no dense transition.*log_decay.*feedback"),
        (
            {"log_decay": torch.zeros(H).double(), "causal": False},
            "looks ahead, where log_decay would have to be undone",
        ),
        ({"sink": torch.zeros(H).double(), "eta": None}, 'one more weight of the sum; it needs eta = "sum"'),
        ({"cap": 0.0}, "cap is 0.0; expected the largest logit, above 0"),
        ({"cap": True}, "cap is True"),
        ({"bias": 1.0}, "bias is a float; expected a tensor or None"),
        ({"distance": torch.zeros(3, 4).double()}, "q has 2 heads; expected a divisor of the 3 of distance"),
        ({"distance": torch.zeros(H, 0).double()}, "number of distances of distance is 0"),
        ({"distance": torch.zeros(H, 3).double(), "causal": False}, "no past to look back on"),
        ({"sink": torch.zeros(1, 5, H).double()}, "batch size"),
        ({"blocks": torch.zeros(B, 4, H, 2).double()}, "blocks .* are of `block` keys each; give both"),
        ({"block": 2}, "give both, or neither"),
        ({"block": 0, "blocks": torch.zeros(B, 4, H, 2).double()}, "block is 0; expected 1 or more keys"),
        ({"blocks": torch.zeros(B, 4, H).double(), "block": 2}, r"expected \[B,t,H,m\]"),
        ({"sink_value": torch.zeros(B, 4, H, P).double()}, "value of the sink's weight; give sink too"),
        ({"sink": torch.zeros(H).double(), "sink_value": torch.zeros(B, 4, H, P + 1).double()}, "number of values"),
        ({"sink": torch.zeros(H).double(), "sink_value": torch.zeros(B, 4, H, P).cdouble()}, "sink_value is complex"),
        ({"blocks": torch.zeros(B, 4, H, 2).cdouble(), "block": 2}, "blocks is complex; expected a real tensor"),
        ({"exclusive": True}, "inclusive and has one step a token"),
    ],
)
def test_what_softmax_cannot_take_is_told(given: dict[str, object], said: str) -> None:
    q, k, v = parts(4)
    with pytest.raises(StateformError, match=said):
        System(q, k, v, **{"readout": "exp", "eta": "sum", **given})  # type: ignore[arg-type]


def test_too_few_blocks_are_told_before_any_work() -> None:
    q, k, v = parts(10)
    system = System(q, k, v, blocks=shown(10, 4)[..., :2], block=4, readout="exp", eta="sum")
    with pytest.raises(StateformError, match="2 blocks of 4 keys hold 8 of the 10 tokens so far"):
        run(system)
    _, state = run(system[:8], return_state=True)
    with pytest.raises(StateformError, match="2 blocks of 4 keys hold 8 of the 9 tokens so far"):
        run(system[8:9], initial_state=state)


@pytest.mark.parametrize("name", ["bias", "distance", "blocks", "block", "sink", "sink_value", "cap"])
def test_what_belongs_to_softmax_is_refused_elsewhere(name: str) -> None:
    q, k, v = parts(4)
    with pytest.raises(StateformError, match=f'{name} is for readout "exp"'):
        System(q, k, v, **{name: 1 if name in ("cap", "block") else torch.zeros(H, 1)})  # type: ignore[arg-type]


def test_nan_is_found_in_what_is_outside() -> None:
    q, k, v = parts(4)
    system = System(q, k, v, sink=torch.tensor([0.0, math.nan]).double(), readout="exp", eta="sum")
    with sf.validate(True), pytest.raises(StateformError, match="sink"):
        run(system)
