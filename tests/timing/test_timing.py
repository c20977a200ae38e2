"""Every pair of the benchmark is one function; what `stateform bench` refuses, leaves out, keeps and shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stateform import StateformError, cli
from stateform.architectures import build
from stateform.clock import take_turns
from stateform.timing import PAIRS, Pair, Rival, bench
from stateform.timing.pair import Operation, like
from stateform.timing.rivals.party import Party, aged, floor, ours
from stateform.timing.run import COPY, FLOOR, OURS
from tests.independent.helpers import Double, assert_close

D = 32
SMALL: dict[str, Any] = {"d_model": 16, "lengths": [8, 12], "positions": [3, 50], "repeats": 2}


class Ticks:
    """A clock on which every look takes a second; after `stop` looks it is interrupted."""

    def __init__(self, stop: float = float("inf")) -> None:
        self.now, self.stop = 0, stop

    def __call__(self) -> float:
        self.now += 1
        if self.now > self.stop:
            raise KeyboardInterrupt
        return float(self.now)


@pytest.fixture
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)  # some modules make constants as they are built
    try:
        with Double():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


# -- the same function ------------------------------------------------------------------------------------------------

RIVALS = [(pair.name, rival) for pair in PAIRS.values() for rival in pair.rivals if rival.package != "fla"]


@pytest.mark.parametrize(("name", "rival"), RIVALS, ids=lambda x: x if isinstance(x, str) else x.name)
@pytest.mark.usefixtures("in_double")
def test_a_rival_is_the_same_function(name: str, rival: Rival) -> None:
    """Outputs, gradients of the input and steps behind a prompt, in float64, at a narrow width."""
    if rival.missing():
        pytest.skip(str(rival.missing()))
    generator = torch.Generator().manual_seed(0)
    setting = PAIRS[name].setting(D, "cpu", generator)
    setting.ours.module.double()
    assert_same(setting, rival.make(setting.source), generator)


def assert_same(setting: Any, theirs: Party, generator: torch.Generator, T: int = 75) -> None:
    x = setting.inputs(2, T, torch.float64, generator)
    answers = []
    for party in (setting.ours, theirs):
        leaves = tuple(z.clone().requires_grad_() for z in x)
        y = party.run(*leaves)
        (y.cos() + y).sum().backward()
        first = tuple(z[:1] for z in x)
        with torch.no_grad():
            step = party.begin(tuple(z[:, :9] for z in first), 9)
            steps = torch.cat([step(*(z[:, t : t + 1] for z in first)) for t in range(9, 13)], 1)
        answers.append((y, steps, *(z.grad for z in leaves)))
    what = ("output", "steps", *(f"gradient {i}" for i in range(len(x))))
    for label, a, b in zip(what, *answers, strict=True):
        assert_close(a, b, label)
    assert_close(answers[0][1], answers[0][0][:1, 9:13], "steps of ours and its whole sequence")


@pytest.mark.parametrize("name", [name for name, pair in PAIRS.items() if isinstance(pair, Pair)])
def test_a_pair_has_the_sizes_that_it_is_for(name: str) -> None:
    """At d_model 768, without a forward pass: weights and floor, and no head wider than 256."""
    layer = PAIRS[name].make(768)
    maps = sum(p.numel() for p in floor(layer).module.parameters())
    assert 0.9 < maps / sum(p.numel() for p in layer.parameters()) <= 1
    heads = getattr(layer, "n_heads", None)
    if heads is not None:
        expected = {"mamba2": 24, "kda": 6, "mlstm": 4, "lstm": 1, "gru": 1}
        assert heads == expected.get(name, 12)


def naive(decayed: bool, delta: bool, per_token: Callable[..., Tensor] | None = None) -> Callable[..., Any]:
    """An operation as fla documents it: S = exp(g) S, then k (v - k^T S) beta or k v, then y = scale q^T S."""

    def run(
        q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, initial_state: Tensor | None = None,
        output_final_state: bool = False, **rest: Tensor,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        g = rest.pop("g", rest.pop("gk", None)) if decayed else None
        beta = rest.pop("beta") if delta else None
        assert not rest, f"no such arguments: {list(rest)}"
        S = k.new_zeros(*k.shape[:1], *k.shape[2:], v.shape[-1]) if initial_state is None else initial_state
        scale, y = k.shape[-1] ** -0.5 if scale is None else scale, []
        for t in range(k.shape[1]):
            if per_token is not None:
                S = per_token(S)
            if g is not None:
                a = g[:, t].exp()
                S = S * (a[..., None] if a.ndim == 3 else a[..., None, None])
            value = v[:, t]
            if beta is not None:
                value = beta[:, t, :, None] * (value - torch.einsum("bhn,bhnp->bhp", k[:, t], S))
            S = S + k[:, t, :, :, None] * value[:, :, None]
            y.append(scale * torch.einsum("bhn,bhnp->bhp", q[:, t], S))
        return torch.stack(y, 1), S if output_final_state else None

    return run


def forget(S: Tensor) -> Tensor:
    """Retention's constant decays."""
    return S * (1 - 2.0 ** (-5 - torch.arange(S.shape[1], dtype=S.dtype)))[:, None, None]


@pytest.mark.parametrize(
    "name", [name for name, pair in PAIRS.items() if any(rival.package == "fla" for rival in pair.rivals)]
)
@pytest.mark.usefixtures("in_double")
def test_fla_is_called_as_it_is_documented(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ops: Any = ModuleType("fla.ops")
    for op, function in (
        ("delta_rule", naive(False, True)), ("gated_delta_rule", naive(True, True)), ("kda", naive(True, True)),
        ("gla", naive(True, False)), ("simple_gla", naive(True, False)), ("retention", naive(False, False, forget)),
    ):  # fmt: skip
        setattr(ops, f"chunk_{op}", function)
        setattr(ops, f"fused_recurrent_{op}", function)
    monkeypatch.setitem(sys.modules, "fla", ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.ops", ops)
    generator = torch.Generator().manual_seed(0)
    setting = PAIRS[name].setting(D, "cpu", generator)
    (rival,) = PAIRS[name].rivals
    assert_same(setting, rival.make(None), generator, T=20)


# -- bounds from below ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, pair in PAIRS.items() if isinstance(pair, Pair)])
def test_the_floor_has_every_linear_map_once(name: str) -> None:
    layer = PAIRS[name].make(D)
    bound = floor(layer)
    linear = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    assert {id(m) for m in linear} <= {id(m) for m in bound.module.children()}
    assert bound.inputs is not None
    xs = bound.inputs(1, 6, torch.float32, torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = bound.run(*xs)
    assert [z.shape[:2] for z in y] == [(1, 6)] * len(xs)


def test_an_aged_state_stands_where_it_says() -> None:
    for name in ("softmax", "mamba2", "lstm"):
        layer = build(name, d_model=16)
        x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            _, state = layer(x, return_state=True)
            old = aged(state, 50)
            layer.step(x[:, 0], old)
        assert old.position.tolist() == [50]
        grown = name == "softmax"
        assert ("keys" in old and old["keys"].shape[1] == 50) == grown
        assert ours(layer).growth == (2 * 16 * 4 if grown else 0)


# -- turns ----------------------------------------------------------------------------------------------------------


def test_parties_take_turns() -> None:
    order: list[str] = []

    def job(name: str) -> Callable[[], Callable[[], Any]]:
        return lambda: lambda: order.append(name)

    def broken() -> Callable[[], Any]:
        raise RuntimeError("out of memory")

    times: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    take_turns({"a": job("a"), "x": broken, "b": job("b")}, 3, times, failed, clock=Ticks())
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 3  # each is warmed up, and then they alternate
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3}
    assert "out of memory" in failed["x"]


# -- results --------------------------------------------------------------------------------------------------------


def fake(make: Callable[[Any], Party], package: str = "torch") -> Pair:
    return Pair("linear", like("linear"), (Rival("other", package, make),))


def off_by(factor: float) -> Callable[[Any], Party]:
    def make(layer: Any) -> Party:
        party = ours(layer)
        return Party(lambda x: factor * layer(x), layer, party.begin)

    return make


def test_a_result_has_every_case_of_every_party(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    found = bench(
        ["softmax/gpt2"], rivals=["torch"], **SMALL, clock=Ticks(), on_progress=lambda *what: seen.append(what)
    )
    result = json.loads(json.dumps(found.to_dict()))
    assert result["complete"]
    assert seen[-1][1] == seen[-1][2]
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert {"cpu", "threads", "torch"} <= set(result["machine"])
    (pair,) = result["pairs"]
    assert pair["name"] == "softmax/gpt2"
    names = [party["name"] for party in pair["parties"]]
    assert names == [OURS, "scaled_dot_product_attention", FLOOR, COPY]
    rival = pair["parties"][1]
    assert max(rival["errors"].values()) < 1e-5
    assert rival["timed"] == ["forward", "decode", "training"]
    cases = {(c["mode"], c["rows"], c["tokens"]): c["found"] for c in pair["cases"]}
    assert set(cases) == {
        ("forward", 1, 8), ("forward", 1, 12), ("training", 1, 8), ("training", 4, 8), ("decode", 1, 3),
        ("decode", 1, 50), ("memory", 1, 12), ("memory of training", 4, 8),
    }  # fmt: skip
    for (mode, *_), parties in cases.items():
        present = {"decode": names, "memory": names[:2]}.get(mode.split()[0], names[:3])
        assert list(parties) == present
        for one in parties.values():
            assert one["bytes"] > 0 if mode.startswith("memory") else one["median"] == 1000.0
            assert one["ratio"] == (one["bytes"] / parties[OURS]["bytes"] if mode.startswith("memory") else 1)
    shown = str(found)
    assert "scaled_dot_product_att" in shown.replace("\n", "")
    page = found.html()
    assert "scaled_dot_product_attention" in page
    assert "softmax/gpt2" in page


def test_what_differs_is_told_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAIRS, "linear", fake(off_by(1.01)))
    found = bench(["linear"], rivals=["torch"], modes=["forward", "decode", "memory"], **SMALL, clock=Ticks())
    (pair,) = found.result["pairs"]
    assert pair["parties"][1]["timed"] == ["decode"]
    assert "forward differs by 0.01" in " ".join(pair["parties"][1]["notes"])
    assert "other" not in pair["cases"][0]["found"]
    assert "differs by" in str(found)


def test_a_rival_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(layer: Any) -> Party:
        raise TypeError("no such option")

    monkeypatch.setitem(PAIRS, "linear", fake(make))
    found = bench(["linear"], rivals=["torch"], modes=["forward"], **SMALL, clock=Ticks())
    assert "no such option" in str(found.result["pairs"][0]["parties"][1]["notes"])


@pytest.mark.parametrize("error", [ModuleNotFoundError("no module of that model"), KeyError("scale")])
@pytest.mark.drawn(0.4)
def test_whatever_a_rival_fails_with_costs_no_other_measurement(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(x: Tensor) -> Tensor:
        raise error

    monkeypatch.setitem(PAIRS, "linear", fake(lambda layer: Party(run, layer, ours(layer).begin)))
    found = bench(["linear"], rivals=["torch"], modes=["forward", "decode"], **SMALL, clock=Ticks())
    (pair,) = found.result["pairs"]
    assert pair["parties"][1]["timed"] == ["decode"]
    assert f"forward fails: {type(error).__name__}" in str(pair["parties"][1]["notes"])
    assert found.complete
    assert not found.failed
    assert OURS in pair["cases"][0]["found"]
    assert "other" in pair["cases"][-1]["found"]


def test_a_pair_that_fails_costs_no_other_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(pair: Any, plan: Any, row: dict[str, Any], step: Any) -> None:
        if pair.name == "gla":
            raise RuntimeError("out of memory")
        row["cases"].append({"mode": "forward", "rows": 1, "tokens": 8, "found": {}, "left_out": {}})

    monkeypatch.setattr(import_module("stateform.timing.run"), "measure", measured)
    kept: list[int] = []
    found = bench(["gla", "hgrn2"], **SMALL, keep=lambda found: kept.append(len(found.result["pairs"])))
    assert found.complete
    assert kept == [1, 2]
    assert found.failed == {"gla": "RuntimeError: out of memory"}
    assert "gla failed: RuntimeError: out of memory" in " ".join(str(found).split())
    assert found.result["pairs"][1]["cases"]


def test_without_drawing_packages_the_numbers_are_printed_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly" or "stateform.report" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    numbers, page = tmp_path / "out.json", tmp_path / "out.html"
    words = ["--layers", "gru", "--rivals", "torch", "--modes", "forward,memory", "--d-model", "16"]
    words += ["--lengths", "4", "--repeats", "1", "--json", str(numbers), "--html", str(page)]
    monkeypatch.setattr(sys, "argv", ["stateform", "bench", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1  # the page was asked for, and is not there
    assert not page.exists()
    written = json.loads(numbers.read_text())
    assert written["complete"]
    assert written["command"].startswith("stateform bench --layers gru")
    said = capsys.readouterr()
    assert "How long does a forward pass take?" in said.out and "nn.GRU" in said.out  # tables need no drawings
    assert "How much memory is held at once?" in said.out
    assert "No report: No module named 'plotly" in said.err


def test_a_killed_benchmark_has_written_the_pairs_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(pair: Any, plan: Any, row: dict[str, Any], step: Any) -> None:
        if pair.name == "hgrn2":
            raise SystemExit(137)

    monkeypatch.setattr(import_module("stateform.timing.run"), "measure", killed)
    numbers = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["stateform", "bench", "--layers", "gla,hgrn2", "--json", str(numbers)])
    with pytest.raises(SystemExit):
        cli.main()
    written = json.loads(numbers.read_text())
    assert [pair["name"] for pair in written["pairs"]] == ["gla"]
    assert not written["complete"]
    assert written["command"].startswith("stateform bench --layers gla,hgrn2")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAIRS, "linear", fake(off_by(1.0), "mambapy"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = bench(["linear"], modes=["forward"], **SMALL, clock=Ticks())
    assert "pip install 'stateform[bench]'" in str(found.result["pairs"][0]["parties"][1]["notes"])
    with pytest.raises(StateformError, match=r"mambapy is not installed: pip install 'stateform\[bench\]'"):
        bench(["linear"], rivals=["mambapy"], **SMALL)


def test_a_layer_without_rivals_is_timed_beside_its_maps() -> None:
    found = bench(["gla"], modes=["forward"], **SMALL, clock=Ticks())
    assert list(found.result["pairs"][0]["cases"][0]["found"]) == [OURS, FLOOR]


def test_a_cache_beyond_the_limit_is_left_out() -> None:
    found = bench(
        ["softmax"], rivals=["transformers"], modes=["decode"], **SMALL | {"positions": [3, 10**6]},
        memory_limit_gb=0.1, clock=Ticks(),
    )  # fmt: skip
    short, long = found.result["pairs"][0]["cases"]
    assert not short["left_out"]
    assert list(long["found"]) == [FLOOR, COPY]
    assert "0.4 GB" in long["left_out"][OURS]


@pytest.mark.parametrize("stop", [5, 40])
def test_an_interruption_keeps_what_was_measured(stop: int) -> None:
    found = bench(["lstm"], rivals=["torch"], modes=["forward"], **SMALL, clock=Ticks(stop))
    assert not found.complete
    (pair,) = found.result["pairs"]
    assert bool(pair["cases"][0]["found"]) == (stop == 40)
    assert "stopped before its end" in str(found)
    assert "stopped before its end" in found.html()


def test_the_command_writes_what_an_interruption_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(self: object, what: str, done: int, total: int) -> None:
        if "training" in what:
            raise KeyboardInterrupt

    monkeypatch.setattr("stateform.cli.bench.Bar.__call__", stop)
    numbers = tmp_path / "out.json"
    words = ["--layers", "gru", "--rivals", "torch", "--modes", "forward,training", "--d-model", "16"]
    words += ["--lengths", "4", "--repeats", "1", "--json", str(numbers)]
    monkeypatch.setattr(sys, "argv", ["stateform", "bench", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    written = json.loads(numbers.read_text())
    assert not written["complete"]
    assert written["command"].startswith("stateform bench --layers gru")
    assert OURS in written["pairs"][0]["cases"][0]["found"]
    assert "what was measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "mamba9"], "did you mean mamba"),
        (["--rivals", "transformer"], "did you mean transformers"),
        (["--modes", "forwards"], "did you mean forward"),
        (["--lengths", "1"], "2 or more"),
        (["--lengths", "many"], "expected whole numbers"),
        (["--positions", "0"], "1 or more"),
        (["--repeats", "0"], "1 or more"),
        (["--d-model", "0"], "positive"),
        (["--d-model", "770", "--layers", "softmax"], "not divisible"),
        (["--dtype", "int8"], "expected one of float32"),
        (["--device", "tpu"], "expected cpu or cuda"),
        (["--memory-limit", "0"], "above 0"),
        (["--layers", "lstm", "--rivals", "mambapy"], "no rival from mambapy"),
        (["--layers", "gla/op"], "no rival from"),
        (["--json", "no/such/folder/out.json"], "there is no folder"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("stateform.timing.run"), "measure", lambda *_: pytest.fail("work was begun"))
    monkeypatch.setattr(sys, "argv", ["stateform", "bench", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_operations_have_the_names_of_layers() -> None:
    from stateform.architectures import REGISTRY

    for pair in PAIRS.values():
        assert pair.layer in REGISTRY
        assert len({rival.name for rival in pair.rivals}) == len(pair.rivals)
        assert isinstance(pair, (Pair, Operation))
