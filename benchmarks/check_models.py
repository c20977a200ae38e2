"""Check the contract on small random models of the families of transformers, and write what came of it.

    python benchmarks/check_models.py [--only mamba llama ...] [--out results/check]

Each model is compared with its own forward over each text alone (`sf.check`). The table goes between the marks in
README.md of the folder, all failures into check.json. The weights are random, so that the numbers say that something
differs, not how much it matters for a trained model.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

import stateform as sf

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fixtures.foreign import families, redraw, small

PARTS = [
    "rows", "future", "cache", "continue", "steps", "left padding", "right padding", "padded, continued",
    "padding between", "packed",
]  # fmt: skip
START, END = "<!-- table -->", "<!-- end of table -->"

_BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
_PLAIN = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 256,
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "afmoe": {
        **_PLAIN,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "sliding_window": 8,
    },
    "bart": {**_BART, "max_position_embeddings": 256},
    "biogpt": {**_PLAIN},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "moshi": {**_PLAIN, "sliding_window": 8},
    "opt": {**_PLAIN, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "roberta": {**_PLAIN, "is_decoder": True, "pad_token_id": 1},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 256},
}
"""Further decoders in which a wider search found something."""


def other(name: str) -> Any:
    settings = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "vocab_size": 64, **OTHERS[name]}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[name](**settings)).float()
    redraw(model)
    return model.eval()


def word(part: str, report: dict[str, Any]) -> str:
    """What came of a part, for the table."""
    found = report["parts"].get(part)
    if found is None:
        return "not offered"
    if not found["failures"]:
        return "ok, with position_ids" if f"{part} without position_ids" in report["not_offered"] else "ok"
    sizes = [float(x) for text in found["failures"] for x in re.findall(r"largest ([-+.\deinfa]+)", text)]
    words = [f"differs by {max(sizes):.2g}"] if sizes else []
    words += ["raises"] * any("raised" in text for text in found["failures"])
    words += ["other shape"] * any("gives [" in text for text in found["failures"])
    return ", ".join(words)


def table(reports: dict[str, Any]) -> str:
    if not reports:
        return ""
    lines = ["", "| family | " + " | ".join(PARTS) + " |", "| --- " * (len(PARTS) + 1) + "|"]
    for name, report in reports.items():
        if "refused" in report:
            lines.append(f"| {name} | refused: {report['refused']}" + " |" * len(PARTS) + " |")
        else:
            lines.append(f"| {name} | " + " | ".join(word(part, report) for part in PARTS) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[*families(), *OTHERS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/check"))
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    reports: dict[str, Any] = {}
    for name in options.only:
        try:
            report = sf.check(other(name) if name in OTHERS else small(name), seed=options.seed)
        except sf.StateformError as error:
            reports[name] = {"refused": str(error).partition(";")[0]}
            print(name, "refused:", error, flush=True)
            continue
        reports[name] = report.to_dict()
        print(report, flush=True)
    facts = {
        "transformers": transformers.__version__, "torch": torch.__version__, "python": platform.python_version(),
        "seed": options.seed, "families": reports,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "check.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    page = options.out / "README.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# Models of transformers\n\n{START}\n{END}\n"
    before, _, rest = text.partition(START)
    parts = [table({name: r for name, r in reports.items() if (name in OTHERS) == wanted}) for wanted in (False, True)]
    page.write_text("\n".join([before + START, *parts, END + rest.partition(END)[2]]), encoding="utf-8")


if __name__ == "__main__":
    main()
