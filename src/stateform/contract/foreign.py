"""The contract, for a causal language model of the package transformers: whatever the cache, the padding and the
packing, it gives the outputs of its own forward over each text alone.

Nothing is known here of any architecture: the model is called as its users call it, and its blocks are listened to, so
that a failure names the first module and the first position that differ.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StateformError, require, require_finite_weights
from ..system.precision import largest, relative_error, tolerance, why_no_proof, wide
from .draws import copied
from .outcome import REMEMBERS_NOTHING, Report

CACHES = ("past_key_values", "cache_params", "state")
"""The names under which models give and take what they remember."""
_MARGIN = 4.0
_MOST_NOISE = 1e-3
"""No rounding excuses more than this."""
_LARGE = 5e8
"""More weights than this are kept in float32 alone."""
_LOGITS = "logits"

Rows = list[Tensor]
"""One tensor [1,T,...] a row: the rows of a batch may have different lengths."""


def is_language_model(thing: object) -> bool:
    """Whether `thing` is a model of the package transformers; does not import the package."""
    return any(
        base.__name__ == "PreTrainedModel" and base.__module__.partition(".")[0] == "transformers"
        for base in type(thing).__mro__
    )


def check_model(
    model: Any, *, seed: int = 0, exhaustive: bool = False, on_progress: Callable[[str], None] | None = None
) -> Report:
    """Check the contract on a causal language model of the package transformers, with the weights that it has.

    Up to half a billion weights it is used in float64, where it runs there; what fails in float64 is measured again in
    float32, which models are made for, and that counts. Many models compute parts in float32 whatever they are given,
    so that the tolerance is that of float32, and what one rounding of every weight changes is added.

    Args:
        model: a causal language model; it is copied, not changed.
        seed: of the tokens.
        exhaustive: more splits, and longer texts.
        on_progress: called with the name of each part before it runs.

    Raises:
        StateformError: if `model` is no causal language model, cannot run, or has NaN or inf in weights or logits.
    """
    _refuse(model)
    report = Report(f"{type(model).__name__} ({getattr(model.config, 'model_type', '?')})")
    with _quiet(), torch.no_grad():
        narrow: _Bench | None = None
        try:
            large = sum(p.numel() for p in model.parameters()) > _LARGE
            bench = _Bench(model, report, torch.float32 if large else torch.float64, seed, exhaustive)
        except StateformError:
            raise
        except Exception:  # some operations exist in float32 alone
            bench = narrow = _narrow(model, report, seed, exhaustive)
        for part, function in PARTS.items():
            if on_progress is not None:
                on_progress(part)
            bench.run(part, function)
            failed = part in report.outcomes and report.outcomes[part].failures
            if failed and bench.dtype != torch.float32:  # models are made for float32: what fails there counts
                if narrow is None:
                    narrow = _narrow(model, report, seed, exhaustive)
                report.outcomes.pop(part)
                narrow.run(part, function)
    return report


def _narrow(model: Any, report: Report, seed: int, exhaustive: bool) -> _Bench:
    """The bench in float32; what the model raises there is said."""
    try:
        return _Bench(model, report, torch.float32, seed, exhaustive)
    except StateformError:
        raise
    except Exception as error:
        raise StateformError(
            f"{type(model).__name__} does not run on a text alone: {type(error).__name__}: {_line(error)}"
        ) from error


# -- what is given ------------------------------------------------------------------------------------------------


def _refuse(model: Any) -> None:
    """What cannot be checked is refused before any work."""
    kind = type(model).__name__
    require(
        is_language_model(model),
        f"{kind} is no model of transformers; expected a causal language model, as AutoModelForCausalLM gives it",
    )
    away = [name for name, x in (*model.named_parameters(), *model.named_buffers()) if x.is_meta]
    require(
        not away,
        f"{kind} has no weights yet: {away[0] if away else ''} is on the device 'meta'; load the weights, or move it "
        "with to_empty and initialise it",
    )
    require(
        not getattr(model.config, "is_encoder_decoder", False),
        f"{kind} is an encoder with a decoder; expected a causal language model, which has one text",
    )
    takes = _arguments(model)
    require(
        "input_ids" in takes,
        f"the forward of {kind} takes no input_ids but {', '.join(list(takes)[:3])}; expected a causal language model",
    )
    size = _vocabulary(model)
    require(size > 1, f"the vocabulary of {kind} has {size} tokens; expected two or more")
    quantized = getattr(model, "hf_quantizer", None) is not None
    require(not quantized, f"{kind} is quantized; load it without quantization_config, in float32")
    require_finite_weights(model)


def _arguments(model: nn.Module) -> dict[str, Any]:
    """What the forward of a model takes, and their kinds; with **kwargs, also what that of its base takes."""
    found: dict[str, Any] = {}
    for forward in (
        model.forward,
        *(base.__dict__["forward"] for base in type(model).__mro__ if "forward" in base.__dict__),
    ):
        known = inspect.signature(forward).parameters
        found |= {name: p.kind for name, p in known.items() if name != "self"}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
            break
    return found


def _embedding(model: Any) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _vocabulary(model: Any) -> int:
    embedding = _embedding(model)
    sizes = [getattr(embedding, "num_embeddings", None), getattr(model.config, "vocab_size", None)]
    given = [int(size) for size in sizes if size is not None]
    return min(given) if given else 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and progress of transformers, which a check would give many times."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(50)  # critical
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


# -- listening ----------------------------------------------------------------------------------------------------


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are listened to: the embedding, the blocks of the longest ModuleList, and their children."""
    names = {id(m): name for name, m in model.named_modules()}
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    longest = max(lists, key=lambda item: (len(item[1]), -item[0].count(".")), default=None)
    found: list[nn.Module] = []
    embedding = _embedding(model)
    if embedding is not None:
        found.append(embedding)
    for block in () if longest is None else longest[1]:
        found += [child for child in block.children() if not isinstance(child, nn.ModuleList)]
        found.append(block)
    return {names[id(m)]: m for m in found if id(m) in names}


class _Ears:
    """What each module gave in each call, in the order in which they spoke; the logits last."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.kinds = model, {name: type(m).__name__ for name, m in _blocks(model).items()}
        self.heard: dict[str, list[Tensor]] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[dict[str, list[Tensor]]]:
        heard: dict[str, list[Tensor]] = {}
        modules = dict(self.model.named_modules())

        def listen(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                first = _first(output)
                if first is not None and first.ndim > 2:
                    heard.setdefault(name, []).append(first.detach().clone())

            return hook

        hooks = [modules[name].register_forward_hook(listen(name)) for name in self.kinds]
        hooks.append(self.model.register_forward_hook(listen(_LOGITS)))
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()


def _first(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = list(output.values()) if isinstance(output, dict) else output
    return next((x for x in values if isinstance(x, Tensor)), None) if isinstance(values, list | tuple) else None


class _WrongShapeError(Exception):
    """The logits have other rows or tokens than the calls."""


@dataclass
class _Heard:
    """What the modules gave over a run, at the real positions of each row."""

    sites: dict[str, Rows]

    @property
    def logits(self) -> Rows:
        return self.sites[_LOGITS]


# -- the bench ----------------------------------------------------------------------------------------------------


@dataclass
class _Bench:
    """A copy of the model, and how it is called."""

    given: Any
    report: Report
    dtype: torch.dtype
    seed: int
    exhaustive: bool
    part: str = ""
    alone_before: dict[tuple[int, ...], _Heard] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.device = next((p.device for p in self.given.parameters()), torch.device("cpu"))
        self.takes = _arguments(self.given)
        self.any = inspect.Parameter.VAR_KEYWORD in self.takes.values()
        config = self.given.config
        special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
        flat = {t for s in special for t in (s if isinstance(s, list) else [s]) if t is not None}
        self.words = [t for t in range(min(_vocabulary(self.given), 4096)) if t not in flat] or [0]
        pad = getattr(config, "pad_token_id", None)
        self.pad = pad if isinstance(pad, int) and 0 <= pad < _vocabulary(self.given) else 0
        self.model = copied(self.given).to(self.dtype).eval()
        if hasattr(self.model, "generation_config"):
            from transformers import GenerationConfig

            self.model.generation_config = GenerationConfig()
        self.ears = _Ears(self.model)
        longest = getattr(config, "max_position_embeddings", None)
        self.longest = longest if isinstance(longest, int) else 2048
        self.settle()

    def settle(self) -> None:
        """Run it once, and find out how it is called, what it holds, and what rounding does to it."""
        tokens = self.tokens(1, 12)
        with self.ears.listening() as heard:
            output = self.call(tokens)
        require(
            isinstance(getattr(output, "logits", None), Tensor) and output.logits.shape[:2] == tokens.shape,
            f"{type(self.model).__name__} gives no logits [B,T,vocabulary] for its input_ids; expected a causal "
            "language model, as AutoModelForCausalLM gives it",
        )
        if why := why_no_proof(output.logits):
            site = next(name for name, outputs in heard.items() if why_no_proof(outputs[0]))
            at = f", first at {site} ({self.ears.kinds[site]})" if site in self.ears.kinds else ""
            raise StateformError(f"the logits of {type(self.model).__name__} on a text alone{at}: {why}")
        other = tokens.clone()
        other[:, -1] = self.another(tokens[:, -1])
        looks_ahead = largest(relative_error(wide(self.call(other).logits[:, :1]), wide(output.logits[:, :1])))
        encoder = getattr(self.model.config, "is_decoder", None) is False or not self.causal()
        require(
            not (encoder and looks_ahead > _MOST_NOISE),
            f"{type(self.model).__name__} is an encoder: its first output changes with its last token; expected a "
            "causal language model",
        )
        self.kept = {
            m: {k: v for k, v in m.__dict__.items() if v is None or isinstance(v, Tensor)} for m in self.model.modules()
        }
        self.recurrent = self.dynamic = False
        self.cache_name, self.gives = self.find_cache(tokens)
        self.positions = "position_ids" in self.takes
        self.noise = self.measure_noise()
        other = torch.cat([self.another(tokens[:, :-1]), tokens[:, -1:]], 1)
        if torch.equal(self.call(other).logits[:, -1], output.logits[:, -1]):
            self.report.note(REMEMBERS_NOTHING)

    def causal(self) -> bool:
        """Whether the class says that it is made to generate."""
        can = getattr(self.model, "can_generate", None)
        return bool(can is not None and can()) or "CausalLM" in type(self.model).__name__

    def find_cache(self, tokens: Tensor) -> tuple[str | None, bool]:
        """Under which name the model takes what it remembers, and whether its output gives it."""
        if not self.accepts("use_cache"):
            return None, False
        taken = [name for name in CACHES if name in self.takes]
        try:
            output = self.call(tokens, use_cache=True)
        except Exception:  # as the parts will: theirs is the finding
            self.recurrent = True
            return (taken[0] if taken else CACHES[0]), True
        self.recurrent = self.remembers(output)
        self.forget()
        for name in taken:
            if (cache := getattr(output, name, None)) is not None:
                self.dynamic = type(cache).__name__ == "DynamicCache"
                return name, True
        return (taken[0], False) if "past_key_values" in taken else (None, False)

    def remembers(self, output: Any) -> bool:
        """Whether there is more in the memory than keys and values: in the cache, or in the modules themselves."""
        caches = [c for c in (getattr(output, name, None) for name in CACHES) if c is not None]
        held = any(self.model_changed())
        own = any(hasattr(layer, "conv_states") for c in caches for layer in getattr(c, "layers", []))
        other = any(hasattr(c, "linear_cache") or not hasattr(c, "layers") for c in caches)
        return held or own or other

    def model_changed(self) -> Iterator[str]:
        """The attributes of modules that hold something since the first text."""
        for module, kept in self.kept.items():
            yield from (k for k, v in kept.items() if v is None and isinstance(module.__dict__.get(k), Tensor))

    def measure_noise(self) -> float:
        """How much the logits change if every weight is rounded to float32 differently."""
        tokens = self.tokens(2, 24)
        saved = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        try:
            before = wide(self.call(tokens).logits)
            for p in self.model.parameters():
                if p.is_floating_point():
                    wobble = torch.rand(p.shape, generator=self.generator, dtype=torch.float64).to(p) * 2 - 1
                    p.mul_(1 + wobble * 2.0**-23)
            after = wide(self.call(tokens).logits)
        except Exception:  # of two rows, say: the part "rows" finds it
            return 0.0
        finally:
            for name, p in self.model.named_parameters():
                p.copy_(saved[name])
        return min(largest(relative_error(after, before)), _MOST_NOISE)

    def claims_packing(self) -> bool:
        """Whether the model may be expected to keep packed texts apart: its source speaks of it, or it has nothing but
        attention, whose masks transformers makes from the positions.
        """
        module = sys.modules.get(type(self.model).__module__)
        try:
            source = "" if module is None else inspect.getsource(module)
        except OSError:
            source = ""
        return not self.recurrent or "seq_idx" in source or "cu_seq_lens" in source

    def accepts(self, argument: str) -> bool:
        return argument in self.takes or self.any

    def allowed(self, length: int) -> float:
        return tolerance(torch.float32, length) + _MARGIN * self.noise

    # -- calling ----------------------------------------------------------------------------------------------------

    def tokens(self, B: int, T: int) -> Tensor:
        chosen = torch.randint(len(self.words), (B, T), generator=self.generator)
        return torch.tensor(self.words)[chosen].to(self.device)

    def another(self, tokens: Tensor) -> Tensor:
        """Other tokens than these."""
        words = torch.tensor(self.words, device=self.device)
        at = torch.searchsorted(words, tokens.contiguous())
        return words[(at + 1 + len(self.words) // 3) % len(self.words)]

    def call(self, tokens: Tensor, **kwargs: Any) -> Any:
        """The model, by default without a cache."""
        if self.accepts("use_cache"):
            kwargs.setdefault("use_cache", False)
        return self.model(input_ids=tokens, **kwargs)

    def fresh(self) -> Any:
        """An empty cache, where the model is to be given one; None where it makes its own."""
        self.forget()
        return self.empty()

    def empty(self) -> Any:
        """As `fresh`, but what the modules remember stays."""
        return None if self.gives else self.given_cache()

    def given_cache(self) -> Any:
        """The empty cache that generate makes."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def forget(self) -> None:
        """Undo what the modules themselves remember of the last text."""
        for module, kept in self.kept.items():
            module.__dict__.update(kept)

    def next(self, tokens: Tensor, cache: Any, **kwargs: Any) -> Any:
        """The model over the next tokens; returns the cache after them."""
        if cache is not None:
            kwargs[str(self.cache_name)] = cache
        output = self.model(input_ids=tokens, use_cache=True, **kwargs)
        return getattr(output, str(self.cache_name)) if self.gives else cache

    def heard(
        self, run: Callable[[], Any], rows: Callable[[list[Tensor]], Rows | None], shapes: Sequence[list[int]] = ()
    ) -> _Heard:
        """What the modules gave in a run, as `rows` reads it from the list of a module's outputs, one a call, which
        should have these `shapes`: rows and tokens.
        """
        with self.ears.listening() as heard:
            run()
        found = {name: rows(outputs) for name, outputs in heard.items()}
        if found.get(_LOGITS) is None:
            raise _WrongShapeError(self.misshapen(heard, shapes))
        return _Heard({name: x for name, x in found.items() if x is not None})

    def whole(
        self, run: Callable[[], Any], lengths: Sequence[int], spans: Sequence[tuple[int, int] | Tensor]
    ) -> _Heard:
        """What the modules gave in calls of these lengths: of row i, the positions `spans[i]` of all calls together
        (from and to, or a mask).
        """

        def rows(outputs: list[Tensor]) -> Rows | None:
            if [x.shape[1] for x in outputs] != list(lengths) or any(len(x) != len(spans) for x in outputs):
                return None
            x = torch.cat(outputs, 1)
            return [x[i : i + 1, s if isinstance(s, Tensor) else slice(*s)] for i, s in enumerate(spans)]

        return self.heard(run, rows, [[len(spans), n] for n in lengths])

    def misshapen(self, heard: dict[str, list[Tensor]], shapes: Sequence[list[int]]) -> str:
        """Which module first gave other rows or tokens than it got."""
        for name, outputs in heard.items():
            for call, (x, shape) in enumerate(zip(outputs, shapes, strict=False)):
                if x.shape[:2] != torch.Size(shape):
                    position = sum(n for _, n in shapes[:call])
                    kind = self.ears.kinds.get(name)
                    at = name + ("" if kind is None else f" ({kind})")
                    return (
                        f"first at {at}: gives {list(x.shape[:2])} for {shape} (rows, tokens) from position {position}"
                    )
        return f"there are logits of {len(heard.get(_LOGITS, []))} calls"

    def alone(self, rows: Tensor | Sequence[Tensor]) -> _Heard:
        """Each row [T] by itself, without a cache: what every other way of computing it must give."""
        parts = []
        for row in rows:
            key = tuple(row.tolist())
            if key not in self.alone_before:
                self.forget()
                text = row[None]
                self.alone_before[key] = self.whole(lambda text=text: self.call(text), [len(row)], [(0, len(row))])  # type: ignore[misc]
            parts.append(self.alone_before[key])
        return _Heard({name: [p.sites[name][0] for p in parts] for name in parts[0].sites})

    # -- comparing --------------------------------------------------------------------------------------------------

    def compare(self, where: str, got: _Heard, want: _Heard) -> None:
        """Compare the logits; where they differ, name the module that did first."""
        for i, (g, w) in enumerate(zip(got.logits, want.logits, strict=True)):
            text = where if len(want.logits) == 1 else f"{where}, text {i} of {len(want.logits)}"
            allowed = self.allowed(w.shape[1])
            site = _LOGITS
            if not _close(g, w, allowed):
                site = self.first(i, got, want, allowed)
            kind = self.ears.kinds.get(site)
            at = f"first at {site}" + ("" if kind is None else f" ({kind})")
            self.report.compare(
                self.part, f"{text}: {at}" if site != _LOGITS else f"{text}: {_LOGITS}",
                got.sites[site][i], want.sites[site][i], allowed,
            )  # fmt: skip

    def first(self, row: int, got: _Heard, want: _Heard, allowed: float) -> str:
        """The first module whose output differs in a row."""
        for site in got.sites:
            if site in want.sites and not _close(got.sites[site][row], want.sites[site][row], allowed):
                return site
        return _LOGITS

    def agree(self, got: _Heard, want: _Heard) -> bool:
        """Whether the logits agree, without a record of it."""
        return all(_close(g, w, self.allowed(w.shape[1])) for g, w in zip(got.logits, want.logits, strict=True))

    def without(self, what: str) -> None:
        """Note something that the model does not offer."""
        if what not in self.report.not_offered:
            self.report.not_offered.append(what)

    def run(self, part: str, function: Callable[[_Bench], None]) -> None:
        """Run a part."""
        self.part = part
        self.generator.manual_seed(self.seed)
        with self.attempt("all of it"):
            function(self)

    @contextlib.contextmanager
    def attempt(self, where: str) -> Iterator[None]:
        """What the model raises inside is a failure."""
        try:
            yield
        except _WrongShapeError as error:
            self.report.expect(self.part, False, f"{where}: {error}")
        except Exception as error:  # whatever a model raises is what a user meets
            self.report.expect(self.part, False, f"{where}: {_raised(error)}")


def _close(got: Tensor, want: Tensor, allowed: float) -> bool:
    if got.shape != want.shape:
        return False
    return want.numel() == 0 or bool((relative_error(wide(got), wide(want)) <= allowed).all())


def _raised(error: BaseException) -> str:
    """What was raised, and where: the last line of the model's own."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}models{os.sep}" in f.filename]
    at = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"raised {type(error).__name__}{at}: {_line(error)}"


def _line(error: BaseException) -> str:
    """An error's first line, short."""
    lines = [x for x in str(error).splitlines() if x.strip()] or ["(no message)"]
    return lines[0].strip()[:200]


# -- the parts of the contract ------------------------------------------------------------------------------------


def _cache(b: _Bench) -> None:
    """With and without a cache; with an empty one given; one text after another."""
    if b.cache_name is None:
        return b.without("a cache")
    T = min(24, b.longest)
    one, two = b.tokens(2, T), b.tokens(2, T)
    spans = [(0, T)] * 2
    with b.attempt("use_cache=True"):
        got = b.whole(lambda: b.next(one, b.fresh()), [T], spans)
        b.compare("use_cache=True", got, b.alone(one))
    with b.attempt("a second text after the first"):
        b.forget()
        b.next(one, b.empty())
        got = b.whole(lambda: b.next(two, b.empty()), [T], spans)
        b.compare("a second text after the first", got, b.alone(two))
    with b.attempt("an empty cache given"):
        if b.dynamic:
            b.forget()
            got = b.whole(lambda: b.next(two, b.given_cache()), [T], spans)
            b.compare("an empty cache given", got, b.alone(two))
    b.forget()
    return None


def _splits(T: int, exhaustive: bool) -> list[tuple[int, ...]]:
    chosen: list[tuple[int, ...]] = [
        (1, 12), (2, 11), (3, 3, 3, 3), (7, 13), (7, 1, 13), (1, 1, 6, 1), (20, 9, 2, 5), (T - 10, 10), (10, T - 10),
        (T // 2, 1, T - T // 2 - 1),
    ]  # fmt: skip
    if exhaustive:
        chosen += [(n, T - n) for n in range(1, T)]
    return [c for c in chosen if min(c) > 0 and sum(c) <= T]


def _continue(b: _Bench) -> None:
    """A prefix, then many tokens at once from the cache, chunk after chunk."""
    if b.cache_name is None:
        return None
    T = min(300 if b.exhaustive else 80, b.longest)
    tokens = b.tokens(2, T)
    for split in _splits(T, b.exhaustive):
        length = sum(split)
        text = " then ".join(map(str, split)) + " tokens"

        def run(split: tuple[int, ...] = split) -> None:
            cache, at = b.fresh(), 0
            for n in split:
                cache = b.next(tokens[:, at : at + n], cache)
                at += n

        with b.attempt(text):
            got = b.whole(run, split, [(0, length)] * 2)
            b.compare(text, got, b.alone(tokens[:, :length]))
    return None


def _steps(b: _Bench) -> None:
    """One token at a time from an empty cache, and after a prefix."""
    if b.cache_name is None:
        return None
    T = min(24, b.longest)
    for rows in (1, 3):
        tokens = b.tokens(rows, T)
        for begin in (0, 2, 9):
            lengths = [*([begin] if begin else []), *[1] * (T - begin)]
            text = f"{rows} row{'s' * (rows > 1)}, from " + (f"position {begin}" if begin else "an empty cache")

            def run(lengths: list[int] = lengths, tokens: Tensor = tokens) -> None:
                cache, at = b.fresh(), 0
                for n in lengths:
                    cache = b.next(tokens[:, at : at + n], cache)
                    at += n

            with b.attempt(text):
                got = b.whole(run, lengths, [(0, T)] * rows)
                b.compare(text, got, b.alone(tokens))
    return None


_LENGTHS = (17, 9, 2)


def _padded(b: _Bench, left: bool) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """A batch of rows of different lengths, its mask, and where each row is."""
    T = max(_LENGTHS)
    tokens, mask = b.tokens(len(_LENGTHS), T), torch.zeros(len(_LENGTHS), T, dtype=torch.long, device=b.device)
    spans = [(T - n, T) if left else (0, n) for n in _LENGTHS]
    for i, (low, high) in enumerate(spans):
        mask[i, low:high] = 1
    return tokens.masked_fill(mask == 0, b.pad), mask, spans


def _where_they_are(mask: Tensor) -> Tensor:
    """The positions that generate gives for a mask."""
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)


def _padding(left: bool) -> Callable[[_Bench], None]:
    """Rows of different lengths in one batch, with attention_mask alone, as users call it."""

    def part(b: _Bench) -> None:
        if "attention_mask" not in b.takes:
            return b.without("attention_mask")
        tokens, mask, spans = _padded(b, left)
        T = tokens.shape[1]
        want = b.alone([row[low:high] for row, (low, high) in zip(tokens, spans, strict=True)])
        ways = [{}, {"position_ids": _where_they_are(mask)}] if b.positions else [{}]
        return _any_way(b, "", lambda more: b.call(tokens, attention_mask=mask, **more), ways, [T], spans, want)

    return part


def _any_way(
    b: _Bench, text: str, run: Callable[[dict[str, Tensor]], Any], ways: Sequence[dict[str, Tensor]],
    lengths: Sequence[int], spans: Sequence[tuple[int, int] | Tensor], want: _Heard,
) -> None:  # fmt: skip
    """Compare with attention_mask alone, as users call it, or else with the first of `ways` that agrees."""
    found: list[_Heard] = []
    for more in ways:
        where = text + " and ".join(["attention_mask", *more])
        with b.attempt(where):
            b.forget()
            got = b.whole(lambda more=more: run(more), lengths, spans)  # type: ignore[misc]
            found.append(got)
            if b.agree(got, want):
                if more:
                    b.without(f"{b.part} without {' and '.join(more)}")
                return b.compare(where, got, want)
    if found:
        b.compare(f"{text}attention_mask", found[0], want)
    return None


def _padded_continued(b: _Bench) -> None:
    """After left padding, the next tokens from the cache: one by one, many at once, and by generate."""
    if b.cache_name is None or "attention_mask" not in b.takes:
        return
    tokens, mask, spans = _padded(b, left=True)
    T, rows = tokens.shape[1], len(spans)
    more = b.tokens(rows, 12)
    every = torch.cat([tokens, more], 1)
    full = torch.cat([mask, mask.new_ones(more.shape)], 1)
    for split in ((1, 1, 1), (5,), (1, 5, 1), (9, 3)):
        length = T + sum(split)
        text = f"padded, then {' then '.join(map(str, split))} tokens"

        def run(split: tuple[int, ...] = split) -> None:
            cache, at = b.fresh(), 0
            for n in (T, *split):
                cache = _prepared(b, every[:, : at + n], full[:, : at + n], n, cache)
                at += n

        with b.attempt(text):
            got = b.whole(run, (T, *split), [(low, length) for low, _ in spans])
            b.compare(text, got, b.alone([row[low:length] for row, (low, _) in zip(every, spans, strict=True)]))
    with b.attempt("generate"):
        _generate(b, tokens, mask, spans)


_BETWEEN = (6, 3, 5)
"""Tokens, padding, and tokens again."""


def _padding_between(b: _Bench) -> None:
    """Padding between tokens, as a batch of chats has it whose turns have different lengths: all in one forward, and
    the tokens after it from the cache, as generate calls it. Each row gives what its tokens give without padding.
    """
    if "attention_mask" not in b.takes:
        return
    first, T = _BETWEEN[0] + _BETWEEN[1], sum(_BETWEEN)
    tokens, keep = b.tokens(2, T), torch.ones(2, T, dtype=torch.bool, device=b.device)
    keep[0, _BETWEEN[0] : first] = False
    tokens, mask = tokens.masked_fill(~keep, b.pad), keep.long()
    want = b.alone([row[there] for row, there in zip(tokens, keep, strict=True)])

    def at_once(more: dict[str, Tensor]) -> Any:
        return b.call(tokens, attention_mask=mask, **more)

    def continued(_: dict[str, Tensor]) -> Any:
        cache = _prepared(b, tokens[:, :first], mask[:, :first], first, b.fresh())
        return _prepared(b, tokens, mask, T - first, cache)

    def compare(
        text: str, run: Callable[[dict[str, Tensor]], Any], ways: Sequence[dict[str, Tensor]], lengths: list[int]
    ) -> None:
        why = _refusal(lambda: run({}))
        if why:
            b.without(f"{b.part}, {text} ({why})")
        else:
            _any_way(b, f"{text}, ", run, ways, lengths, list(keep), want)

    compare("in one forward", at_once, [{}, {"position_ids": _where_they_are(mask)}][: 1 + b.positions], [T])
    if b.cache_name is not None:
        compare("continued", continued, [{}], [first, T - first])


def _refusal(run: Callable[[], Any]) -> str:
    """What a model itself says of a mask that it does not take; "" if it takes it, or fails in another way."""
    try:
        run()
    except (ValueError, NotImplementedError) as error:
        return _line(error) if "mask" in str(error) else ""
    except Exception:  # a finding of the comparison that follows
        return ""
    return ""


def _prepared(b: _Bench, tokens: Tensor, mask: Tensor, new: int, cache: Any) -> Any:
    """The last `new` of all tokens, called as generate would; returns the cache."""
    first = new == tokens.shape[1]
    kwargs: dict[str, Any] = {"attention_mask": mask, "use_cache": True}
    if cache is not None:
        kwargs[str(b.cache_name)] = cache
    if not hasattr(b.model, "prepare_inputs_for_generation"):
        output = b.model(input_ids=tokens[:, -new:], **kwargs)
    else:
        if b.positions:
            kwargs["position_ids"] = _where_they_are(mask)
        size = None if first else new
        inputs = b.model.prepare_inputs_for_generation(
            tokens, next_sequence_length=size, is_first_iteration=first, **kwargs
        )
        if inputs.pop("logits_to_keep", None) is not None:  # some ask for the last alone
            inputs["logits_to_keep"] = 0
        output = b.model(**inputs)
    return getattr(output, str(b.cache_name)) if b.gives else cache


def _generate(b: _Bench, tokens: Tensor, mask: Tensor, spans: list[tuple[int, int]]) -> None:
    """Greedy tokens of a left padded batch, and those of each row alone: the logits that chose them."""
    new = 6
    if not hasattr(b.model, "prepare_inputs_for_generation"):
        if not hasattr(b.model, "generate"):
            return b.without("generate")
        got = b.model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False)[:, -new:]
        for i, (low, high) in enumerate(spans):
            want = b.model.generate(tokens[i : i + 1, low:high], max_new_tokens=new, do_sample=False)[:, -new:]
            b.report.expect(
                b.part, torch.equal(got[i : i + 1], want), f"generate, text {i} of {len(spans)}: other tokens"
            )
        return None
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=b.pad)

    def last(outputs: list[Tensor]) -> Rows | None:
        if len(outputs) != new:
            return None
        return [torch.cat([x[i : i + 1, -1:] for x in outputs], 1) for i in range(len(outputs[0]))]

    def generated(ids: Tensor, mask: Tensor) -> _Heard:
        b.forget()
        return b.heard(lambda: b.model.generate(ids, attention_mask=mask, generation_config=config), last)

    together = generated(tokens, mask)
    rows = [generated(tokens[i : i + 1, a:z], mask[i : i + 1, a:z]) for i, (a, z) in enumerate(spans)]
    want = _Heard({name: [r.sites[name][0] for r in rows] for name in rows[0].sites})
    b.compare(f"generate, {new} tokens", together, want)
    return None


def _packed(b: _Bench) -> None:
    """Several texts in one row, with positions that start anew."""
    if not b.positions:
        return b.without("packing")
    lengths = (9, 5, 13)
    T, ends = sum(lengths), [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    tokens = b.tokens(1, T)
    positions = torch.cat([torch.arange(n, device=b.device) for n in lengths])[None]
    cu = torch.tensor(ends, dtype=torch.int32, device=b.device)
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None].to(cu)
    flash = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": max(lengths), "max_length_k": max(lengths)}
    spans = list(itertools.pairwise(ends))
    want = b.alone([tokens[0, low:high] for low, high in spans])

    def rows(outputs: list[Tensor]) -> Rows | None:
        if len(outputs) != 1 or outputs[0].shape[:2] != (1, T):
            return None
        return [outputs[0][:, low:high] for low, high in spans]

    ways: dict[str, dict[str, Any]] = {"position_ids": {}}
    if b.any:
        ways |= {"position_ids and seq_idx": {"seq_idx": index}}
        ways |= {"position_ids, seq_idx and cu_seq_lens": {"seq_idx": index, **flash}}
    found, raised = {}, []
    for way, more in ways.items():
        b.forget()
        try:
            got = b.heard(lambda more=more: b.call(tokens, position_ids=positions, **more), rows)  # type: ignore[misc]
        except Exception as error:
            raised.append(f"{way}: {_raised(error)}")
            if isinstance(error, ValueError | NotImplementedError) and "pack" in str(error):  # it says so itself
                return b.without(f"packing ({_line(error)})")
            continue
        found[way] = got
        if b.agree(got, want):
            if way != "position_ids":
                b.without(f"packing by position_ids alone (it takes {way})")
            return b.compare(way, got, want)
    if not b.claims_packing():
        return b.without("packing")
    for way, got in found.items():
        b.compare(way, got, want)
    for text in raised:
        b.report.expect(b.part, False, text)
    return None


def _rows(b: _Bench) -> None:
    """A row of a batch is as if alone."""
    for rows, T in ((3, 19), (2, 1), (5, 2)):
        tokens = b.tokens(rows, T)
        text = f"{rows} rows of {T} token{'s' * (T > 1)}"
        with b.attempt(text):
            b.forget()
            got = b.whole(lambda tokens=tokens: b.call(tokens), [T], [(0, T)] * rows)  # type: ignore[misc]
            b.compare(text, got, b.alone(tokens))


def _future(b: _Bench) -> None:
    """Later tokens do not change earlier outputs."""
    T = min(80, b.longest)
    tokens = b.tokens(1, T)
    for at in (1, 5, 11, T - 1):
        b.forget()
        got = b.whole(lambda: b.call(tokens), [T], [(0, at)])
        b.compare(f"tokens from position {at}", got, b.alone(tokens[:, :at]))


PARTS: dict[str, Callable[[_Bench], None]] = {
    "rows": _rows,
    "future": _future,
    "cache": _cache,
    "continue": _continue,
    "steps": _steps,
    "left padding": _padding(left=True),
    "right padding": _padding(left=False),
    "padded, continued": _padded_continued,
    "padding between": _padding_between,
    "packed": _packed,
}
