"""`bench`: check that the parties of each pair are one function, then time them in turns."""

from __future__ import annotations

import copy
import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..analysis import peak_bytes
from ..architectures import REGISTRY
from ..clock import RECOVERABLE, Clock, Job, one_line, spread, take_turns
from ..errors import nearest, require, require_seed
from ..result import Paged, Progress, Record, Steps, header, until_interrupted
from .pair import MODES, Operation, Pair, Rival, Setting, like, version_of
from .reference import PROMPT, Reference, outputs
from .rivals.party import Inputs, Party, copying
from .summary import tables
from .table import PACKAGES, PAIRS

if TYPE_CHECKING:
    from ..report.page import Page

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

OURS, FLOOR, COPY = "stateform", "linear maps alone", "weights copied"
ROWS = (1, 4)
"""Sequences in a batch for which training is timed."""
COMPILERS = ("triton", "tilelang")
"""Compilers of kernels for a GPU, noted because their versions decide which kernels exist."""


class Bench(Record, Paged):
    """The result of `bench`: `print` it for tables; `.html()` and `.to_dict()` have the rest."""

    @property
    def failed(self) -> dict[str, str]:
        """List the pairs whose own layer failed, and why."""
        return {pair["name"]: pair["failed"] for pair in self.result["pairs"] if "failed" in pair}

    def page(self) -> Page:
        from .figures import page  # Plotly is slow to import and not needed until now

        return page(self.result)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from tables(self.result)


def bench(
    layers: Sequence[str] = (), *, rivals: Sequence[str] = (), modes: Sequence[str] = MODES,
    lengths: Sequence[int] = (512, 2048), positions: Sequence[int] = (10, 100_000), d_model: int = 768,
    repeats: int = 7, device: str = "cpu", dtype: str = "float32", seed: int = 0, memory_limit_gb: float = 4.0,
    on_progress: Progress | None = None, keep: Callable[[Bench], None] | None = None,
    clock: Clock = time.perf_counter,
) -> Bench:  # fmt: skip
    """Time layers beside what one would use instead, with the same weights.

    A rival whose outputs, steps or gradients differ from our layer's is reported with its difference and not timed.
    The parties of a pair take turns. Rivals run with their default settings, and so do our layers.

    Args:
        layers: names of pairs (`stateform.timing.PAIRS`) or of layers; a layer without rivals is timed beside its own
            linear maps. Default: all pairs whose rivals are named.
        rivals: packages whose rivals are wanted: transformers, mambapy, torch, fla. Default: all that are installed, on
            a CPU without fla.
        modes: "forward" (no gradients, one sequence), "training" (forward and backward, of the shortest length, one
            and four sequences), "decode" (a token from a state), "memory" (the most bytes held at once).
        lengths: tokens of the sequences.
        positions: tokens before the one that is decoded.
        d_model: width; heads are as many as fit.
        repeats: rounds; median, least and largest are kept.
        device: "cpu" or "cuda".
        dtype: in which it is timed. Layers are compared in float32 whatever it is.
        seed: of weights and inputs.
        memory_limit_gb: decoding is left out where the cache would need more.
        on_progress: called as the work goes on.
        keep: called after each pair, with a Bench of all that was found so far.
        clock: seconds; for tests.

    Returns:
        A Bench. After Ctrl-C it holds what was measured, and is not `complete`. A pair whose own layer fails says why;
        the others are measured.

    Raises:
        StateformError: before any work: an unknown name, a package that is not installed, sizes that do not fit.
    """
    wanted = chosen(layers, rivals, device)
    for name in modes:
        require(name in MODES, f"unknown mode {name!r}: {nearest(name, MODES)}")
    require(len(modes) > 0, f"name at least one mode: {', '.join(MODES)}")
    for what, values, least in (("lengths", lengths, 2), ("positions", positions, 1)):
        good = len(values) > 0 and all(isinstance(T, int) and least <= T for T in values)
        require(good, f"{what} are {list(values)}; expected whole numbers, {least} or more")
    require(d_model >= 1, f"d_model is {d_model}; expected a positive integer")
    require(repeats >= 1, f"repeats is {repeats}; expected 1 or more")
    require_seed(seed)
    require(dtype in DTYPES, f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    require(memory_limit_gb > 0, f"memory_limit_gb is {memory_limit_gb}; expected a number above 0")
    for pair in wanted:
        pair.setting(d_model, "cpu", torch.Generator().manual_seed(seed))  # raises before any work if it cannot be made
    plan = Schedule(
        tuple(dict.fromkeys(modes)), tuple(sorted(set(lengths))), tuple(sorted(set(positions))), d_model, repeats,
        device, DTYPES[dtype], seed, memory_limit_gb, clock,
    )  # fmt: skip
    packages = {rival.package: rival.version for pair in wanted for rival in pair.rivals if not rival.missing()}
    if device.startswith("cuda"):
        packages |= {name: number for name in COMPILERS if (number := version_of(name)) is not None}
    result: dict[str, Any] = {
        **header(device), "versions": packages,
        "settings": {
            "d_model": d_model, "modes": list(plan.modes), "lengths": list(plan.lengths),
            "positions": list(plan.positions), "training_rows": list(ROWS), "repeats": repeats, "device": device,
            "dtype": dtype, "seed": seed, "memory_limit_gb": memory_limit_gb,
        },
        "complete": False, "pairs": [],
    }  # fmt: skip
    step = Steps(on_progress, len(wanted) * (1 + len(plan.cases())))
    with until_interrupted(result):
        for pair in wanted:
            row: dict[str, Any] = {"name": pair.name, "layer": pair.layer, "sizes": "", "parties": [], "cases": []}
            result["pairs"].append(row)
            try:
                with quiet():
                    measure(pair, plan, row, step)
            except RECOVERABLE as error:
                row["failed"] = one_line(error)
            if keep is not None:
                keep(Bench(result))
    step.end()
    return Bench(result)


def chosen(layers: Sequence[str], rivals: Sequence[str], device: str) -> list[Pair | Operation]:
    """Select the pairs and rivals that are named, and check that their packages are installed."""
    for name in rivals:
        require(name in PACKAGES, f"no rivals are from {name!r}: {nearest(name, PACKAGES)}")
    for name in layers:
        known = {*PAIRS, *REGISTRY}
        require(name in known, f"unknown layer {name!r}: {nearest(name, known)}")
    kind = device.partition(":")[0]
    require(kind in ("cpu", "cuda"), f"device is {device!r}; expected cpu or cuda")
    if kind == "cuda":
        require(torch.cuda.is_available(), "device is cuda, and torch sees none; use --device cpu")
    packages = set(rivals or PACKAGES) - (set() if rivals or kind == "cuda" else {"fla"})
    found: list[Pair | Operation] = []
    for pair in PAIRS.values():
        taken = tuple(rival for rival in pair.rivals if rival.package in packages)
        if taken and (not layers or pair.name in layers or pair.layer in layers):
            found.append(_with(pair, taken))
    paired = {pair.layer for pair in found} | {pair.name for pair in found}
    for name in dict.fromkeys(layers):
        if name not in paired:
            known_pair = PAIRS.get(name)
            require(
                not rivals and not isinstance(known_pair, Operation),
                f"{name} has no rival from {', '.join(sorted(packages))}; leave out --rivals, or take another layer",
            )
            found.append(Pair(name, like(name)))
    for name in rivals:
        for pair in found:
            missing = [rival.missing() for rival in pair.rivals if rival.package == name]
            require(not any(missing), str(next(filter(None, missing), "")))
    return found


def _with(pair: Pair | Operation, rivals: tuple[Rival, ...]) -> Pair | Operation:
    pair = copy.copy(pair)
    object.__setattr__(pair, "rivals", rivals)
    return pair


@dataclass(frozen=True)
class Schedule:
    """The settings of a benchmark: what is measured, and how."""

    modes: tuple[str, ...]
    lengths: tuple[int, ...]
    positions: tuple[int, ...]
    d_model: int
    repeats: int
    device: str
    dtype: torch.dtype
    seed: int
    memory_limit_gb: float
    clock: Clock

    def cases(self) -> list[tuple[str, int, int]]:
        """List mode, rows and tokens of each measurement; memory is that of the longest sequence and largest batch."""
        every = [("forward", 1, T) for T in self.lengths] + [("training", rows, self.lengths[0]) for rows in ROWS]
        every += [("decode", 1, T) for T in self.positions]
        every += [("memory", 1, self.lengths[-1]), ("memory of training", ROWS[-1], self.lengths[0])]
        return [case for case in every if case[0].split()[0] in self.modes]

    def draw_inputs(
        self, inputs: Callable[[int, int, torch.dtype, torch.Generator], Inputs], rows: int, tokens: int,
        dtype: torch.dtype,
    ) -> Inputs:  # fmt: skip
        """Draw inputs and put them on the device."""
        xs = inputs(rows, tokens, dtype, torch.Generator().manual_seed(self.seed + 1))
        return tuple(x.to(self.device) for x in xs)

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def measure(pair: Pair | Operation, plan: Schedule, row: dict[str, Any], step: Callable[[str], None]) -> None:
    """Compare and time the parties of one pair, and fill its row."""
    step(f"{pair.name}: are they equal?")
    setting = pair.setting(plan.d_model, plan.device, torch.Generator().manual_seed(plan.seed))
    row["sizes"] = setting.sizes
    weights = setting.ours.weights
    row["weights"] = sum(p.numel() for p in weights)
    parties = {OURS: setting.ours}
    fit = {OURS: {"forward", "training", "decode"}}
    row["parties"].append({"name": OURS, "kind": "ours"})
    reference = Reference(pair, plan.draw_inputs, plan.dtype, setting)
    for rival in pair.rivals:
        about, party = reference.compared(rival)
        row["parties"].append(about)
        if party is not None:
            parties[rival.name], fit[rival.name] = party, set(about["timed"])
    for party in parties.values():
        party.module.to(plan.dtype)
    if setting.floor is not None:
        parties[FLOOR], fit[FLOOR] = setting.floor, {"forward", "training", "decode"}
        row["parties"].append({"name": FLOOR, "kind": "floor"})
    if weights:
        parties[COPY], fit[COPY] = copying(setting.source), {"decode"}
        row["parties"].append({"name": COPY, "kind": "copy"})
    for mode, rows, tokens in plan.cases():
        step(f"{pair.name}: {mode}, {rows} x {tokens}")
        case: dict[str, Any] = {"mode": mode, "rows": rows, "tokens": tokens, "found": {}, "left_out": {}}
        row["cases"].append(case)
        needed = "training" if mode == "memory of training" else "forward" if mode == "memory" else mode
        present = {name: party for name, party in parties.items() if needed in fit[name]}
        if mode.startswith("memory"):
            present.pop(FLOOR, None)  # it holds the outputs of all its maps at once, which is no lower bound
            _memory(present, setting, plan, case, needed)
        else:
            _times(present, setting, plan, case)


def _times(parties: dict[str, Party], setting: Setting, plan: Schedule, case: dict[str, Any]) -> None:
    mode, rows, tokens = case["mode"], case["rows"], case["tokens"]
    jobs: dict[str, Job] = {}
    for name, party in parties.items():
        growth = 0 if name in (FLOOR, COPY) else setting.ours.growth  # a rival's state grows like ours: one function
        needed = 3 * growth * tokens / 1e9
        if mode == "decode" and needed > plan.memory_limit_gb:
            case["left_out"][name] = (
                f"a cache of {tokens} tokens needs about {needed:.1f} GB, the limit is {plan.memory_limit_gb:g} GB"
            )
            continue
        jobs[name] = job(party, setting, plan, mode, rows, tokens)
    times: dict[str, list[float]] = {}
    gc.collect()  # frees what other cases held
    try:
        take_turns(jobs, plan.repeats, times, case["left_out"], plan.sync, plan.clock)
    finally:
        case["found"] = {name: spread(t) for name, t in times.items() if t}
        base = case["found"].get(OURS)
        for found in case["found"].values():
            found["ratio"] = found["median"] / base["median"] if base and base["median"] else None


def job(party: Party, setting: Setting, plan: Schedule, mode: str, rows: int, tokens: int) -> Job:
    """Make the job of the clock for one measurement of one party."""
    if mode == "decode":
        prompt = plan.draw_inputs(setting.inputs, rows, min(PROMPT, tokens), plan.dtype)
        token = tuple(x[:, :1] for x in prompt)
        begin = party.begin
        assert begin is not None

        def decode() -> Callable[[], Any]:
            with torch.no_grad():
                step = begin(prompt, tokens)
            return without_gradients(lambda: step(*token))

        return decode
    xs = plan.draw_inputs(party.inputs or setting.inputs, rows, tokens, plan.dtype)
    if mode == "forward":
        return lambda: without_gradients(lambda: party.run(*xs))
    leaves = [x.requires_grad_() for x in xs] + party.weights
    given: list[Tensor] = []

    def train() -> Callable[[], Any]:
        if not given:
            given.extend(torch.randn_like(y) for y in outputs(party.run(*xs)))
        return lambda: torch.autograd.grad(outputs(party.run(*xs)), leaves, given, allow_unused=True)

    return train


def without_gradients(go: Callable[[], Any]) -> Callable[[], Any]:
    """Run a function under `torch.no_grad`."""
    return torch.no_grad()(go)


def _memory(parties: dict[str, Party], setting: Setting, plan: Schedule, case: dict[str, Any], mode: str) -> None:
    for name, party in parties.items():
        try:
            go = job(party, setting, plan, mode, case["rows"], case["tokens"])()
            case["found"][name] = {"bytes": _peak(go, plan)}
        except RECOVERABLE as error:
            case["left_out"][name] = one_line(error)
    base = case["found"].get(OURS)
    for found in case["found"].values():
        found["ratio"] = found["bytes"] / base["bytes"] if base and base["bytes"] else None


def _peak(go: Callable[[], Any], plan: Schedule) -> int:
    if not plan.device.startswith("cuda"):
        return peak_bytes(go)
    go()
    plan.sync()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    go()
    plan.sync()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of transformers that a GPU kernel is missing: what runs by default is what is timed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
