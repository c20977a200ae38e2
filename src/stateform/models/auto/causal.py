"""A language model with the arguments, the outputs and the methods of transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...errors import require
from ...system.state import State
from ..blocks import checkpointing
from ..config import ModelConfig
from ..generation import padded_left
from ..language import LanguageModel
from .cache import StateCache
from .config import OURS, StateformConfig


class StateformForCausalLM(PreTrainedModel, GenerationMixin):
    """A LanguageModel (`.model`) with the arguments, the outputs and the methods of transformers.

    Args:
        config: a StateformConfig.
        model: an existing LanguageModel of that configuration; default: a new one.

    Raises:
        StateformError: a configuration that cannot be used, settings that are not offered here.
    """

    config_class = StateformConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    _is_stateful = True
    _no_split_modules = [LanguageModel.__name__]  # noqa: RUF012

    def __init__(self, config: StateformConfig, model: LanguageModel | None = None, **unknown: Any) -> None:
        require(
            not unknown,
            f"this model takes no {', '.join(unknown)}; leave it out (options of layers go into options={{...}})",
        )
        super().__init__(config)
        self.model = _make_model(config.model) if model is None else model
        self._followed = config.__dict__["_edited"]
        self.post_init()

    # -- the configuration ---------------------------------------------------------------------------------------

    def _follow_config(self) -> None:
        """Take over what was edited in `config`.

        Raises:
            StateformError: an edit that would need a new model, or one that cannot be used.
        """
        edited, made = self.config.__dict__["_edited"], self.model.config
        if edited == self._followed and self.config.options == made.options:
            return
        wanted = self.config.model
        tables = [t for t in (self.model.embedding, self.model.head) if t is not None]
        rows = {t.weight.shape[0] for t in tables}
        follow = {"dropout", "norm_eps", "init_std", "tokenizer"} | (
            {"vocab_size"} if rows == {wanted.vocab_size} else set()
        )
        for name in OURS:
            old, new = getattr(made, name), getattr(wanted, name)
            require(
                old == new or name in follow,
                f"config.{name} is {new!r}, but this model was made with {old!r}; make another one with "
                "AutoModelForCausalLM.from_config(config), or set it back",
            )
        self.model.adopt(wanted)
        self._followed = edited

    # -- what is in it -------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        assert self.model.embedding is not None
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """Give the head; None if the embedding is the head."""
        return self.model.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        require(
            self.model.head is not None,
            "the head of this model is its embedding; use set_input_embeddings, or make a model with "
            "tie_word_embeddings=False",
        )
        self.model.head = new_embeddings

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **options: Any) -> Any:
        if new_num_tokens is not None:
            replace(self.model.config, vocab_size=new_num_tokens)  # raises before anything is changed
        table = super().resize_token_embeddings(new_num_tokens, *args, **options)
        self._follow_config()
        return table

    def init_weights(self) -> None:
        """Do nothing: the layers have drawn their own initial values."""

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the initial values of a part that no file held, or of a table that is being resized."""
        name = next((name for name, part in self.named_modules() if part is module), None)
        if name is None:
            if self.model.config.init_std is not None:
                nn.init.normal_(module.weight, std=self.model.config.init_std)  # type: ignore[arg-type]
            return
        drawn = _make_model(self.model.config).get_submodule(name.removeprefix("model").removeprefix("."))
        for kind in ("named_parameters", "named_buffers"):
            values = dict(getattr(drawn, kind)(recurse=False))
            for inner, x in getattr(module, kind)(recurse=False):
                if not getattr(x, "_is_hf_initialized", False):
                    x.data.copy_(values[inner])

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, every_n_layers: int = 1
    ) -> None:
        options = getattr(gradient_checkpointing_func, "keywords", {})
        checkpointing(options)  # raises before anything is changed
        for i, block in enumerate(self.model.blocks):
            block._gradient_checkpointing_func = gradient_checkpointing_func
            block.gradient_checkpointing = enable and i % every_n_layers == 0

    # -- running it ----------------------------------------------------------------------------------------------

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *,
        past_key_values: State | Cache | None = None, inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None, use_cache: bool | None = None, output_hidden_states: bool | None = None,
        output_attentions: bool | None = None, return_dict: bool | None = None, logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # fmt: skip
        """Run `LanguageModel.forward`; a mask that is longer than the input is that of all tokens so far.

        `past_key_values` of the output is a StateCache with the state after the last token. If one was given, it is the
        same object, changed in place.
        """
        self._follow_config()
        require(not output_attentions, "output_attentions is True, but not all mixers have weights; see sf.analyze")
        given = input_ids if inputs_embeds is None else inputs_embeds
        if attention_mask is not None and past_key_values is not None and given is not None:
            attention_mask = attention_mask[:, -given.shape[1] :]
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not self.training
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        cache = StateCache.of(past_key_values)
        out = self.model(
            input_ids, attention_mask, inputs_embeds=inputs_embeds, labels=labels, initial_state=cache.state,
            return_state=use_cache, logits_to_keep=logits_to_keep, output_hidden_states=output_hidden_states,
            num_items_in_batch=num_items_in_batch,
        )  # fmt: skip
        if use_cache:
            assert given is not None
            cache.state, cache.length = out.state, cache.length + given.shape[1]
        result = CausalLMOutputWithPast(
            loss=out.loss, logits=out.logits, past_key_values=cache if use_cache else None,
            hidden_states=out.hidden_states,
        )  # fmt: skip
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()

    def generate(self, inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
        """Generate as transformers does, after moving padding to the left: each prompt goes on as it would alone.

        `.model.generate` is that of LanguageModel.
        """
        ids, mask = options.get("input_ids", inputs), options.get("attention_mask")
        if isinstance(ids, Tensor) and isinstance(mask, Tensor) and ids.numel() and ids.shape == mask.shape:
            if not bool(mask[:, -1].all()):
                ids, options["attention_mask"], _ = padded_left(ids, mask)
                inputs = None if "input_ids" in options else ids
                options.update({"input_ids": ids} if "input_ids" in options else {})
        return super().generate(inputs, *args, **options)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Any, inputs_embeds: Any = None, **kwargs: Any
    ) -> Any:
        """Prepare inputs as transformers does, without the positions of its early versions: the state knows its own."""
        prepare: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        inputs = prepare(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        inputs.pop("cache_position", None)
        return inputs

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any, **__: Any
    ) -> None:
        kind = generation_config.cache_implementation
        require(
            kind in (None, "dynamic"),
            f"cache_implementation is {kind!r}; leave it out: this model's cache is its state, of a size of its own",
        )
        given = model_kwargs.get("past_key_values")
        if given is not None or generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = StateCache.of(given)

    # -- in a folder ---------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """Save as transformers does; `LanguageModel.from_pretrained` opens the folder too."""
        self._follow_config()
        super().save_pretrained(save_directory, *args, **options)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any,
        output_loading_info: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        """Load as transformers does, on one device; weights that do not fit are refused.

        Raises:
            StateformError: a configuration that cannot be used; several devices; weights that are missing or belong to
                another model, unless `ignore_mismatched_sizes=True`, which draws what is missing anew.
        """
        places = options.get("device_map")
        several = {str(x) for x in places.values()} if isinstance(places, dict) else set()
        require(len(several) < 2, f"device_map names {', '.join(sorted(several))}; expected one device for all layers")
        found: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **options)
        model, info = found
        bad = [f"{name} is missing" for name in info["missing_keys"]]
        bad += [f"{name} is not part of the model" for name in info["unexpected_keys"]]
        require(
            pretrained_model_name_or_path is None or options.get("ignore_mismatched_sizes") or not bad,
            f"the weights in {pretrained_model_name_or_path} do not fit its configuration: {'; '.join(sorted(bad)[:3])}"
            f"{f', and {len(bad) - 3} more' if len(bad) > 3 else ''}; ignore_mismatched_sizes=True draws those anew",
        )
        return (model, info) if output_loading_info else model

    @classmethod
    def get_init_context(cls, *args: Any, **options: Any) -> list[Any]:
        """Give the contexts a model is made in, without the device meta: layers compute with their initial values."""
        return [c for c in super().get_init_context(*args, **options) if not isinstance(c, torch.device)]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: the code is that of this package, none is copied into folders."""


@contextmanager
def _single() -> Iterator[torch.dtype]:
    """Make float32 the default dtype inside a `with` block, and give the one before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield before
    finally:
        torch.set_default_dtype(before)


def _make_model(config: ModelConfig) -> LanguageModel:
    """Make a model in the default dtype, its initial values computed in float32."""
    with _single() as dtype:
        model = LanguageModel(config)
    return model if dtype == torch.float32 else model.to(dtype)
