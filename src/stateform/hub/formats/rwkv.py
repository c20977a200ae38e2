"""RWKV language models, versions 4, 5 and 7, around the layers of `stateform.architectures.rwkv`."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...architectures import build
from ...errors import StateformError, require
from ...layer import Layer, Past
from ...layer.parts import precise
from ...models import LanguageModel, ModelConfig
from ...system import System
from ...system.state import State, unchecked
from .weights import FileWeights, filled

NORM_EPS = 1e-5


class ChannelMix(Layer):
    """Channel mixing: y_t = W_v relu(W_k .)^2 of u_t and u_{t-1}, times sigmoid(W_r .) before version 7.

    As a System: the state is one token, which the next read finds and forgets.
    """

    contractive = True

    def __init__(self, d_model: int, hidden: int, gate: bool) -> None:
        super().__init__(d_model)
        self.mix = nn.Parameter(torch.zeros(1 + gate, d_model))
        self.k_proj, self.out_proj = (nn.Linear(a, b, bias=False) for a, b in ((d_model, hidden), (hidden, d_model)))
        self.r_proj = nn.Linear(d_model, d_model, bias=False) if gate else None

    def system(self, u: Tensor, past: Past | None = None) -> System:
        one = u.new_ones(1, 1)
        never = torch.full((1,), -torch.inf, dtype=precise(u).dtype, device=u.device)
        return System(one, one, u.unsqueeze(2), log_decay=never, exclusive=True)

    def output(self, y: Tensor, u: Tensor, system: System, past: Past | None = None) -> Tensor:
        before = y.squeeze(2).to(u.dtype)
        at_k, *at_r = (torch.lerp(u, before, share) for share in self.mix)
        y = self.out_proj(F.relu(self.k_proj(at_k)).square())
        return y if self.r_proj is None else torch.sigmoid(self.r_proj(at_r[0])) * y


class RWKVBlock(nn.Module):
    """x <- x + mixer(norm(x)) (+ bias), x <- x + mlp(norm(x)), where the mlp remembers a token too."""

    def __init__(self, spec: str, mixer: Layer, hidden: int, gate: bool, bias: bool) -> None:
        super().__init__()
        self.spec, self.mixer = spec, mixer
        self.mixer_norm, self.mlp_norm = (nn.LayerNorm(mixer.d_model, eps=NORM_EPS) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(mixer.d_model)) if bias else None
        self.mlp = ChannelMix(mixer.d_model, hidden, gate)

    def forward(
        self, x: Tensor, state: State | None, return_state: bool, shared: dict[str, Tensor], **call: Any
    ) -> tuple[Tensor, State | None]:
        first, second = (None, None) if state is None else self._split(state)
        y, after = self.mixer(self.mixer_norm(x), initial_state=first, return_state=True, shared=shared, **call)
        x = x + y if self.bias is None else x + y + self.bias
        y, then = self.mlp(self.mlp_norm(x), initial_state=second, return_state=True, **call)
        return x + y, self.joined(after, then) if return_state else None

    def joined(self, mixer: State, mlp: State) -> State:
        """Join the states of mixer and mlp."""
        return State({**mixer.tensors, **{f"mlp.{name}": x for name, x in mlp.tensors.items()}}, mixer.fingerprint)

    def _split(self, state: State) -> tuple[State, State]:
        mixer: dict[str, Tensor] = {}
        mlp: dict[str, Tensor] = {}
        for name, x in state.tensors.items():
            (mlp if name.startswith("mlp.") else mixer)[name.removeprefix("mlp.")] = x
        return unchecked(mixer, self.mixer.fingerprint), unchecked(mlp, self.mlp.fingerprint)


class RWKV(LanguageModel):
    """A language model of RWKV blocks, read from a file by `open_file`.

    It runs, generates and is analysed as any `LanguageModel`. It stays in its own file: `save_pretrained` refuses it.

    Args:
        config: vocabulary, width, and the mixers as a pattern.
        mixers: one a block.
        hidden: width of the channel mixing.
        gate: the channel mixing has a gate.
        bias: each mixer is followed by a bias.
        head_bias: the head has a bias.
    """

    def __init__(
        self, config: ModelConfig, mixers: list[Layer], hidden: int, *, gate: bool, bias: bool, head_bias: bool
    ) -> None:
        nn.Module.__init__(self)
        self._require(config)
        self.config, d = config, config.d_model
        assert config.vocab_size is not None
        self.embedding, self.in_proj, self.positions = nn.Embedding(config.vocab_size, d), None, None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            RWKVBlock(spec, mixer, hidden, gate, bias) for spec, mixer in zip(config.layers, mixers, strict=True)
        )
        self.norm = nn.LayerNorm(d, eps=NORM_EPS)  # type: ignore[assignment]
        self.head = nn.Linear(d, config.vocab_size, bias=head_bias)
        layers = [mixer.fingerprint for mixer in mixers]
        self._fingerprint = f"{type(self).__name__}-{zlib.crc32(repr((layers, hidden)).encode()):08x}"

    def logits(self, hidden: Tensor) -> Tensor:
        assert self.head is not None
        return self.head(hidden)

    def init_state(self, batch: int = 1) -> State:
        blocks: list[Any] = list(self.blocks)
        states = [block.joined(block.mixer.init_state(batch), block.mlp.init_state(batch)) for block in blocks]
        return self._joined(states, torch.zeros(batch, dtype=torch.long, device=self.device))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> NoReturn:
        raise StateformError(
            "this model came from a single file of RWKV, which open_file reads again; save_pretrained is for models "
            "that a ModelConfig describes"
        )


# -- from the names of RWKV ---------------------------------------------------------------------------------------

_MAPS = {"r_proj": "receptance", "k_proj": "key", "v_proj": "value", "out_proj": "output", "gate_proj": "gate"}
_LORAS = {"decay": "w", "rate": "a", "residual": "v", "gate": "g"}


def version(names: Mapping[str, Any]) -> str:
    """Recognise version 4, 5.1, 5.2, 6 or 7 by the names in a file."""
    att = "blocks.0.att."
    if f"{att}r_k" in names:
        return "7"
    if f"{att}time_maa_x" in names:
        return "6"
    if f"{att}ln_x.weight" in names:
        return "5.2" if f"{att}time_faaaa" in names else "5.1"
    return "4"


def model_of(w: FileWeights, *, norm_eps: float | None = None) -> RWKV:
    """Make the model with weights under the names, and in the coordinates, of the original PyTorch files.

    Besides those, `blocks.N.att.output.bias` and `head.bias` may be there.

    Args:
        w: the weights.
        norm_eps: of the norm behind the time mixing, where it is not the layer's own.

    Raises:
        StateformError: a version that is not known; weights that are missing or do not fit together.
    """
    kind = version(w)
    require(
        kind != "6", f"{w.file} holds RWKV-6, which is not read yet; versions 4, 5 and 7 are (the layer is `rwkv6`)"
    )
    count = 1 + max(
        (int(n.split(".")[1]) for n in w if n.startswith("blocks.") and n.split(".")[1].isdigit()), default=-1
    )
    require(count > 0, f"{w.file} has no blocks; expected weights such as blocks.0.att.key.weight")
    try:
        return _model_of(w, kind, count, norm_eps)
    except StateformError:
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        raise StateformError(f"the weights of {w.file} do not fit together: {error}") from error


def _model_of(w: FileWeights, kind: str, count: int, norm_eps: float | None) -> RWKV:
    embedding = w["emb.weight"]
    require(embedding.ndim == 2, f"emb.weight of {w.file} is {list(embedding.shape)}; expected [vocabulary,width]")
    vocabulary, d = embedding.shape
    if "blocks.0.ln0.weight" in w:  # a norm of the embedding, applied to the table once
        embedding = F.layer_norm(embedding, (d,), w["blocks.0.ln0.weight"], w["blocks.0.ln0.bias"], NORM_EPS)
    name, mixers, made = {"4": "rwkv4", "7": "rwkv7"}.get(kind, "rwkv6"), [], {}
    make = {"4": _version4, "7": _version7}.get(kind, _version5)
    for i in range(count):
        att, ffn = w.under(f"blocks.{i}.att."), w.under(f"blocks.{i}.ffn.")
        options, values = make(att)
        if kind != "4" and norm_eps is not None:
            options["norm_eps"] = norm_eps
        with torch.device("meta"):
            mixers.append(build(name, d_model=d, **options))
        wanted = mixers[-1].state_dict()
        for ours, theirs in _MAPS.items():
            if f"{ours}.weight" in wanted:
                values[f"{ours}.weight"] = att[f"{theirs}.weight"]
        if kind != "4":
            values |= {"norm.weight": att["ln_x.weight"], "norm.bias": att["ln_x.bias"]}
        for ours, x in values.items():  # files may hold vectors with axes of length 1
            fits = ours in wanted and x.numel() == wanted[ours].numel() and (x.ndim != 2 or wanted[ours].ndim != 2)
            made[f"blocks.{i}.mixer.{ours}"] = x.reshape(wanted[ours].shape) if fits else x
        if "output.bias" in att:
            made[f"blocks.{i}.bias"] = att["output.bias"]
        shares = [ffn["x_k"]] if kind == "7" else [1 - ffn["time_mix_k"], 1 - ffn["time_mix_r"]]
        mlp = {"mix": torch.stack([x.flatten() for x in shares]), "k_proj.weight": ffn["key.weight"]}
        mlp["out_proj.weight"] = ffn["value.weight"]
        if kind != "7":
            mlp["r_proj.weight"] = ffn["receptance.weight"]
        made |= {f"blocks.{i}.mlp.{ours}": x for ours, x in mlp.items()}
        for ours, theirs in (("mixer_norm", "ln1"), ("mlp_norm", "ln2")):
            made |= {f"blocks.{i}.{ours}.{part}": w[f"blocks.{i}.{theirs}.{part}"] for part in ("weight", "bias")}
    made |= {"embedding.weight": embedding, "head.weight": w["head.weight"]}
    made |= {f"norm.{part}": w[f"ln_out.{part}"] for part in ("weight", "bias")}
    made |= {"head.bias": w["head.bias"]} if "head.bias" in w else {}
    known = {"n_heads": mixers[0].n_heads} if hasattr(mixers[0], "n_heads") else {}
    config = ModelConfig(
        f"{name}*{count}",
        d_model=d,
        vocab_size=vocabulary,
        mlp_ratio=None,
        tie_embeddings=False,
        tokenizer="bytes" if vocabulary == 256 else None,
        options=known,
    )
    hidden = len(w["blocks.0.ffn.key.weight"])
    bias, head_bias = "blocks.0.bias" in made, "head.bias" in made
    with torch.device("meta"):
        model = RWKV(config, mixers, hidden, gate=kind != "7", bias=bias, head_bias=head_bias)
    return filled(model, made, w.file)


def _stacked(w: FileWeights, names: str) -> Tensor:
    """Stack the shares of the previous token; the files hold 1 minus these."""
    return torch.stack([1 - w[f"time_mix_{x}"].flatten() for x in names])


def _version4(w: FileWeights) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return {}, {"mix": _stacked(w, "rkv"), "log_w": w["time_decay"], "bonus": w["time_first"]}


def _version5(w: FileWeights) -> tuple[dict[str, Any], dict[str, Tensor]]:
    gate, per_channel = "time_mix_g" in w, "time_faaaa" in w
    options = {"n_heads": len(w["time_decay"]), "decay": "channel" if per_channel else "head", "gate": gate}
    bonus = w["time_faaaa" if per_channel else "time_first"]
    return options, {"mix": _stacked(w, "rkvg" if gate else "rkv"), "w": w["time_decay"], "bonus": bonus}


def _version7(w: FileWeights) -> tuple[dict[str, Any], dict[str, Tensor]]:
    d = w["w0"].numel()
    given = {
        name: (w[f"{key}1"].T, w[f"{key}2"].T) for name, key in _LORAS.items() if f"{key}1" in w or name != "residual"
    }
    given.setdefault("residual", (torch.zeros(1, d), torch.zeros(d, 1)))  # not read in a first layer
    ranks = {"decay": "decay_rank", "rate": "rate_rank", "residual": "value_rank", "gate": "gate_rank"}
    options: dict[str, Any] = {option: len(given[name][0]) for name, option in ranks.items()}
    options["n_heads"] = len(w["r_k"])
    values = {f"{name}_map.{at}.weight": x for name, pair in given.items() for at, x in zip((0, 2), pair, strict=True)}
    values["mix"] = torch.stack([w[f"x_{x}"].flatten() for x in "rwkvag"])
    values |= {"w": w["w0"], "rate": w["a0"], "residual": w["v0"] if "v0" in w else torch.zeros(d)}
    return options, values | {"xi": w["k_k"], "alpha": w["k_a"], "rho": w["r_k"]}
