"""A foreign family is found by its file, and says its types once: for what opens models and for the documentation."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
from torch import Tensor, nn

from stateform import System
from stateform.hub import FAMILIES, Lifted, adapts, families
from stateform.hub.lifted import ADAPTERS
from stateform.hub.supported import mixers
from stateform.layer import Past

ROOT = Path(__file__).parents[2]
HUB = Path(families.__path__[0]).parent


def test_types_are_told_in_the_order_of_their_names_with_what_is_their_own_first() -> None:
    assert list(FAMILIES) == sorted(FAMILIES) and len(FAMILIES) >= 43
    assert FAMILIES["mamba2"] == ("Mamba2Mixer",)
    assert FAMILIES["zamba2"] == ("Zamba2MambaMixer", "Zamba2Attention")
    assert FAMILIES["lfm2"] == ("Lfm2ShortConv", "Lfm2Attention")
    assert FAMILIES["rwkv"] == ("RwkvSelfAttention", "RwkvFeedForward")
    assert {name for names in FAMILIES.values() for name in names} <= set(ADAPTERS)


def test_the_documentation_has_the_same_table() -> None:
    """It reads the source and does not run it."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    rows = [f"| `{kind}` | {', '.join(f'`{name}`' for name in names)} |" for kind, names in FAMILIES.items()]
    assert hooks.families(HUB / "families").splitlines()[2:] == rows


@pytest.mark.parametrize("path", sorted(HUB.rglob("*.py")), ids=lambda path: str(path.relative_to(HUB)))
def test_listing_types_does_not_import_transformers(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not any(name.partition(".")[0] == "transformers" for name in names), ast.unparse(node)


def test_a_type_of_the_users_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "ours", ())  # afterwards all three are gone
    for name in ("OurMixer", "TheirMixer"):
        monkeypatch.setitem(ADAPTERS, name, Lifted)

    class OurMixer(nn.Module):
        hidden_size = 4

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer, self.other = OurMixer(), nn.Linear(2, 2)

    @adapts("TheirMixer", ours="OurMixer")
    class Ours(Lifted):
        def system(self, u: Tensor, past: Past | None = None) -> System:
            return System(u, u, u)

    assert FAMILIES["ours"] == ("OurMixer",)
    assert ADAPTERS["TheirMixer"] is ADAPTERS["OurMixer"] is Ours
    assert list(mixers(Inside())) == ["mixer"]
