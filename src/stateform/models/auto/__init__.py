"""Registration with transformers: once this is imported, AutoConfig and AutoModelForCausalLM open our folders.

    import stateform.models.auto
    model = AutoModelForCausalLM.from_pretrained("folder")        # one that LanguageModel.save_pretrained wrote

Each loads what the other saves. Saving, loading, generating, training and adapting are transformers' own; the
mathematics is that of the LanguageModel inside (`.model`).
"""

try:
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig  # noqa: F401  (the last one came with version 5)
except ImportError as error:
    raise ImportError(
        "stateform.models.auto needs transformers 5 or newer; install it with: pip install 'stateform[hub]'"
    ) from error

from ..config import MODEL_TYPE
from .cache import StateCache
from .causal import StateformForCausalLM
from .config import StateformConfig

__all__ = ["StateCache", "StateformConfig", "StateformForCausalLM"]

AutoConfig.register(MODEL_TYPE, StateformConfig, exist_ok=True)
AutoModelForCausalLM.register(StateformConfig, StateformForCausalLM, exist_ok=True)
