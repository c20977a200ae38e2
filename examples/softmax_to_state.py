"""What does a trained language model lose if its softmax heads read a state of fixed size instead of a cache?

    STATEFORM_DATA=data python examples/softmax_to_state.py --sizes 4 8 16 32
    python examples/softmax_to_state.py --model FOLDER --text FILE --heads 0:1 3:0

Without --model it is Stories260K of llama2.c, which writes its own texts: some to fit the heads on, others to measure
on. Each head is fitted, to its own weights, by n positive features with a decay each; the model is not trained. Beside
it stand a softmax over the last n tokens, and the mean weight of each lag as a recurrence of order n. A table has the
numbers that each keeps for a head, and the loss with all chosen heads replaced at once.
"""

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor

from stateform.hub import open_model
from stateform.hub.formats import open_file
from stateform.hub.replacement import METHODS, softmax_to_state


def texts(rows: int, length: int, model: str | None, text: str | None) -> tuple[torch.nn.Module, Tensor]:
    """A model, and so many rows of tokens of that length."""
    if model is None:
        stories = open_file(Path(os.environ["STATEFORM_DATA"]) / "stories260k" / "stories260K.bin")
        torch.manual_seed(0)
        begin = torch.ones(rows, 1, dtype=torch.long)
        with torch.no_grad():
            return stories, stories.generate(begin, max_new_tokens=length - 1, temperature=1.0)
    if text is None:
        raise SystemExit("--text is missing: a file to fit and to measure on")
    opened = open_model(model)
    ids = opened.tokens(Path(text).read_bytes(), rows * length)[0]
    if len(ids) < 2 * length:
        raise SystemExit(
            f"{text} has {len(ids)} tokens; expected {2 * length} or more: one row to fit on, one to measure"
        )
    whole = len(ids) // length
    return opened.model, ids[: whole * length].view(whole, length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or name of a model of transformers")
    parser.add_argument("--text", help="a file, with --model")
    parser.add_argument("--heads", nargs="*", help="layer:head each (default: all)")
    parser.add_argument("--sizes", nargs="*", type=int, default=[4, 8, 16, 32], help="features, or tokens of a window")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=["fitted", "window", "lag"])
    parser.add_argument("--rows", type=int, default=16, help="rows of text; half of them are held out")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=400, help="of each fit")
    parser.add_argument("--each", action="store_true", help="replace each head alone as well")
    given = parser.parse_args()
    model, ids = texts(given.rows, given.length, given.model, given.text)
    half = len(ids) // 2
    found = softmax_to_state(
        model, ids[:half], ids[half:], heads=given.heads, sizes=given.sizes, methods=given.methods, steps=given.steps,
        each=given.each, on_progress=lambda what, done, total: print(f"[{done}/{total}] {what}", flush=True),
    )  # fmt: skip
    print(found)


if __name__ == "__main__":
    main()
