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
from torch import Tensor, nn
from torch.nn import functional as F

import stateform as sf
from stateform import analysis

ALPHABET = "0123456789,#"
CLEAR = 0.15
"""A fall by more than this share counts as one."""


class Reverser(nn.Module):
    """Two blocks of RWKV-7 time mixing and channel mixing, with the names of the trained file."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = weights
        self.mixers = nn.ModuleList(mixer(weights, f"rwkv{i}.") for i in (1, 2))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def forward(self, tokens: Tensor) -> Tensor:
        x, shared = self.weights["e.weight"][tokens], {}
        for i, layer in enumerate(self.mixers, 1):
            x = x + layer(self.norm(x, f"ln{i}a"), shared=shared) + self.weights[f"rosa{i}.o.bias"]
            u, w = (
                self.norm(x, f"ln{i}b"),
                {k: self.weights[f"ffn{i}.{k}"] for k in ("x_k", "key.weight", "value.weight")},
            )
            u = u + (F.pad(u[:, :-1], (0, 0, 1, 0)) - u) * w["x_k"].flatten()
            x = x + F.relu(u @ w["key.weight"].T).square() @ w["value.weight"].T
        return self.norm(x, "lno") @ self.weights["o.weight"].T + self.weights["o.bias"]


def mixer(weights: dict[str, Tensor], prefix: str) -> sf.Layer:
    """The layer `rwkv7` with one block's weights."""
    w = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    w |= {name: w[name].T for name in w if name[1:] in ("1", "2")}  # the low-rank maps, as nn.Linear has them
    ranks = {"decay": "w", "rate": "a", "gate": "g", "residual": "v"}
    sizes = {name: len(w[f"{key}1"]) for name, key in ranks.items() if f"{key}1" in w}
    layer = sf.build(
        "rwkv7", d_model=w["w0"].numel(), n_heads=len(w["r_k"]), decay_rank=sizes["decay"], rate_rank=sizes["rate"],
        gate_rank=sizes["gate"], value_rank=sizes.get("residual", sizes["rate"]),
    )  # fmt: skip
    mine = layer.state_dict()
    given = {"w": w["w0"], "rate": w["a0"], "xi": w["k_k"], "alpha": w["k_a"], "rho": w["r_k"]}
    given |= {"norm.weight": w["ln_x.weight"], "norm.bias": w["ln_x.bias"]}
    given["mix"] = torch.stack([w[f"x_{x}"].flatten() for x in "rwkvag"])
    given |= {"residual": w["v0"]} if "v0" in w else {}
    names = {"r_proj": "receptance", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    given |= {f"{ours}.weight": w[f"{theirs}.weight"] for ours, theirs in names.items()}
    for name, key in ranks.items():
        given |= {f"{name}_map.{at}.weight": w[f"{key}{n}"] for at, n in ((0, 1), (2, 2)) if f"{key}{n}" in w}
    layer.load_state_dict(mine | {name: x.reshape(mine[name].shape) for name, x in given.items()})
    return layer


def load(path: Path) -> Reverser:
    """The model of a trained file."""
    return Reverser(torch.load(path, map_location="cpu", weights_only=True)).eval()


def questions(length: int, count: int, seed: int = 0) -> Tensor:
    """`count` random strings of digits (the first not 0), a comma, the reversed digits and `#`, as tokens."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    digits = torch.randint(10, (count, length), generator=generator)
    digits[:, 0] = digits[:, 0] if length == 1 else torch.randint(1, 10, (count,), generator=generator)
    comma, end = (torch.full((count, 1), ALPHABET.index(x)) for x in ",#")
    return torch.cat([digits, comma, digits.flip(1), end], 1)


@torch.no_grad()
def look(model: Reverser, length: int, count: int) -> dict[str, float]:
    """One row of the table. A greedy answer is right exactly if every next token is, the right ones given before it."""
    tokens = questions(length, count)
    right = model(tokens[:, :-1])[:, length:].argmax(-1) == tokens[:, length + 1 :]
    systems = analysis.systems_of(model, tokens[:2, :-1])
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
    model = load(paths[0])
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
