"""The configuration of a model: plain values, checked when it is made, and written as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn

from ..architectures import accepted, build, resolve
from ..errors import StateformError, nearest, require
from ..layer import Convolved
from ..layer.options import checked_fields
from ..text import parse_json
from .pattern import expand

MODEL_TYPE = "stateform"
FORMAT = 1
"""Version of what `to_dict` gives."""
MOST_WEIGHTS = 10**12
"""A configuration of more weights is a slip, or meant to do harm: it is refused before anything is made."""
_MADE: dict[tuple[Any, ...], int] = {}
"""The number of weights by layer. Each was made once, without memory, so that plans of many experiments check fast."""
OTHERS = "transformers"
"""The key under which `models.auto` keeps settings of transformers that a user has changed."""
FOREIGN = {"architectures", "auto_map", OTHERS, "transformers_version", "dtype", "torch_dtype", "_name_or_path"}
"""Keys that other software adds to a config.json, ignored here."""


@dataclass(frozen=True)
class ModelConfig:
    """The make-up of a `LanguageModel` or a `Classifier`.

    Args:
        pattern: the mixers, "mamba2*3 softmax": see `models.pattern.expand`.
        d_model: width.
        n_layers: blocks; the pattern is cycled (its last round may be cut short). Default: one round of it.
        vocab_size: how many token ids there are; None for a classifier of real-valued sequences.
        d_input: width of those.
        n_classes: of a classifier.
        pooling: what a classifier looks at: the "mean" over a sequence's tokens, the "last", or "none": it answers at
            every token.
        conv: None, or the taps of a short convolution before each mixer (arXiv 2312.04927).
        init_std: standard deviation of the initial embeddings and of an untied head; None: PyTorch's own initial values
            for both.
        mlp_ratio: hidden width of the gated MLP over d_model (rounded up to a multiple of 8); None: no MLP.
        lambda_skip: None, or the initial value of a learned weight of the mixer's residual connection,
            lambda x + mixer(norm(x)) (arXiv 2410.10609).
        tie_embeddings: the head of a language model is its embedding, transposed.
        dropout: on the embedding and on what each block adds, while training.
        max_positions: the number of learned absolute positions; None: none, the layers see to positions.
        norm_eps: of the RMS norms.
        tokenizer: "bytes" if the ids are the bytes of a text (then vocab_size is 256 if not given), or None.
        options: for the mixers (n_heads, d_state, ...), handed to those that take them; what a layer has in brackets
            goes first.

    Raises:
        StateformError: a value that cannot be used, an option that no layer of the pattern takes, or one that does not
            fit a layer. Nothing large is allocated before.
    """

    pattern: str
    d_model: int = 256
    n_layers: int | None = None
    vocab_size: int | None = None
    d_input: int | None = None
    n_classes: int | None = None
    pooling: Literal["mean", "last", "none"] = "mean"
    conv: int | None = None
    init_std: float | None = 0.02
    mlp_ratio: float | None = 8 / 3
    lambda_skip: float | None = None
    tie_embeddings: bool = True
    dropout: float = 0.0
    max_positions: int | None = None
    norm_eps: float = 1e-6
    tokenizer: Literal["bytes"] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = checked_fields(self)
        if self.tokenizer == "bytes" and self.vocab_size is None:
            given["vocab_size"] = 256
        for name, value in given.items():
            object.__setattr__(self, name, value)
        for name in ("n_layers", "vocab_size", "d_input", "n_classes", "max_positions"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}; expected a whole number, 1 or more")
        require(self.conv is None or self.conv >= 2, f"conv is {self.conv}; expected 2 taps or more, or None")
        for name, value in (("mlp_ratio", self.mlp_ratio), ("norm_eps", self.norm_eps), ("init_std", self.init_std)):
            require(value is None or 0 < value < math.inf, f"{name} is {value}; expected a number above 0")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}; expected a share from 0 to below 1")
        require(
            self.lambda_skip is None or math.isfinite(self.lambda_skip),
            f"lambda_skip is {self.lambda_skip}; expected a finite number or None",
        )
        require(
            self.tokenizer != "bytes" or (self.vocab_size or 0) >= 256,
            f"vocab_size is {self.vocab_size}; the tokenizer 'bytes' needs 256 or more",
        )
        object.__setattr__(self, "n_layers", self.n_layers or len(expand(self.pattern)))
        self._check_options()
        count = self.n_parameters
        require(
            count <= MOST_WEIGHTS,
            f"the model would have {count:.3g} weights; expected {MOST_WEIGHTS:.0e} at most: make it narrower "
            "(d_model, mlp_ratio), less deep (n_layers), or its tables smaller (vocab_size, max_positions)",
        )

    def _check_options(self) -> None:
        require(
            isinstance(self.options, Mapping) and all(isinstance(k, str) for k in self.options),
            f"options is {self.options!r}; expected a dict such as {{'n_heads': 4}}",
        )
        object.__setattr__(self, "options", dict(self.options))
        known = {name for spec in self.layers for name in accepted(resolve(spec)[0])} - {"d_model"}
        for name, value in self.options.items():
            require(
                name in known,
                f"no layer of the pattern {self.pattern!r} has an option {name!r}: {nearest(name, known)}",
            )
            plain = value is None or isinstance(value, bool | int | float | str)
            require(
                plain, f"the option {name} is a {type(value).__name__}; expected a number, a string, a bool or None"
            )

    @property
    def n_parameters(self) -> int:
        """Count the weights of the model without allocating them; a mixer that cannot be made so counts 0."""
        d, table = self.d_model, (self.vocab_size or 0) * self.d_model
        hidden = 0 if self.mlp_ratio is None else mlp_width(d, self.mlp_ratio)
        block = d + (0 if self.lambda_skip is None else 1) + (d + 3 * d * hidden if hidden else 0)
        mixers = sum(count * self._weights_of(spec) for spec, count in Counter(self.layers).items())
        around = table + (0 if self.d_input is None else (self.d_input + 1) * d) + (self.max_positions or 0) * d + d
        untied = 0 if self.tie_embeddings else table
        head = untied if self.n_classes is None else (d + 1) * self.n_classes
        return around + len(self.layers) * block + mixers + head

    def _weights_of(self, spec: str) -> int:
        """Count the weights of a mixer, made without memory. Raises StateformError if its options do not fit."""
        made = (resolve(spec)[0], spec, self.d_model, self.conv, tuple(sorted(self.options.items())))
        if made not in _MADE:
            try:
                with torch.device("meta"):  # no memory is allocated, no random number drawn
                    mixer = self.mixer(spec)
            except StateformError as error:
                raise StateformError(f"the layer {spec} of the pattern {self.pattern!r}: {error}") from None
            except Exception as error:  # a layer that cannot be made on "meta" shows its faults later
                large = "overflow" in str(error).lower() or isinstance(error, OverflowError | MemoryError)
                require(not large, f"the layer {spec} of the pattern {self.pattern!r} is too large: {error}")
                return 0
            _MADE[made] = sum(p.numel() for p in mixer.parameters())
        return _MADE[made]

    @property
    def layers(self) -> list[str]:
        """List the specification of each block's mixer."""
        return expand(self.pattern, self.n_layers)

    def mixer(self, spec: str) -> nn.Module:
        """Build the layer of a specification, with those of the `options` that it takes."""
        known = accepted(resolve(spec)[0])
        mixer = build(spec, d_model=self.d_model, **{k: v for k, v in self.options.items() if k in known})
        assert isinstance(mixer, nn.Module)
        return mixer if self.conv is None else Convolved(mixer, self.conv)  # type: ignore[arg-type]

    # -- as plain values -----------------------------------------------------------------------------------------

    @classmethod
    def of(cls, pattern: str | ModelConfig, **settings: Any) -> ModelConfig:
        """Make a configuration from a pattern and settings; settings that are no field are options of the mixers.

        Raises:
            StateformError: a setting that is neither (with the nearest), or any set on a whole configuration.
        """
        if isinstance(pattern, ModelConfig):
            require(not settings, f"a ModelConfig is complete; put {', '.join(settings)} into it")
            return pattern
        known = {f.name for f in fields(cls)}
        options = {k: settings.pop(k) for k in list(settings) if k not in known}
        given = settings.pop("options", {})
        require(isinstance(given, Mapping), f"options is {given!r}; expected a dict such as {{'n_heads': 4}}")
        taken = {name for spec in expand(pattern) for name in accepted(resolve(spec)[0])}
        for name in options:
            require(name in taken, f"there is no setting {name!r}: {nearest(name, known | taken)}")
        return cls(pattern, options={**given, **options}, **settings)

    def to_dict(self) -> dict[str, Any]:
        """Give numbers, strings and dicts, with the version of the format."""
        return {"model_type": MODEL_TYPE, "format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Make it from what `to_dict` gave.

        Raises:
            StateformError: another type of model, another format, an unknown key (with the nearest), a bad value.
        """
        require(isinstance(values, Mapping), f"a configuration is a {type(values).__name__}; expected a dict")
        values = {k: v for k, v in values.items() if k not in FOREIGN}
        kind, version = values.pop("model_type", None), values.pop("format", FORMAT)
        require(
            kind in (None, MODEL_TYPE),
            f"model_type is {kind!r}; expected {MODEL_TYPE!r}: this is another kind of model",
        )
        require(
            version == FORMAT,
            f"the format is {version!r}; this version of stateform reads {FORMAT}: bring it up to date",
        )
        known = [f.name for f in fields(cls)]
        for name in values:
            require(name in known, f"a model has no setting {name!r}: {nearest(str(name), known)}")
        require("pattern" in values, "the configuration has no pattern; expected the names of the layers")
        return cls(**values)

    def to_json(self) -> str:
        """Write a JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read what `to_json` gave. Raises StateformError as `from_dict` does, and for a text that is no JSON."""
        return cls.from_dict(parse_json(text, "the configuration"))


def mlp_width(d_model: int, ratio: float) -> int:
    """Compute the hidden width of the gated MLP, a multiple of 8."""
    wide = ratio * d_model / 8
    require(wide < MOST_WEIGHTS, f"mlp_ratio is {ratio:g}; an MLP {ratio * d_model:.3g} wide is too large")
    return 8 * math.ceil(wide)
