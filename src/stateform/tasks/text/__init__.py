"""Language modelling: the bytes of any text, and each one's next."""

from .bytes import Bytes, parts
from .hf_text import HuggingFaceText, read_hub
from .text import Text, read_parts

__all__ = ["Bytes", "HuggingFaceText", "Text", "parts", "read_hub", "read_parts"]
