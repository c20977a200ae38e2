"""lift: a pretrained model as one System per layer, each with a proof that it computes what the layer computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StateformError, require, require_finite_weights, validate
from ..forms import run
from ..layer import Past
from ..result import Progress, Result, Steps
from ..system import System
from ..system.precision import is_constant, largest, relative_error, tolerance, why_no_proof, wide
from .accelerate import undo
from .lifted import ADAPTERS, CACHES, Lifted
from .supported import mixers, require_supported
from .widen import widened

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Certificate:
    """The error of a layer's System: its output compared with the module's own, on the input that the module had."""

    layer: str
    module: str
    """Its class."""
    error: float
    """The largest difference over the largest output."""
    allowed: float
    dtype: str
    refused: str = ""
    """The reason if there is no System, or no proof."""
    note: str = ""
    """A reason why the proof says less than it seems to."""

    def __bool__(self) -> bool:
        return not self.refused and self.error <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers and strings."""
        return {**vars(self), "ok": bool(self)}

    def __str__(self) -> str:
        if self.refused:
            return f"{self.layer} ({self.module}): {self.refused}"
        verdict = "the same function" if self else "NOT the same function"
        return (
            f"{self.layer} ({self.module}): {verdict}, relative error {self.error:.2g} of {self.allowed:.2g} allowed "
            f"in {self.dtype}{f'; {self.note}' if self.note else ''}"
        )


@dataclass(frozen=True)
class _Site:
    """A mixer, and the arguments it was called with."""

    module: nn.Module
    u: Tensor
    given: dict[str, Any]


class Lift(Mapping[str, System], Result):
    """The Systems of a model on a text, by the name of the module. Each is made when asked for, and not kept.

    `print` it for the certificates; `lift.certificate(name)`, `lift.layer(name)`, `dict(lift)`.
    """

    def __init__(self, sites: dict[str, _Site], dtype: torch.dtype | None) -> None:
        self._sites, self._dtype = sites, dtype

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __getitem__(self, name: str) -> System:
        layer, u, _ = self._open(name)
        with torch.no_grad(), validate(False), widened(u.dtype):
            return layer.system(u, Past())

    def layer(self, name: str) -> Lifted:
        """Copy the module as a Layer, in the dtype of the Lift."""
        return self._open(name)[0]

    def input(self, name: str) -> Tensor:
        """Give the input that the layer read, [B,T,d_model]."""
        return self._site(name).u

    def module(self, name: str) -> nn.Module:
        """Give the module itself."""
        return self._site(name).module

    def certificate(self, name: str, system: System | None = None, *, layer: Lifted | None = None) -> Certificate:
        """Compare the module's own output with that of its System.

        Args:
            name: of the module.
            system: to compare with instead of the layer's, which is computed again.
            layer: to compare with instead of `lift.layer(name)`: one that was changed, say.
        """
        site = self._site(name)
        wanted = site.u.dtype if self._dtype is None else self._dtype
        dtype = str(wanted).removeprefix("torch.")
        kind, allowed = type(site.module).__name__, tolerance(wanted, site.u.shape[1], rounded=8)
        try:
            own, u, _ = self._open(name)
            layer = own if layer is None else layer
            with torch.no_grad(), validate(False), widened(u.dtype):
                past = Past()
                system = layer.system(u, past) if system is None else system
                y = run(system, "auto" if system.causal else "matrix")
                got = layer.output(y, u, system, past)
                want = own.module(u, **_arguments(site, u.dtype))
        except StateformError as error:
            return Certificate(name, kind, float("nan"), allowed, dtype, str(error))
        want = wide(want[0] if isinstance(want, tuple) else want)
        if why := why_no_proof(want):
            return Certificate(name, kind, float("nan"), allowed, dtype, why)
        note = "its output is constant, whatever it reads" if is_constant(want) else ""
        return Certificate(name, kind, largest(relative_error(wide(got), want)), allowed, dtype, note=note)

    def certificates(self, on_progress: Progress | None = None) -> list[Certificate]:
        """Make the certificate of every layer."""
        found = []
        step = Steps(on_progress, len(self))
        for name in self:
            step(name)
            found.append(self.certificate(name))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Give the certificates as plain numbers and strings."""
        return {"layers": [certificate.to_dict() for certificate in self.certificates()]}

    def _site(self, name: str) -> _Site:
        require(name in self._sites, f"there is no layer {name!r}; there are {', '.join(self._sites)}")
        return self._sites[name]

    def _open(self, name: str) -> tuple[Lifted, Tensor, _Site]:
        site = self._site(name)
        module, u = copy.deepcopy(site.module).eval(), site.u
        undo(module)  # a System is compared with the module's own output, also if the model is accelerated
        if self._dtype is not None:
            module, u = module.to(self._dtype), u.to(self._dtype)
        cls = ADAPTERS[type(module).__name__]
        if self._dtype == torch.float64:
            cls.exact(module)
        return cls.called(module, _arguments(site, u.dtype)), u, site

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        for certificate in self.certificates():
            yield str(certificate)


def _arguments(site: _Site, dtype: torch.dtype) -> dict[str, Any]:
    """Give the other arguments of a module's call than its input, floating tensors cast to a dtype."""

    def cast(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to(dtype) if x.is_floating_point() else x
        return type(x)(cast(y) for y in x) if isinstance(x, tuple | list) else x

    return {name: cast(x) for name, x in site.given.items()}


def lift(
    model: nn.Module,
    tokens: Tensor,
    *,
    dtype: str | torch.dtype | None = None,
    layers: Sequence[str] | str | None = None,
) -> Lift:
    """Open every mixer of a model of transformers as a System on these tokens.

    The model runs once, unchanged, and the input of each mixer is kept. A System is made when it is asked for.

    Args:
        model: a model of a supported type (`stateform.hub.FAMILIES`).
        tokens: integers [T] or [1,T], or a batch [B,T] of rows of one length.
        dtype: in which Systems and certificates are computed: "float64" (casts inside the modules are then to float64
            too), "float32", ...; default: the model's.
        layers: only these modules; default: all mixers.

    Returns:
        A Lift: a mapping from the names of the modules to Systems, with certificates.

    Raises:
        StateformError: a model of another type, or without a known mixer; tokens outside its vocabulary; a weight that
            is not finite.
    """
    require_supported(model)
    require_finite_weights(model)
    tokens = check_tokens(model, tokens)
    wanted = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    good = dtype is None or (isinstance(wanted, torch.dtype) and wanted.is_floating_point)
    require(good, f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    found = mixers(model)
    require(found, f"no sequence mixer that is known was found in this {type(model).__name__}")
    if layers is not None:
        layers = [layers] if isinstance(layers, str) else layers
        missing = [name for name in layers if name not in found]
        require(not missing, f"there is no layer {missing[:1]}; there are {', '.join(found)}")
        found = {name: found[name] for name in layers}
    sites = _recorded(model, found, tokens)
    for label, site in sites.items():
        why = why_no_proof(site.u)
        require(not why, f"what {label} ({type(site.module).__name__}) reads on these tokens: {why}")
    return Lift(sites, wanted)


def _recorded(model: nn.Module, found: Mapping[str, nn.Module], tokens: Tensor) -> dict[str, _Site]:
    """Run a model once, and keep the arguments of each of these mixers, at each of its uses."""
    sites: dict[str, _Site] = {}
    uses: dict[str, int] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = ADAPTERS[type(module).__name__].arguments(module, args, kwargs)
            given = {k: v for k, v in call.rest.items() if k not in (*CACHES, "use_cache", "output_attentions")}
            uses[name] = uses.get(name, 0) + 1
            label = name if uses[name] == 1 else f"{name} (use {uses[name]})"
            sites[label] = _Site(module, call.u.detach(), given)

        return record

    hooks = [m.register_forward_pre_hook(recorder(name), with_kwargs=True) for name, m in found.items()]
    try:
        with torch.no_grad(), evaluating(model):
            model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return sites


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode; afterwards restore the mode of each of its modules."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_tokens(model: Any, tokens: Tensor) -> Tensor:
    """Give the tokens as [B,T]; raise unless the model can read them."""
    whole = isinstance(tokens, Tensor) and not (tokens.is_floating_point() or tokens.dtype == torch.bool)
    require(
        whole and tokens.ndim in (1, 2) and tokens.numel() > 0,
        f"the tokens are {f'{tokens.dtype} of shape {list(tokens.shape)}' if isinstance(tokens, Tensor) else tokens!r};"
        " expected integers [T] or [B,T], one or more",
    )
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    size = int(getattr(model.config.get_text_config(), "vocab_size", 0))
    require(
        not size or (int(tokens.min()) >= 0 and int(tokens.max()) < size),
        f"the tokens reach from {int(tokens.min())} to {int(tokens.max())}; the vocabulary is 0..{size - 1}",
    )
    most = _positions(model)
    require(
        most is None or tokens.shape[1] <= most, f"there are {tokens.shape[1]} tokens; the model has {most} positions"
    )
    return tokens.to(next(model.parameters()).device)


def _positions(model: Any) -> int | None:
    """Count the positions that a model has learned; None for one without."""
    tables = {name for cls in ADAPTERS.values() for name in cls.positions}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in tables and isinstance(module, nn.Embedding):
            pad = module.padding_idx  # RoBERTa's positions begin after it
            unused = getattr(module, "offset", 0)  # OPT's first two rows are no positions
            return module.num_embeddings - (unused if pad is None else pad + 1)
    return None
