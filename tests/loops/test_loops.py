"""The compiled loops: equal to the steps in torch, in every structure, with gradients, and wherever they are called."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import stateform as sf
from stateform.forms import compiled as _compiled
from stateform.forms.step import token
from stateform.loops import build
from stateform.loops.channel import channel, channel_reference
from stateform.loops.conv import short_conv, short_conv_reference
from stateform.loops.matrix import matrix, matrix_reference
from stateform.loops.modes import modes, modes_reference
from stateform.loops.norm import norm, norm_reference
from stateform.system.precision import GRADIENT, tolerance
from tests.program import Ended
from tests.systems import CASES

try:
    build.library(32)
    WHY_NOT = ""
except build.UnavailableError as error:
    WHY_NOT = str(error)
needed = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
pytestmark = pytest.mark.loops


def error(got: Tensor, want: Tensor) -> float:
    got, want = got.detach(), want.detach()
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-30)) if want.numel() else 0.0


def same(got: tuple[Tensor, ...], want: tuple[Tensor, ...], inputs: list[Tensor], allowed: float) -> None:
    """Values, and gradients along random directions, agree."""
    along = [torch.randn_like(x) for x in want]
    for a, b in zip(got, want, strict=True):
        assert error(a, b) < allowed
    grads = (torch.autograd.grad(out, inputs, along, allow_unused=True, retain_graph=True) for out in (got, want))
    for x, a, b in zip(inputs, *grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.shape == x.shape
            assert error(a, b) < GRADIENT * allowed


MATRICES = [
    (2, 70, 2, 3, 5, 7),
    (1, 33, 1, 1, 16, 65),
    (2, 1, 1, 2, 20, 32),
    (1, 40, 1, 2, 33, 130),
    (1, 32, 1, 1, 1, 1),
]


@needed
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("feedback", ["none", "at its own keys", "at k"])
@pytest.mark.parametrize("decay", ["none", "scalar", "diagonal"])
@pytest.mark.parametrize("sizes", MATRICES, ids=str)
def test_matrix_states(sizes: tuple[int, ...], decay: str, feedback: str, exclusive: bool) -> None:
    B, T, G, R, n, p = sizes
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32):

        def r(*shape: int, by: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
            return (by * torch.randn(*shape, dtype=dtype)).requires_grad_()

        q, k, v, S = r(B, T, 1, R, n), r(B, T, G, 1, n, by=0.3), r(B, T, G, R, p), r(B, G, R, n, p)
        g = None if decay == "none" else r(B, T, G, R, 1 if decay == "scalar" else n)
        log = None if g is None else -g.abs()
        f = r(B, T, G, R, n, by=0.2) if feedback == "at its own keys" else None
        w = None if feedback == "none" else r(1, T, G, R, n, by=0.2)
        got = matrix(q, k, v, log, f, w, S, T, exclusive, True)[:2]
        want = matrix_reference(q, k, v, log, f, w, S, T, exclusive)
        same(got, want, [x for x in (q, k, v, g, f, w, S) if x is not None], tolerance(dtype, T))


CHANNELS = [(2, 70, 37, 5), (1, 33, 256, 16), (2, 1, 20, 1), (1, 100, 40, 1), (1, 65, 300, 20)]


@needed
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("decay", ["none", "varying", "product", "constant"])
@pytest.mark.parametrize("sizes", CHANNELS, ids=str)
def test_channels(sizes: tuple[int, ...], decay: str, exclusive: bool) -> None:
    B, T, L, n = sizes
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32):

        def r(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(*shape, dtype=dtype).requires_grad_()

        q, k = (r(B, T, n), r(1, T, n)) if n > 1 else (None, None)
        v, S, step, rate = r(B, T, L), r(B, L, n), r(B, T, L), r(n, L)
        log = {"varying": -step.abs(), "product": step.abs()}.get(decay)
        a = -rate.abs() if decay in ("product", "constant") else None
        got = channel(q, k, v, log, a, S, exclusive, True)[:2]
        want = channel_reference(q, k, v, log, a, S, exclusive)
        used = [x for x in (q, k, v, S, step if log is not None else None, rate if a is not None else None)]
        same(got, want, [x for x in used if x is not None], tolerance(dtype, T))


@needed
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("sizes", [(2, 70, 37, 3), (1, 1, 16, 1), (1, 33, 100, 16)], ids=str)
def test_constant_modes(sizes: tuple[int, ...], exclusive: bool) -> None:
    B, T, L, n = sizes
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        c, v, S = (torch.randn(s, dtype=dtype).requires_grad_() for s in ((6, n, L), (B, T, L), (B, 2, n, L)))
        damped = c * torch.tensor([1, 1, 1, 1, 0.4, 0.4], dtype=dtype)[:, None, None]
        got, want = modes(damped, v, S, exclusive, True)[:2], modes_reference(damped, v, S, exclusive)
        same(got, want, [c, v, S], tolerance(dtype, T))


@needed
@pytest.mark.parametrize("name", CASES)
def test_every_system_is_the_same_compiled_or_not(name: str) -> None:
    torch.manual_seed(0)
    system = CASES[name]()
    if system.readout.cached or _compiled.refused(system) is not None:
        assert system.readout.cached or not _compiled.usable(system)
        return
    with sf.backend("torch"):
        want, end = sf.run(system, "recurrent", return_state=True)
    with sf.backend("compiled"):
        got, state = sf.run(system, "recurrent", return_state=True)
    assert error(got, want) < tolerance(torch.float64, system.T)
    assert error(state.S, end.S) < tolerance(torch.float64, system.T)


@needed
def test_the_whole_state_behind_feedback_is_read_in_torch() -> None:
    torch.manual_seed(0)
    k, w = torch.randn(1, 20, 2, 3, dtype=torch.float64), torch.randn(1, 20, 2, 3, dtype=torch.float64)
    system = sf.System(None, k, None, f=-0.2 * w, w=w)
    assert _compiled.refused(system) == "several reads of one state"
    with sf.backend("torch"):
        want = sf.run(system, "recurrent")
    assert error(sf.run(system), want) < tolerance(torch.float64, 20)


@needed
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("p", [1, 2])
def test_complex_reads_of_a_real_state(p: int, feedback: bool) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 9, 1, 4, dtype=torch.complex128), torch.randn(1, 9, 1, 4, dtype=torch.float64)
    parts = {"f": -0.3 * k, "w": k} if feedback else {}
    system = sf.System(q.requires_grad_(), k, torch.randn(1, 9, 3, p, dtype=torch.float64), **parts)
    found = []
    for how in ("torch", "compiled"):
        with sf.backend(how):  # type: ignore[arg-type]
            y, state = sf.run(system, "recurrent", return_state=True)
        found.append((y, state.S, *torch.autograd.grad(y.sum(), q)))
    for want, got in zip(*found, strict=True):
        assert want.dtype == got.dtype
        assert error(got, want) < GRADIENT * tolerance(torch.float64, 9)


@needed
def test_lazy_signs_are_read() -> None:
    torch.manual_seed(0)
    log = torch.complex(torch.zeros(1, 40, 2), torch.rand(1, 40, 2)).conj().imag
    assert log.is_neg()
    k = torch.randn(1, 40, 2, 3)
    with torch.no_grad():
        got = sf.run(sf.System(k, k, k, log_decay=log), "recurrent")
        want = sf.run(sf.System(k, k, k, log_decay=log.resolve_neg()), "recurrent")
    assert torch.equal(got, want)


@needed
def test_a_graph_holds_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, v = torch.randn(4, 33, 1, 4).requires_grad_(), torch.randn(4, 33, 8, 5)
    torch._dynamo.reset()
    run = torch.compile(lambda q, v: sf.run(sf.System(q, q, v), "recurrent"), backend="aot_eager")
    (want,) = torch.autograd.grad(run(q, v).sum(), q)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    (got,) = torch.autograd.grad(run(q, v).sum(), q)
    assert error(got, want) < tolerance(torch.float32, 33)


@needed
def test_a_hard_reset_forgets_everything() -> None:
    log = torch.zeros(1, 40, 1, 1, 1)
    log[:, 20] = -torch.inf
    one, S = torch.ones(1, 40, 1, 1, 3), torch.full((1, 1, 1, 3, 3), 1e30)
    log.requires_grad_()
    y, _, _ = matrix(one, one, one, log, None, None, S, 40, False, True)
    assert torch.equal(y[0, 20:, 0, 0, 0], 3.0 * torch.arange(1, 21))
    (g,) = torch.autograd.grad(y[:, 20:].sum(), log)
    assert torch.isfinite(g).all() and g[0, 20] == 0


@needed
@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("sizes", [(2, 70, 37, 4), (1, 3, 16, 4), (1, 40, 1100, 3), (2, 1, 5, 2)], ids=str)
def test_short_convolutions(sizes: tuple[int, ...], activate: bool) -> None:
    B, T, L, taps = sizes
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        shapes = ((B, T, L), (B, taps - 1, L), (taps, L), (L,))
        given = [torch.randn(s, dtype=dtype).requires_grad_() for s in shapes]
        for used in (given, [*given[:3], None]):
            got, want = short_conv(*used, activate), short_conv_reference(*used, activate)
            same((got,), (want,), [x for x in used if x is not None], tolerance(dtype, T))


@needed
@pytest.mark.parametrize("gate", ["", "silu", "silu first", "sigmoid", "sigmoid first"])
@pytest.mark.parametrize(("width", "weights"), [(24, 24), (24, 0), (24, 96), (0, 0), (0, 96), (21, 21)])
def test_norms_and_gates(width: int, weights: int, gate: str) -> None:
    torch.manual_seed(0)
    n = (width or 24) * 4
    kind, first = ["", "silu", "sigmoid"].index(gate.partition(" ")[0]), gate.endswith("first")
    for dtype in (torch.float64, torch.float32):
        x, w, g = (torch.randn(s, dtype=dtype).requires_grad_() for s in ((2, 30, n), (weights or 1,), (2, 30, n)))
        given = (x.unflatten(-1, (4, -1)), w if weights else None, g if gate else None)
        options = (width, 0.7, 1 / 24, 1e-3, kind, first)
        used = [x, *([w] if weights else []), *([g] if gate else [])]
        same((norm(*given, *options),), (norm_reference(*given, *options),), used, tolerance(dtype, n))


@needed
@pytest.mark.parametrize("spoilt", range(5), ids=["q", "k", "v", "log", "w"])
def test_what_is_not_finite_changes_nothing_before_it(spoilt: int) -> None:
    torch.manual_seed(0)
    given = [torch.randn(1, 40, 1, 1, n) for n in (9, 9, 20, 1, 9)]
    given[1], given[3] = torch.nn.functional.normalize(given[1], dim=-1), -given[3].abs()
    given[4] = -given[1]
    given[spoilt][0, 21] = torch.nan
    q, k, v, log, w = given
    y = matrix(q, k, v, log, None, w, torch.zeros(1, 1, 1, 9, 20), 40, False, False)[0]
    assert torch.isfinite(y[:, :21]).all() and not torch.isfinite(y[:, 21]).all()


@needed
@pytest.mark.parametrize("rate", [-100.0, -3.0, 0.5, 1.0])
def test_the_delta_rule_where_decays_grow_or_vanish(rate: float) -> None:
    """Each write erases all that it meets, so that the state stays finite, whatever the decays are."""
    torch.manual_seed(0)
    k = torch.eye(8)[torch.arange(64) % 2][None, :, None, None].contiguous()
    q, v = torch.randn(1, 64, 1, 1, 8), torch.randn(1, 64, 1, 1, 8)
    log = torch.full((1, 64, 1, 1, 1), rate)
    given = [x.requires_grad_() for x in (q, k, v, log, -k * log.exp())]
    w, S = given.pop(), torch.zeros(1, 1, 1, 8, 8)
    got, want = (f(*given, None, w, S, 64, False, *more)[0] for f, more in ((matrix, (True,)), (matrix_steps, ())))
    assert error(got, want) < tolerance(torch.float32, 64)


def matrix_steps(q: Tensor, k: Tensor, v: Tensor, log: Tensor, f: None, w: Tensor, S: Tensor, T: int, e: bool) -> Any:
    """In float64, with f = k."""
    q, k, v, log, w, S = (x.detach().double() for x in (q, k, v, log, w, S))
    return [x.float() for x in matrix_reference(q, k, v, log, k, w, S, T, e)]


@needed
def test_parts_of_a_token_that_are_repeated() -> None:
    torch.manual_seed(0)
    q, v, S = torch.randn(2, 1, 3, 5), torch.randn(2, 1, 3, 4), torch.randn(2, 3, 5, 4)
    for k in (torch.randn(2, 1, 3, 1).expand(-1, -1, -1, 5), torch.randn(1, 1, 1, 5).expand(2, 1, 3, 5)):
        system = sf.System(q, k, v)
        found = token(system, S)
        want = S + k[:, 0, :, :, None] * v[:, 0, :, None, :]
        assert found is None or error(found[1], want) < tolerance(torch.float32, 1)


@needed
def test_feedback_that_is_the_negative_of_the_key() -> None:
    torch.manual_seed(0)
    z = torch.randn(1, 12, 2, 4, dtype=torch.complex64)
    k, f = z.imag, z.conj().imag  # f = -k, at the same place in memory
    q, v, w = torch.randn(1, 12, 2, 4), torch.randn(1, 12, 2, 3), 0.3 * k.clone()
    got, want = (sf.run(sf.System(q, k, v, f=x, w=w), "recurrent") for x in (f, -k))
    assert error(got, want) < tolerance(torch.float32, 12)


@needed
def test_second_derivatives_go_through_the_steps() -> None:
    torch.manual_seed(0)
    shapes = ((1, 3, 1, 1, 2), (1, 3, 1, 1, 2), (1, 3, 1, 1, 2), (1, 3, 1, 1, 1), (1, 1, 1, 2, 2))
    q, k, v, log, S = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes)
    assert torch.autograd.gradgradcheck(
        lambda *x: matrix(*x[:4], None, None, x[4], 3, False, True)[:2], (q, k, v, log, S)
    )


@needed
def test_inputs_of_any_layout() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 50, 2, 6, dtype=torch.float64).transpose(-1, -3).unbind(0)  # nothing contiguous
    log = -torch.rand(1, dtype=torch.float64).expand(4, 6, 2)
    system = sf.System(q, k, v, log_decay=log)
    with sf.backend("torch"):
        want = sf.run(system, "recurrent")
    assert error(sf.run(system, "recurrent"), want) < tolerance(torch.float64, 6)


@needed
@pytest.mark.parametrize("threads", [1, 2, 7, 100])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    torch.manual_seed(0)
    system = sf.System(torch.randn(1, 50, 2, 8), torch.randn(1, 50, 2, 8), torch.randn(1, 50, 2, 300))
    want = sf.run(system, "recurrent")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(sf.run(system, "recurrent"), want)
    finally:
        torch.set_num_threads(before)


@needed
def test_threads_may_call_at_once() -> None:
    torch.manual_seed(0)
    sizes = [(8 + i, 20 * i + 1) for i in range(6)]
    keys, values = ([torch.randn(1, 200, 4, size[j]) for size in sizes] for j in (0, 1))
    systems = [sf.System(k, k, v) for k, v in zip(keys, values, strict=True)]
    want = [sf.run(s, "recurrent") for s in systems]
    wrong: list[int] = []

    def again(i: int) -> None:
        for _ in range(20):
            if not torch.equal(sf.run(systems[i], "recurrent"), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=again, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


FORK = """
import os, torch, stateform as sf
torch.set_num_threads(2)
torch.manual_seed(0)
s = sf.System(torch.randn(1, 300, 4, 16), torch.randn(1, 300, 4, 16), torch.randn(1, 300, 4, 16))
want = sf.run(s, "recurrent")
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # torch's own threads do not survive a fork
    torch.get_num_threads = lambda: 2
    got = sf.run(s, "recurrent")
    os._exit(0 if torch.equal(got, want) else 1)
assert os.waitpid(child, 0)[1] == 0
print("same")
"""


@needed
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.drawn(0.4)
def test_a_forked_child_computes_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "same", done.stderr


@needed
@pytest.mark.parametrize("name", ["gla", "mamba", "gated_deltanet", "rg_lru", "gru"])
@pytest.mark.drawn(0.4)
def test_torch_compile_gives_the_same_without_a_break(name: str) -> None:
    torch.manual_seed(0)
    layer = sf.build(name, d_model=16)
    x = torch.randn(2, 40, 16)
    want = layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    got = compiled(x)
    assert error(got, want) < tolerance(torch.float32, 40)
    grads = [torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (got, want)]
    for a, b in zip(*grads, strict=True):
        assert error(a, b) < GRADIENT * tolerance(torch.float32, 40)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(sf.StateformError, match="expected one of auto, compiled, torch"), sf.backend("fast"):  # type: ignore[arg-type]
        pass


Run = Callable[..., Ended]


def begun_here(code: str, **environment: str) -> Ended:
    """Run code as if this process had just begun: it has looked for no library, and said nothing of it."""
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        for name in [name for name in os.environ if name.startswith("STATEFORM_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(build, "_found", {})
        patch.setattr(sys.modules["stateform.loops.backend"], "_told", False)
        patch.setattr(tempfile, "tempdir", None)
        code_of_exit = 0
        try:
            exec(code, {})
        except Exception:
            traceback.print_exc()
            code_of_exit = 1
    return Ended(code_of_exit, out.getvalue(), err.getvalue())


def begun(code: str, **environment: str) -> Ended:
    """Run code in a process of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("STATEFORM_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, env=kept | environment
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(
    params=[pytest.param(begun_here, id="here"), pytest.param(begun, id="a process", marks=pytest.mark.slow)]
)
def run_fresh(request: pytest.FixtureRequest) -> Run:
    """What runs code as a process that begins does."""
    return cast(Run, request.param)


SMALL = "import torch, stateform as sf; x = torch.ones(1, 9, 1, 2); print(sf.run(sf.System(x, x, x)).sum().item())"


def test_without_a_compiler_everything_works_and_says_once_what_is_missing(run_fresh: Run, tmp_path: Path) -> None:
    done = run_fresh(f"{SMALL}; {SMALL}", STATEFORM_CACHE=str(tmp_path), PATH=str(tmp_path), STATEFORM_NO_ZIG="1")
    assert done.stdout.split() == ["180.0", "180.0"], done.stderr
    assert done.stderr.count("stateform[cpu]") == 1


def test_a_compiler_that_fails_is_named_and_the_torch_forms_are_used(run_fresh: Run, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'no room' >&2\nexit 1\n")
    broken.chmod(0o700)
    done = run_fresh(f"{SMALL}; {SMALL}", STATEFORM_CACHE=str(tmp_path), STATEFORM_CC=str(broken))
    assert done.stdout.split() == ["180.0", "180.0"]
    assert done.stderr.count("compiling") == done.stderr.count("no room") == 1
    forced = run_fresh(
        "import stateform as sf\nwith sf.backend('compiled'): pass",
        STATEFORM_CACHE=str(tmp_path),
        STATEFORM_CC=str(broken),
    )
    assert "StateformError: there are no compiled loops" in forced.stderr


@pytest.fixture(scope="module")
def quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The machine's C compiler without optimisation; what it has compiled once with some flags it gives again."""
    folder = tmp_path_factory.mktemp("compiler")
    script = folder / "quick-cc"
    script.write_text(f"""#!/bin/sh
for word; do test "$before" = -o && draft=$word; before=$word; done
kept={folder}/$(printf '%s\\n' "$@" | grep -vxF "$draft" | cksum | tr -d ' ')
test -e "$kept" || {" ".join(build.find_compiler())} "$@" -O0 -o "$kept" || exit
cp "$kept" "$draft"
""")
    script.chmod(0o700)
    return str(script)


@needed
def test_a_cache_that_cannot_be_written_is_no_obstacle(run_fresh: Run, quick_compiler: str, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run_fresh(SMALL, STATEFORM_CACHE=str(blocked / "cache"), TMPDIR=str(tmp_path), STATEFORM_CC=quick_compiler)
    assert done.stdout.strip() == "180.0"
    assert list(tmp_path.glob("stateform-*/loops32-*.so"))


@needed
def test_the_library_is_compiled_once(run_fresh: Run, quick_compiler: str, tmp_path: Path) -> None:
    first, second = (run_fresh(SMALL, STATEFORM_CACHE=str(tmp_path), STATEFORM_CC=quick_compiler) for _ in range(2))
    assert first.stderr.count("compiling") == 1
    assert second.stderr == ""
    assert first.stdout == second.stdout


@needed
def test_added_flags_reach_the_compiler_and_make_a_library_of_their_own(
    run_fresh: Run, quick_compiler: str, tmp_path: Path
) -> None:
    given: dict[str, str] = {"STATEFORM_CACHE": str(tmp_path), "STATEFORM_CC": quick_compiler}
    code = f"{SMALL}; {SMALL}"
    for flags in ({}, {"STATEFORM_CFLAGS": "-fno-strict-aliasing '-DNAMED=a b'"}):
        assert run_fresh(code, **given, **flags).stdout.split() == ["180.0", "180.0"]
    assert len(list(tmp_path.glob("loops32-*.so"))) == 2
    refused = run_fresh(code, **given, STATEFORM_CFLAGS="-fno-such-flag-anywhere")
    assert refused.stdout.split() == ["180.0", "180.0"] and "no-such-flag-anywhere" in refused.stderr


@needed
def test_the_code_of_the_documentation_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cpu.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert blocks
    for block in blocks:
        exec(block, {})


@pytest.mark.parametrize("n", [3, 16, 17])
@pytest.mark.parametrize("T", [1, 2])
def test_a_reset_by_an_endless_step_is_one_for_any_number_of_keys(n: int, T: int) -> None:
    torch.manual_seed(0)
    q, k, v, b = (torch.randn(2, T, *x) for x in ((1, n), (1, n), (8, 1), (8,)))
    dt = torch.full((2, T, 8), torch.inf)
    system = sf.System(q, k, v, log_decay=(dt, -torch.rand(8, n)), b=b)
    with sf.validate(False):
        y = sf.run(system, "recurrent", initial_state=torch.randn(2, 8, n, 1))
        with sf.backend("torch"):
            want = sf.run(system[-1:], "recurrent")  # nothing is left of what was before
    torch.testing.assert_close(y[:, -1:], want)
