"""How far back does a trained RWKV-7 look, and how far can it? A model that reverses strings of digits, up to 60.

    STATEFORM_DATA=data python examples/rwkv7_reverse.py --lengths 20 40 60 80 120

The i-th digit of an answer is read 2 i tokens back, itself included, from the token before it. The table has, for each
number n of digits: the tokens back that are needed (median over the answer), the memory horizon of the farthest-looking
head of each layer (tokens that hold 95% of the coefficients, median over the answer), the share of the coefficients
that the token needed has in the head that looks at it most, the state that a head needs at the comma, and the accuracy.
Below it stands what of these changes where the accuracy breaks.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import stateform as sf
from stateform import analysis
from stateform.hub.formats import open_file

ALPHABET = "0123456789,#"
CLEAR = 0.15
"""A fall by more than this share counts as one."""


def questions(length: int, count: int, seed: int = 0) -> Tensor:
    """`count` random strings of digits (the first not 0), a comma, the reversed digits and `#`, as tokens."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    digits = torch.randint(10, (count, length), generator=generator)
    digits[:, 0] = digits[:, 0] if length == 1 else torch.randint(1, 10, (count,), generator=generator)
    comma, end = (torch.full((count, 1), ALPHABET.index(x)) for x in ",#")
    return torch.cat([digits, comma, digits.flip(1), end], 1)


@torch.no_grad()
def look(model: sf.LanguageModel, length: int, count: int) -> dict[str, float]:
    """One row of the table. A greedy answer is right exactly if every next token is, the right ones given before it."""
    tokens = questions(length, count)
    right = model(tokens[:, :-1]).logits[:, length:].argmax(-1) == tokens[:, length + 1 :]
    systems = {k: s for k, s in analysis.systems_of(model, tokens[:2, :-1]).items() if k.endswith("mixer")}
    answer = list(range(length, 2 * length))  # token length + i says digit length - 1 - i
    found = {name: analysis.horizon(s, queries=answer) for name, s in systems.items()}
    row = {"digits": length, "needed": length + 1}
    row |= {f"horizon {i}": max(h.per_head()) for i, h in enumerate(found.values(), 1)}
    at = torch.tensor([length - 1 - i for i in range(length)])
    shares = []
    for system in systems.values():
        mass = analysis.influence(system, queries=answer).abs()
        share = mass[..., torch.arange(length), at] / mass.sum(-1)
        shares.append(share.mean((0, 2)).max())
    row["share of the digit"] = float(max(shares))
    row["state needed"] = needed_state(systems, length)
    return row | {
        "digits right": float(right[:, :-1].double().mean()),
        "all right": float(right.all(1).double().mean()),
    }


def needed_state(systems: dict[str, sf.System], length: int) -> float:
    """The largest state that a head needs at the comma, for an error of 10% in what the answer reads of the digits."""
    found = [analysis.state_need(s, tol=0.1, relative="block", splits=[length]) for s in systems.values()]
    return max(float(x.ranks()[1].max()) for x in found)


def relation(rows: Sequence[dict[str, float]]) -> str:
    """What changes from the longest strings that are mostly reversed to the next longer ones, where accuracy breaks."""
    rows = sorted(rows, key=lambda row: row["digits"])
    breaks = [i for i in range(1, len(rows)) if rows[i]["all right"] < 0.5 <= rows[i - 1]["all right"]]
    if not breaks:
        return "Accuracy does not break between these lengths: nothing to relate."
    last, first = rows[breaks[0] - 1], rows[breaks[0]]
    longer = first["digits"] / last["digits"]

    def seen(row: dict[str, float]) -> dict[str, float]:
        horizons = {f"{x} over the tokens needed": row[x] / row["needed"] for x in row if x.startswith("horizon")}
        share = {"share of the digit times the digits": row["share of the digit"] * row["digits"]}
        return horizons | share | {"state needed": row["state needed"]}

    before, after = seen(last), seen(first)
    changes = {name: after[name] / before[name] - 1 for name in before}
    told = "\n".join(f"  {name}: {before[name]:.3g} to {after[name]:.3g} ({changes[name]:+.0%})" for name in before)
    moved = [name for name, change in changes.items() if change < -CLEAR]
    verdict = (
        f"what falls with it is the {' and the '.join(moved)}"
        if moved
        else "none of them falls with it: neither how far the heads look nor the state they need explains the break"
    )
    return (
        f"From {last['digits']:g} to {first['digits']:g} digits ({longer - 1:.0%} longer) the strings reversed without "
        f"a mistake fall from {last['all right']:.0%} to {first['all right']:.0%}, the digits that are right from "
        f"{last['digits right']:.0%} to {first['digits right']:.0%}.\n{told}\nSo {verdict}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[10, 20, 40, 60, 70, 80, 100, 120, 160])
    parser.add_argument("--count", type=int, default=16, help="questions of each length")
    args = parser.parse_args()
    folder = os.environ.get("STATEFORM_DATA")
    if folder is None:
        parser.error("set STATEFORM_DATA to the folder that holds rwkv7-reverse")
    paths = sorted(Path(folder, "rwkv7-reverse").glob("*.pth"))
    if not paths:
        parser.error(f"there is no .pth file in {Path(folder, 'rwkv7-reverse')}")
    model = open_file(paths[0])
    rows = []
    for length in args.lengths:
        row = look(model, length, args.count)
        rows.append(row)
        if len(rows) == 1:
            print("  ".join(f"{name:>{max(8, len(name))}}" for name in row))
        print("  ".join(f"{x:>{max(8, len(name))}.3g}" for name, x in row.items()), flush=True)
    print(f"\n{relation(rows)}")


if __name__ == "__main__":
    main()
