"""Importing this makes transformers know these models: AutoConfig and AutoModelForCausalLM open their folders.

    import stateform.models.auto
    model = AutoModelForCausalLM.from_pretrained("folder")        # one that LanguageModel.save_pretrained wrote

The files are those of `LanguageModel`: what one saves, the other loads.
"""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from .._errors import require
from ..state import State
from .config import MODEL_TYPE, ModelConfig
from .language import LanguageModel
from .pretrained import CONFIG, WEIGHTS

try:
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.utils.hub import cached_file
except ImportError as error:
    raise ImportError(
        "stateform.models.auto needs transformers 5 or newer; install it with: pip install 'stateform[hub]'"
    ) from error

_OURS = {f.name for f in fields(ModelConfig)}
_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_IGNORED = ("trust_remote_code", "adapter_kwargs", "_from_auto", "_commit_hash", "attn_implementation")


class StateformConfig(PreTrainedConfig):
    """A ModelConfig, as transformers wants it; its fields are attributes."""

    model_type = MODEL_TYPE
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "n_layers"}  # noqa: RUF012

    def __init__(self, **settings: Any) -> None:
        settings.pop("format", None)
        ours = {name: settings.pop(name) for name in list(settings) if name in _OURS}
        super().__init__(**settings)
        self._model = ModelConfig(**ours) if ours else None
        for name, value in ({} if self._model is None else asdict(self._model)).items():
            setattr(self, name, value)

    @property
    def model(self) -> ModelConfig:
        """The configuration that the model is made from."""
        require(self._model is not None, "this configuration is empty; give a pattern, d_model, vocab_size, ...")
        assert self._model is not None
        return self._model

    def to_dict(self) -> dict[str, Any]:
        return {"architectures": ["LanguageModel"], **({} if self._model is None else self._model.to_dict())}

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


class StateformForCausalLM(PreTrainedModel):
    """A LanguageModel (`.model`) with the arguments and outputs of transformers."""

    config_class = StateformConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"

    def __init__(self, config: StateformConfig, model: LanguageModel | None = None) -> None:
        super().__init__(config)
        self.model = LanguageModel(config.model) if model is None else model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, labels: Tensor | None = None,
        past_key_values: State | None = None, use_cache: bool = False, return_dict: bool = True,
        logits_to_keep: int = 0,
    ) -> Any:  # fmt: skip
        """`LanguageModel.forward`; a mask that is longer than the input is that of all tokens so far."""
        if attention_mask is not None and past_key_values is not None:
            attention_mask = attention_mask[:, -input_ids.shape[1] :]
        out = self.model(
            input_ids, attention_mask, labels=labels, initial_state=past_key_values, return_state=use_cache,
            logits_to_keep=logits_to_keep,
        )  # fmt: skip
        result = CausalLMOutputWithPast(loss=out.loss, logits=out.logits, past_key_values=out.state)
        return result if return_dict else result.to_tuple()

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, do_sample: bool | None = None, **options: Any
    ) -> Tensor:
        """`LanguageModel.generate`; `do_sample` says whether tokens are drawn, whatever the other options."""
        if do_sample is False:
            options = {k: v for k, v in options.items() if k not in ("temperature", "top_k", "top_p")}
        elif do_sample:
            options.setdefault("temperature", 1.0)
        return self.model.generate(input_ids, attention_mask, **options)

    def get_input_embeddings(self) -> Any:
        return self.model.embedding

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:  # type: ignore[override]
        """Write what `LanguageModel.save_pretrained` writes."""
        self.model.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, config: Any = None, dtype: Any = None,
        device_map: Any = None, **options: Any,
    ) -> StateformForCausalLM:  # fmt: skip
        """`LanguageModel.from_pretrained`, from a folder or from a repository of the hub.

        Raises:
            StateformError: as there; an option that is not offered here.
        """
        dtype = options.pop("torch_dtype", dtype)
        hub = {name: options.pop(name) for name in _HUB if name in options}
        unknown = [name for name, value in options.items() if name not in _IGNORED and value is not None]
        require(not unknown, f"from_pretrained of this model takes no {', '.join(unknown)}; leave it out")
        require(
            device_map is None or isinstance(device_map, str | int),
            f"device_map is {device_map!r}; expected one device, such as 'cuda'",
        )
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            files = [cached_file(str(pretrained_model_name_or_path), name, **hub) for name in (CONFIG, WEIGHTS)]
            folder = Path(str(files[0])).parent
        model = LanguageModel.from_pretrained(folder)
        if dtype not in (None, "auto"):
            model = model.to(dtype)
        if device_map is not None:
            model = model.to("cpu" if device_map == "auto" else device_map)
        return cls(StateformConfig(**asdict(model.config)), model).eval()


AutoConfig.register(MODEL_TYPE, StateformConfig, exist_ok=True)
AutoModelForCausalLM.register(StateformConfig, StateformForCausalLM, exist_ok=True)
