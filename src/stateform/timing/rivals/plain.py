"""A benchmark as lines of text, where the packages that reports are drawn with are missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def lines(result: Mapping[str, Any], first: str = "") -> Iterator[str]:
    """One line for each pair, party and case: medians, half the way from least to largest, and times ours."""
    if first:
        yield first
    for pair in result.get("pairs") or []:
        yield f"{pair['name']} ({pair.get('sizes', '')})"
        if "failed" in pair:
            yield f"  failed: {pair['failed']}"
        for party in pair.get("parties") or []:
            said = [f"{mode} {error:.1e}" for mode, error in (party.get("errors") or {}).items()]
            said += party.get("notes") or []
            if said:
                yield f"  {party['name']}: {'; '.join(said)}"
        for case in pair.get("cases") or []:
            heading = f"  {case['mode']}, {case['rows']} x {case['tokens']}"
            for name, found in (case.get("found") or {}).items():
                yield f"{heading}, {name}: {amount(found)}"
            for name, reason in (case.get("left_out") or {}).items():
                yield f"{heading}, {name}: left out, {reason}"


def amount(found: Mapping[str, Any]) -> str:
    """What was measured, in milliseconds or megabytes."""
    ratio = found.get("ratio")
    times = "" if ratio is None else f", x{ratio:.3g}"
    if "bytes" in found:
        return f"{found['bytes'] / 1e6:.3g} MB{times}"
    middle = found["median"]
    share = 50 * (found["high"] - found["low"]) / middle if middle else 0.0
    return f"{middle:.3g} ms +-{share:.0f}%{times}"
