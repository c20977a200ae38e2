"""Numbers as people read them: three digits, a prefix and a unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

MISSING = "–"

_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_TIMES = ((1.0, " s"), (1e-3, " ms"), (1e-6, " µs"), (1e-9, " ns"))
_BYTES = ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B"))


def significant(x: float, digits: int = 3) -> str:
    """Write `x` with `digits` significant digits and no exponent: 12.3, 4.56, 1230."""
    if x == 0:
        return "0"
    x = float(f"{x:.{digits - 1}e}")
    return f"{x:.{max(0, digits - 1 - math.floor(math.log10(abs(x))))}f}".replace("-", "−")


def _scaled(x: float | None, steps: Sequence[tuple[float, str]], digits: int = 3) -> str:
    if x is None:
        return MISSING
    if not math.isfinite(x):
        return str(x).replace("-", "−")
    if x == 0:
        return "0" + next((name for size, name in steps if size == 1.0), "")
    rounded = abs(float(f"{x:.{digits - 1}e}"))  # 999.7 µs is 1.00 ms, not 1000 µs
    size, name = next((step for step in steps if rounded >= step[0]), steps[-1])
    return significant(x / size, digits) + name


def count(n: float | None) -> str:
    """Write a number of things: exact up to 9999, then 16.4k, 1.05M. Missing: a dash."""
    if n is not None and abs(n) < 10_000 and n == int(n):
        return str(int(n)).replace("-", "−")
    return _scaled(n, _COUNTS)


def milliseconds(ms: float | None) -> str:
    """Write a duration given in milliseconds, with the unit that fits: 850 ns, 12.3 µs, 4.56 ms, 1.20 s."""
    return _scaled(None if ms is None else ms * 1e-3, _TIMES)


def microseconds(us: float | None) -> str:
    """Write a duration given in microseconds, with the unit that fits."""
    return _scaled(None if us is None else us * 1e-6, _TIMES)


def size(nbytes: float | None) -> str:
    """Write a number of bytes: 512 B, 1.05 MB."""
    return _scaled(nbytes, _BYTES)


def error(e: float | None) -> str:
    """Write a relative error: 0, 3e-15, 0.83."""
    if e is None:
        return MISSING
    if e == 0 or not math.isfinite(e):
        return f"{e:g}"
    if abs(e) >= 1e-3:
        return significant(e, 2)
    mantissa, exponent = f"{e:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def plain(x: float | None, digits: int = 3) -> str:
    """Write a number without a unit that is neither huge nor tiny, such as an eigenvalue: 0.983, −1, 0."""
    if x is None:
        return MISSING
    if not math.isfinite(x):
        return str(x).replace("-", "−")
    if x != 0 and abs(x) < 1e-3:
        return error(x).replace("-", "−", 1) if x < 0 else error(x)
    text = significant(x, digits) if abs(x) < 1 else f"{x:.{digits}g}".replace("-", "−")
    return text.rstrip("0").rstrip(".") if "." in text else text


def near_one(x: float | None) -> str:
    """Write a magnitude that may be 1 or just below, with the digits that tell the two apart: 0.83, 0.9992, 1."""
    if x is None or not math.isfinite(x) or not 0.99 < x < 1:
        return plain(x)
    text = f"{x:.{1 + math.ceil(-math.log10(1 - x))}f}".rstrip("0")
    return text if len(text) < 9 and float(text) < 1 else f"1 − {error(1 - x)}"


def times(ratio: float) -> str:
    """Write a ratio: 8.4×, 128×."""
    return f"{significant(ratio, 2 if ratio < 100 else 3)}×"


def ticks(low: float, high: float, write: Callable[[float], str], most: int = 7) -> tuple[list[float], list[str]]:
    """Choose about `most` round values between `low` and `high` for a logarithmic axis, and write them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / most))
    steps = (1, 2, 5) if (last - first) <= 2 else (1,)
    values = [step * 10.0**power for power in range(first, last + 1, every) for step in steps]
    values = [value for value in values if low <= value <= high] or [low, high]
    return values, [_trim(write(value)) for value in values]


def _trim(text: str) -> str:
    """Drop the zeros that follow a decimal point at the end of a number."""
    number, space, unit = text.partition(" ")
    suffix = number[-1] if number and number[-1] in "kMGT" else ""
    digits = number.removesuffix(suffix)
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return digits + suffix + space + unit
