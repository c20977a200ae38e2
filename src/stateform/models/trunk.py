"""The trunk that models share: embedding, blocks around any mixer, final norm; and the one State of all layers."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import StateformError, require, values_checked
from ..forms import known_form
from ..forms.packing import check_cu_seqlens, from_mask
from ..layer import Convolved, HasState
from ..layer.parts import first_parameter
from ..machine import free_memory
from ..system.precision import one_dtype
from ..system.state import State, unchecked
from .blocks import Block, checkpointing
from .config import ModelConfig
from .pretrained import load, save


def _check_memory(config: ModelConfig) -> None:
    """Raise if the weights of a model that is made on the CPU do not fit into the free memory."""
    if torch.get_default_device().type != "cpu":
        return
    count, free = config.n_parameters, free_memory()
    size = count * torch.get_default_dtype().itemsize
    require(
        size <= free,
        f"the model has {count:,} weights, {size / 1e9:.3g} GB; {free / 1e9:.3g} GB may be used: make it "
        "smaller, or make it on another device: with torch.device(...)",
    )


def _with_state(block: Any) -> HasState:
    """Give the mixer of a block; raise if it keeps no state."""
    mixer: Any = block.mixer
    require(hasattr(mixer, "init_state"), f"the layer {block.spec} has no init_state; it keeps no state")
    return mixer


class SequenceModel(nn.Module):
    """Embedding, blocks, final norm: what the models here have in common.

    Initial values: embeddings and an untied head are drawn from N(0, init_std^2). Those of each `out_proj`, in mixers
    and MLPs, are divided by the root of the number of additions to the residual stream (2 n_layers), so that its
    variance does not grow with depth (as in GPT-2). All else each layer draws itself, as recurrent layers choose their
    own time constants and gates.

    Args:
        config: a ModelConfig, or the pattern of one.
        settings: the other fields of ModelConfig; other names are options of the mixers (n_heads, d_state, ...).
    """

    def __init__(self, config: ModelConfig | str, **settings: Any) -> None:
        super().__init__()
        self.config = config = ModelConfig.of(config, **settings)
        self._require(config)
        _check_memory(config)
        d = config.d_model
        self.embedding = None if config.vocab_size is None else nn.Embedding(config.vocab_size, d)
        self.in_proj = None if config.d_input is None else nn.Linear(config.d_input, d)
        self.positions = None if config.max_positions is None else nn.Embedding(config.max_positions, d)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, spec) for spec in config.layers)
        self.norm = nn.RMSNorm(d, eps=config.norm_eps)
        self.head: nn.Linear | None = None
        self._add_head(config)
        for table in (self.embedding, self.positions, self.head):
            if table is not None and config.init_std is not None:
                nn.init.normal_(table.weight, std=config.init_std)
        out = [
            getattr(m.layer if isinstance(m, Convolved) else m, "out_proj", None)
            for b in self.blocks
            for m in (b.mixer, b.mlp)
            if m is not None
        ]
        with torch.no_grad():
            for proj in out:
                if isinstance(proj, nn.Linear):
                    proj.weight.div_(len(out) ** 0.5)
        layers = [getattr(b.mixer, "fingerprint", b.spec) for b in self.blocks]
        self._fingerprint = f"{type(self).__name__}-{zlib.crc32(repr(layers).encode()):08x}"

    def _require(self, config: ModelConfig) -> None:
        """Raise unless the configuration has all that this kind of model needs."""

    def _add_head(self, config: ModelConfig) -> None:
        """Make the head, which follows the final norm."""

    @property
    def fingerprint(self) -> str:
        """Identify the model whose states these are: by its class and the fingerprints of its layers."""
        return self._fingerprint

    def adopt(self, config: ModelConfig) -> None:
        """Take over another configuration of the same parameters: its dropout and its norms' epsilon."""
        for part in (self, *self.blocks):
            for name, module in part.named_children():
                if isinstance(module, nn.Dropout):
                    module.p = config.dropout
                elif name.endswith("norm") and isinstance(module, nn.RMSNorm):
                    module.eps = config.norm_eps
        self.config = config

    @property
    def device(self) -> torch.device:
        """Give the device of the parameters."""
        weight = first_parameter(self)
        return torch.device("cpu") if weight is None else weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Give the dtype of the parameters."""
        weight = first_parameter(self)
        return torch.get_default_dtype() if weight is None else weight.dtype

    def init_state(self, batch: int = 1) -> State:
        """Make the state before the first token, of `batch` rows."""
        mixers = [_with_state(block) for block in self.blocks]
        states = [mixer.init_state(batch) for mixer in mixers]
        return self._joined(states, torch.zeros(batch, dtype=torch.long, device=self.device))

    def _joined(self, states: list[State], position: Tensor, **more: Tensor) -> State:
        """Join the states of all layers into one, with names `0.S`, `1.keys`, ..., and add the tokens seen."""
        named = {f"{i}.{name}": x for i, state in enumerate(states) for name, x in state.tensors.items()}
        return State({**named, **more, "position": position}, self.fingerprint)

    def _parts(self, state: State | None) -> list[State | None]:
        """Split the state into those of the layers."""
        if state is None:
            return [None] * len(self.blocks)
        parts: list[dict[str, Tensor]] = [{} for _ in self.blocks]
        for name, x in state.tensors.items():
            number, dot, inner = name.partition(".")
            if dot:
                parts[int(number)][inner] = x
        mixers = [block.mixer for block in self.blocks]
        return [unchecked(part, getattr(m, "fingerprint", "")) for part, m in zip(parts, mixers, strict=True)]

    def hidden(
        self, inputs: Tensor, *, attention_mask: Tensor | None = None, initial_state: State | None = None,
        return_state: bool = False, cu_seqlens: Tensor | None = None, form: str = "auto", embedded: bool = False,
        between: list[Tensor] | None = None,
    ) -> tuple[Tensor, State | None]:  # fmt: skip
        """Compute the output of the final norm, [B,T,d_model], and the new state if asked for.

        Args:
            inputs: as for `forward`.
            attention_mask: as for `forward`.
            initial_state: as for `forward`.
            return_state: as for `forward`.
            cu_seqlens: as for `forward`.
            form: as for `forward`.
            embedded: the inputs take the place of the embedding's output: numbers [B,T,d_model].
            between: a list, to which the input of each block, first to last, and the final norm's output are added.
        """
        self._check(inputs, attention_mask, initial_state, cu_seqlens, embedded)
        known_form(form)
        keep = None if attention_mask is None else attention_mask.bool()
        if keep is not None:  # so that a masked id may be anything
            inputs = torch.where(keep if inputs.ndim == 2 else keep.unsqueeze(-1), inputs, 0)
        enter = None if embedded else self.in_proj if self.in_proj is not None else self.embedding
        x: Tensor = inputs if enter is None else enter(inputs)  # [B,T,d_model]
        end: Tensor | None = None
        if self.positions is not None or return_state:
            at, end = positions(inputs, keep, cu_seqlens, initial_state)
            x = x if self.positions is None else x + self.positions(self._within(at))
        x = self.dropout(x)
        given = {"attention_mask": attention_mask, "cu_seqlens": cu_seqlens, "form": None if form == "auto" else form}
        call = {name: value for name, value in given.items() if value is not None}
        states: list[State] = []
        shared: dict[str, Tensor] = {}
        for block, part in zip(self.blocks, self._parts(initial_state), strict=True):
            if between is not None:
                between.append(x)
            x, state = block(x, part, return_state, shared, **call)
            states.append(state)
        x = self.norm(x)
        if between is not None:
            between.append(x)
        return x, None if not return_state or end is None else self._joined(states, end)

    def hidden_by_chunks(
        self, inputs: Tensor, chunk: int, *, attention_mask: Tensor | None = None, initial_state: State | None = None,
        form: str = "auto",
    ) -> Iterator[tuple[slice, Tensor, State | None]]:  # fmt: skip
        """Compute `hidden` of `chunk` tokens at a time, in the memory of one chunk; the state is carried on.

        Yields:
            The tokens, as a slice; the final norm's output for them [B,chunk,d_model]; the state after them.
        """
        state = initial_state
        for start in range(0, max(inputs.shape[1], 1), chunk):
            at = slice(start, start + chunk)
            mask = None if attention_mask is None else attention_mask[:, at]
            x, state = self.hidden(
                inputs[:, at], attention_mask=mask, initial_state=state, return_state=True, form=form
            )
            yield at, x, state

    def _within(self, at: Tensor) -> Tensor:
        """Check that there is a learned vector for each position, and give them back."""
        limit = self.config.max_positions or 0
        if at.numel() and values_checked(at):
            last = int(at.max())
            require(last < limit, f"the input reaches position {last}; max_positions = {limit} have learned vectors")
        return at

    def _check(
        self, inputs: Tensor, mask: Tensor | None, state: State | None, cu_seqlens: Tensor | None,
        embedded: bool = False,
    ) -> None:  # fmt: skip
        tokens = self.embedding is not None and not embedded
        width = self.config.d_model if embedded else self.config.d_input
        what = "token ids [B,T], integers" if tokens else f"numbers [B,T,{width}], floating"
        if not isinstance(inputs, Tensor):
            raise StateformError(f"the input is a {type(inputs).__name__}; expected a tensor of {what}")
        kind = not (inputs.is_floating_point() or inputs.is_complex() or inputs.dtype == torch.bool)
        fits = kind and inputs.ndim == 2 if tokens else inputs.is_floating_point() and inputs.ndim == 3
        if not (fits and (tokens or inputs.shape[2] == width)):
            raise StateformError(f"the input is {inputs.dtype} of shape {list(inputs.shape)}; expected {what}")
        if type(self.in_proj) is nn.Linear and not one_dtype(inputs, self.in_proj.weight):
            raise StateformError(
                f"the input is {inputs.dtype}, the model {self.in_proj.weight.dtype}; cast one with .to(dtype)"
            )
        if inputs.device != self.device:
            raise StateformError(f"the input is on {inputs.device}, the model on {self.device}; use .to()")
        require(mask is None or cu_seqlens is None, "give attention_mask or cu_seqlens, not both")
        rows = inputs.shape[0]
        if mask is not None:
            given = f"of shape {list(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            require(
                isinstance(mask, Tensor) and mask.shape == inputs.shape[:2] and mask.device == inputs.device,
                f"attention_mask is {given}; expected {list(inputs.shape[:2])} on {inputs.device}, 1 for a token",
            )
            if values_checked(mask):
                from_mask(mask)
        if cu_seqlens is not None:
            check_cu_seqlens(cu_seqlens, inputs.shape[1], inputs.shape[0], inputs.device)
            rows = len(cu_seqlens) - 1
        if tokens and inputs.numel() and values_checked(inputs):
            self._check_ids(inputs if mask is None else inputs[mask.bool()], "the input")
        if state is not None:
            self._check_state(state, rows)

    def _check_ids(self, ids: Tensor, what: str) -> None:
        """Raise unless all ids are in the vocabulary."""
        size = self.config.vocab_size or 0
        if ids.numel() == 0:
            return
        least, most = (int(x) for x in ids.aminmax())
        if least < 0 or most >= size:
            bad = ids[(ids < 0) | (ids >= size)]
            raise StateformError(f"{what} holds the id {int(bad[0])}; expected 0..{size - 1}")

    def _check_state(self, state: State, rows: int) -> None:
        if not isinstance(state, State):
            raise StateformError(f"initial_state is a {type(state).__name__}; expected the State of this model")
        if state.fingerprint != self.fingerprint:
            raise StateformError(
                f"this state belongs to {state.fingerprint or 'a bare system'}, this model is {self.fingerprint}; "
                "expected the same class, layers and sizes"
            )
        if state.rows != rows:
            raise StateformError(f"the state has {state.rows} rows, the input {rows}; expected one row a sequence")
        device = state["position"].device
        if device != self.device:
            raise StateformError(f"the state is on {device}, the model on {self.device}; use state.to(device)")

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Train in less memory: blocks keep only their inputs, and the backward pass runs each block once more.

        Gradients are the same. Without gradients nothing changes.

        Args:
            gradient_checkpointing_kwargs: of `torch.utils.checkpoint.checkpoint`.

        Raises:
            StateformError: use_reentrant=True, which would lose the gradients that go through states.
        """
        blocks: Iterable[Any] = self.blocks
        for block in blocks:
            block._gradient_checkpointing_func = checkpointing(gradient_checkpointing_kwargs)
            block.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything that the backward pass needs again."""
        blocks: Iterable[Any] = self.blocks
        for block in blocks:
            block.gradient_checkpointing = False

    def parameter_groups(self, weight_decay: float = 0.1) -> list[dict[str, Any]]:
        """Split the parameters into two groups for an optimizer: with weight decay, and without.

        Decay is for the matrices of projections (the weights of `nn.Linear`), where a smaller weight is a plainer map.
        Embeddings have none: a row is trained only when its token is seen, but would decay at every step. Nor have
        norms, biases, or the layers' other parameters (time constants, decays, taps, skips, lambda): there, 0 is no
        plainer than another value, it is another memory.
        """
        maps = (m for m in self.modules() if isinstance(m, nn.Linear))
        decayed = {
            id(p) for m in maps for p in m.parameters() if p.ndim > 1
        }  # also the parameters that a weight is computed from
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for p in self.parameters():
            groups[id(p) not in decayed].append(p)
        return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into a folder (made if need be), each whole or not at all.

        Raises:
            StateformError: a folder that cannot be written to.
        """
        config = {**self.config.to_dict(), **self._known_as()}
        save(Path(folder), config, self.state_dict(), self._beside())

    def _known_as(self) -> dict[str, Any]:
        """Give the entries of config.json that name the class."""
        return {"architectures": [type(self).__name__]}

    def _beside(self) -> dict[str, bytes]:
        """Make the files for other programs, by name."""
        return {}

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """Open the model that `save_pretrained` wrote: in its dtype, on the CPU, in eval mode. No code is loaded.

        Raises:
            StateformError: no such folder, not a model of this kind, weights that do not fit the configuration, a file
                that is not whole, a configuration of another version, a layer that is not registered.
        """
        return load(cls, Path(folder))


def positions(
    inputs: Tensor, keep: Tensor | None, cu_seqlens: Tensor | None, state: State | None
) -> tuple[Tensor, Tensor]:
    """Compute the position of each token [B,T] (padding: any), and the tokens seen by each row afterwards [rows]."""
    B, T = inputs.shape[:2]
    rows = B if cu_seqlens is None else len(cu_seqlens) - 1
    seen = torch.zeros(rows, dtype=torch.long, device=inputs.device) if state is None else state["position"]
    steps = torch.arange(T, device=inputs.device)  # [T]
    if keep is not None:
        return (seen[:, None] + keep.cumsum(1) - 1).clamp(min=0), seen + keep.sum(1)
    if cu_seqlens is None:
        return seen[:, None] + steps, seen + T
    ends = cu_seqlens.to(inputs.device, torch.long)
    lengths = ends.diff()
    offset = torch.repeat_interleave(seen - ends[:-1], lengths, output_size=T)  # [T]
    return (offset + steps)[None], seen + lengths
