"""A causal language model of the package transformers, as the contract sees it: tokens in, logits out, a cache.

Nothing is known here of any architecture: the model is called as its users call it, and its blocks are listened to, so
that a failure names the first module and the first position that differ.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import StateformError, require
from ..system.precision import largest, relative_error, tolerance, why_no_proof, wide
from .draws import copied, uniform
from .law import Layout
from .listening import LOGITS, Ears, Heard, places
from .outcome import REMEMBERS_NOTHING, Report, close
from .refusals import arguments, first_line, raised, require_causal_model, vocabulary

CACHES = ("past_key_values", "cache_params", "state")
"""The names under which models give and take what they remember."""
_MARGIN = 4.0
_MOST_NOISE = 1e-3
"""No rounding excuses more than this."""
LARGE = 5e8
"""More weights than this are kept in float32 alone."""

Call = Callable[..., Any]
"""A way to call a model over the newest tokens: (tokens so far, how many are new, mask so far, cache) -> cache."""


@dataclass
class ModelRunner:
    """A copy of a model, and how it is called.

    Up to half a billion weights it is used in float64, where it runs there; what fails in float64 is measured again in
    float32, which models are made for, and that counts. Many models compute parts in float32 whatever they are given,
    so that the tolerance is that of float32, and what one rounding of every weight changes is added.
    """

    given: Any
    report: Report
    dtype: torch.dtype
    seed: int
    exhaustive: bool
    part: str = ""
    alone_before: dict[tuple[int, ...], Heard] = field(default_factory=dict)
    _narrow: ModelRunner | None = None

    def __post_init__(self) -> None:
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        self.device = next((p.device for p in self.given.parameters()), torch.device("cpu"))
        self.takes = arguments(self.given)
        self.any = inspect.Parameter.VAR_KEYWORD in self.takes.values()
        self.positions = "position_ids" in self.takes
        config = self.given.config
        special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
        flat = {t for s in special for t in (s if isinstance(s, list) else [s]) if t is not None}
        words = [t for t in range(min(vocabulary(self.given), 4096)) if t not in flat] or [0]
        self.words = torch.tensor(words, device=self.device)
        pad = getattr(config, "pad_token_id", None)
        self.pad = pad if isinstance(pad, int) and 0 <= pad < vocabulary(self.given) else 0
        self.model = copied(self.given).to(self.dtype).eval()
        if hasattr(self.model, "generation_config"):
            from transformers import GenerationConfig

            self.model.generation_config = GenerationConfig()
        self.ears = Ears(self.model)
        longest = getattr(config, "max_position_embeddings", None)
        self.longest = longest if isinstance(longest, int) else 2048
        self.settle()

    # -- how it is called, what it holds, what rounding does to it ---------------------------------------------------

    def settle(self) -> None:
        """Run it once, refuse it unless it is causal, and find out all of this."""
        tokens = self.input(1, 12)
        with self.ears.listening() as heard:
            output = self.call(tokens)
        kind = type(self.model).__name__
        require(
            isinstance(getattr(output, "logits", None), Tensor) and output.logits.shape[:2] == tokens.shape,
            f"{kind} gives no logits [B,T,vocabulary] for its input_ids; expected a causal language model, as "
            "AutoModelForCausalLM gives it",
        )
        if why := why_no_proof(output.logits):
            site = next(name for name, outputs in heard.items() if why_no_proof(outputs[0]))
            at = f", first at {self.ears.named(site)}" if site in self.ears.kinds else ""
            raise StateformError(f"the logits of {kind} on a text alone{at}: {why}")
        other = tokens.clone()
        other[:, -1] = self.another(tokens[:, -1])
        looks_ahead = largest(relative_error(wide(self.call(other).logits[:, :1]), wide(output.logits[:, :1])))
        encoder = getattr(self.model.config, "is_decoder", None) is False or not self.causal()
        require(
            not (encoder and looks_ahead > _MOST_NOISE),
            f"{kind} is an encoder: its first output changes with its last token; expected a causal language model",
        )
        self.kept = {
            m: {k: v for k, v in m.__dict__.items() if v is None or isinstance(v, Tensor)} for m in self.model.modules()
        }
        self.recurrent = self.dynamic = False
        self.cache_name, self.gives = self.find_cache(tokens)
        self.noise = self.measure_noise()
        other = torch.cat([self.another(tokens[:, :-1]), tokens[:, -1:]], 1)
        if torch.equal(self.call(other).logits[:, -1], output.logits[:, -1]):
            self.report.note(REMEMBERS_NOTHING)

    def causal(self) -> bool:
        """True if the class says that it is made to generate."""
        can = getattr(self.model, "can_generate", None)
        return bool(can is not None and can()) or "CausalLM" in type(self.model).__name__

    def find_cache(self, tokens: Tensor) -> tuple[str | None, bool]:
        """Find under which name the model takes what it remembers, and whether its output gives it."""
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
        """True if there is more in the memory than keys and values: in the cache, or in the modules themselves."""
        caches = [c for c in (getattr(output, name, None) for name in CACHES) if c is not None]
        held = any(
            v is None and isinstance(module.__dict__.get(k), Tensor)
            for module, kept in self.kept.items()
            for k, v in kept.items()
        )
        own = any(hasattr(layer, "conv_states") for c in caches for layer in getattr(c, "layers", []))
        other = any(hasattr(c, "linear_cache") or not hasattr(c, "layers") for c in caches)
        return held or own or other

    def measure_noise(self) -> float:
        """Measure how much the logits change if every weight is rounded to float32 differently."""
        tokens = self.input(2, 24)
        saved = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        try:
            before = wide(self.call(tokens).logits)
            for p in self.model.parameters():
                if p.is_floating_point():
                    p.mul_(1 + (uniform(p.shape, self.generator).to(p) * 2 - 1) * 2.0**-23)
            after = wide(self.call(tokens).logits)
        except Exception:  # of two rows, say: the part "rows" finds it
            return 0.0
        finally:
            for name, p in self.model.named_parameters():
                p.copy_(saved[name])
        return min(largest(relative_error(after, before)), _MOST_NOISE)

    def claims_packing(self) -> bool:
        """True if the model may be expected to keep packed texts apart: its source speaks of it, or it has nothing but
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

    def offers(self, what: str) -> bool:
        there = self.cache_name is not None if what == "a cache" else what in self.takes
        if not there:
            self.report.lacks(what)
        return there

    # -- what goes in ------------------------------------------------------------------------------------------------

    def input(self, B: int, T: int) -> Tensor:
        chosen = torch.randint(len(self.words), (B, T), generator=self.generator, device="cpu")
        return self.words[chosen.to(self.device)]

    def another(self, tokens: Tensor) -> Tensor:
        """Draw other tokens than these."""
        at = torch.searchsorted(self.words, tokens.contiguous())
        return self.words[(at + 1 + len(self.words) // 3) % len(self.words)]

    # -- calling -----------------------------------------------------------------------------------------------------

    def call(self, tokens: Tensor, **given: Any) -> Any:
        """Call the model, by default without a cache."""
        if self.accepts("use_cache"):
            given.setdefault("use_cache", False)
        return self.model(input_ids=tokens, **given)

    def at_once(self, tokens: Tensor, new: int, mask: Tensor | None, cache: Any, **more: Any) -> Any:
        """Compute all tokens, without a cache."""
        self.call(tokens, **({} if mask is None else {"attention_mask": mask}), **more)

    def onward(self, tokens: Tensor, new: int, mask: Tensor | None, cache: Any) -> Any:
        """Compute the new tokens from the cache, as users call the model; give the cache after them."""
        given = {} if cache is None else {str(self.cache_name): cache}
        return self.cache_of(self.model(input_ids=tokens[:, -new:], use_cache=True, **given), cache)

    def as_generate(self, tokens: Tensor, new: int, mask: Tensor, cache: Any) -> Any:
        """Compute the new tokens from the cache, as generate calls the model; give the cache after them."""
        given: dict[str, Any] = {"attention_mask": mask, "use_cache": True}
        if cache is not None:
            given[str(self.cache_name)] = cache
        if not hasattr(self.model, "prepare_inputs_for_generation"):
            return self.cache_of(self.model(input_ids=tokens[:, -new:], **given), cache)
        if self.positions:
            given["position_ids"] = positions_of(mask)
        first = new == tokens.shape[1]
        inputs = self.model.prepare_inputs_for_generation(
            tokens, next_sequence_length=None if first else new, is_first_iteration=first, **given
        )
        if inputs.pop("logits_to_keep", None) is not None:  # some ask for the last alone
            inputs["logits_to_keep"] = 0
        return self.cache_of(self.model(**inputs), cache)

    def cache_of(self, output: Any, cache: Any) -> Any:
        return getattr(output, str(self.cache_name)) if self.gives else cache

    def forget(self) -> None:
        """Undo what the modules themselves remember of the last text."""
        for module, kept in self.kept.items():
            module.__dict__.update(kept)

    def empty(self) -> Any:
        """Make an empty cache, where the model is to be given one; None where it makes its own."""
        return None if self.gives else self.given_cache()

    def fresh(self) -> Any:
        """Make an empty cache as `empty` does, and undo what the modules remember."""
        self.forget()
        return self.empty()

    def given_anew(self) -> Any:
        """Make an empty cache that is given, also where the model makes its own; undo what the modules remember."""
        self.forget()
        return self.given_cache()

    def given_cache(self) -> Any:
        """Make the empty cache that generate makes."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def run(
        self,
        x: Tensor,
        layout: Layout,
        *,
        call: Call | None = None,
        start: Callable[[], Any] | None = None,
        **more: Any,
    ) -> Heard:
        """Compute what the modules give over the calls of a layout.

        Args:
            call: how the model is called: `at_once` (if not given), `onward` or `as_generate`.
            start: what gives the first cache; if not given, an empty one.
            more: for the model's forward.
        """
        mask = None if layout.mask is None else layout.mask.to(x.device)
        x = x if mask is None else x.masked_fill(~mask, self.pad)
        start = start or (self.forget if call is None else self.fresh)
        first = start()

        def every_call() -> None:
            cache = first
            for low, high in layout.spans():
                given = None if mask is None else mask[:, :high].long()
                cache = (call or self.at_once)(x[:, :high], high - low, given, cache, **more)

        return self.ears.hear(every_call, places(layout, len(x)), [[len(x), n] for n in layout.calls])

    def alone(self, x: Tensor, layout: Layout) -> Heard:
        """Compute each text by itself, without a cache."""
        parts = []
        for row, at in layout.texts:
            text = x[row, at.to(x.device)]
            key = tuple(text.tolist())
            if key not in self.alone_before:
                self.alone_before[key] = self.run(text[None], Layout.rows(1, len(text)))
            parts.append(self.alone_before[key])
        return Heard({name: [p.sites[name][0] for p in parts] for name in parts[0].sites})

    # -- comparing ---------------------------------------------------------------------------------------------------

    def allowed(self, length: int) -> float:
        return tolerance(torch.float32, length) + _MARGIN * self.noise

    def compare(self, where: str, got: Heard, want: Heard) -> None:
        """Compare the logits; where they differ, name the module that did first."""
        for i, (g, w) in enumerate(zip(got.logits, want.logits, strict=True)):
            text = where if len(want.logits) == 1 else f"{where}, text {i} of {len(want.logits)}"
            allowed = self.allowed(w.shape[1])
            site = LOGITS if close(g, w, allowed) else self.first(i, got, want, allowed)
            at = f"first at {self.ears.named(site)}" if site != LOGITS else LOGITS
            self.report.compare(self.part, f"{text}: {at}", got.sites[site][i], want.sites[site][i], allowed)

    def first(self, row: int, got: Heard, want: Heard, allowed: float) -> str:
        """Find the first module whose output differs in a row."""
        for site in got.sites:
            if site in want.sites and not close(got.sites[site][row], want.sites[site][row], allowed):
                return site
        return LOGITS

    def agree(self, got: Heard, want: Heard) -> bool:
        """True if the logits agree; the report says nothing of it."""
        return all(close(g, w, self.allowed(w.shape[1])) for g, w in zip(got.logits, want.logits, strict=True))

    @contextlib.contextmanager
    def attempt(self, where: str) -> Iterator[None]:
        """Turn what the model raises inside into a failure."""
        try:
            yield
        except Exception as error:  # whatever a model raises is what a user meets
            self.report.expect(self.part, False, f"{where}: {raised(error)}")

    def perform(self, part: str, function: Callable[[ModelRunner], None]) -> None:
        """Run a part; where it fails in float64, again in float32, and that counts."""
        self.part = part
        self.generator.manual_seed(self.seed)
        with self.attempt("all of it"):
            function(self)
        failed = part in self.report.outcomes and self.report.outcomes[part].failures
        if failed and self.dtype != torch.float32:
            if self._narrow is None:
                self._narrow = _in_float32(self.given, self.report, self.seed, self.exhaustive)
            self.report.outcomes.pop(part)
            self._narrow.perform(part, function)


def positions_of(mask: Tensor) -> Tensor:
    """Compute the positions that generate gives for a mask [B,T]."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)


# -- what is given ---------------------------------------------------------------------------------------------------


def model_runner(model: Any, seed: int, exhaustive: bool) -> ModelRunner:
    """Prepare a causal language model of transformers, with the weights that it has, for the check.

    Raises:
        StateformError: if `model` is no causal language model, cannot run, or has NaN or inf in weights or logits.
    """
    require_causal_model(model)
    report = Report(f"{type(model).__name__} ({getattr(model.config, 'model_type', '?')})")
    large = sum(p.numel() for p in model.parameters()) > LARGE
    if not large:
        try:
            return ModelRunner(model, report, torch.float64, seed, exhaustive)
        except StateformError:
            raise
        except Exception:  # some operations exist in float32 alone
            pass
    return _in_float32(model, report, seed, exhaustive)


def _in_float32(model: Any, report: Report, seed: int, exhaustive: bool) -> ModelRunner:
    """Cast the model to float32, and report what it raises there."""
    try:
        return ModelRunner(model, report, torch.float32, seed, exhaustive)
    except StateformError:
        raise
    except Exception as error:
        raise StateformError(
            f"{type(model).__name__} does not run on a text alone: {type(error).__name__}: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def model_conditions() -> Iterator[None]:
    """Switch off gradients, and the warnings and progress of transformers, which a check would give many times."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(50)  # critical
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
