"""Train a language model of bytes on a text file, with any pattern of layers, and save it.

    python examples/train_char_lm.py input.txt --pattern "gated_deltanet*3 softmax" --minutes 5
    stateform generate build/char_lm --prompt "To be"

Ctrl-C ends the training early; the model is saved all the same.
"""

import argparse
import math
import time
from pathlib import Path

import torch

import stateform as sf

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("text", type=Path, help="its first 90 percent are learned from, the rest is for validation")
parser.add_argument("--pattern", default="mamba2*4", help="of the layers: mamba2*3 softmax")
parser.add_argument("--d-model", type=int, default=128)
parser.add_argument("--n-layers", type=int, help="the pattern is cycled; default: one round of it")
parser.add_argument("--length", type=int, default=128, help="tokens of a training sequence")
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--steps", type=int, default=1_000_000)
parser.add_argument("--minutes", type=float, default=math.inf)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--out", type=Path, default=Path("build/char_lm"))
args = parser.parse_args()

torch.manual_seed(0)
data = torch.frombuffer(bytearray(args.text.read_bytes()), dtype=torch.uint8).long()
train, held_out = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]
if len(held_out) <= args.length:
    parser.error(f"{args.text} has {len(data)} bytes; expected more than {10 * (args.length + 1)}")
model = sf.LanguageModel(args.pattern, d_model=args.d_model, n_layers=args.n_layers, tokenizer="bytes")
optimizer = torch.optim.AdamW(model.parameter_groups(weight_decay=0.1), lr=args.lr, betas=(0.9, 0.95))
print(f"{model.config.layers}, {sum(p.numel() for p in model.parameters()):,} parameters")


def batch(tokens: torch.Tensor) -> torch.Tensor:
    starts = torch.randint(len(tokens) - args.length, (args.batch, 1))
    return tokens[starts + torch.arange(args.length + 1)]


@torch.no_grad()
def bits_per_byte() -> float:
    return sum(float(model(x, labels=x).loss) for x in (batch(held_out) for _ in range(8))) / 8 / math.log(2)


begin = time.monotonic()
try:
    for step in range(args.steps):
        done = max((step + 1) / args.steps, (time.monotonic() - begin) / 60 / args.minutes)
        if done > 1:
            break
        for group in optimizer.param_groups:  # warm up, then down to a tenth along a cosine
            group["lr"] = args.lr * min(1, (step + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * done))
        x = batch(train)
        loss = model(x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"{time.monotonic() - begin:6.0f} s  step {step:5}  loss {float(loss.detach()):.3f}", flush=True)
except KeyboardInterrupt:
    print("Interrupted: the model is saved as it is.")
print(f"validation: {bits_per_byte():.3f} bits per byte")
model.save_pretrained(args.out)
print(f"saved: {args.out}; continue a text with: stateform generate {args.out} --prompt 'Once'")
