"""Distributions of random variables: what a spec may say of them, and the values drawn, on every machine the same."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import Any

from experiment.loader import Mark
from experiment.problems import Problem, suggest
from experiment.scalars import as_key, show_value

DISTRIBUTIONS = ("log_uniform", "uniform", "int_uniform", "choice")
SIGNIFICANT_DIGITS = 4
"""Of drawn numbers: enough to search by, and short in labels and folders."""
MAX_WHOLE = 2**53
"""Bounds of `int_uniform` lie within this, so that no value is changed where a setting is a float."""

_OTHER_NAMES = {"randint": "int_uniform", "uniform_int": "int_uniform", "categorical": "choice"}
"""What other tools call ours, where spelling alone doesn't lead there."""
_MISSING = frozenset({"normal", "log_normal", "lognormal"})
"""What other tools have and we don't."""
_NEAR = 0.8
"""How alike a misspelt name has to be; a nested setting of some other name is none."""
# A precision of our own: the values may not depend on the caller's context.
_ARITHMETIC = Context(prec=30, rounding=ROUND_HALF_EVEN)


@dataclass(frozen=True)
class Distribution:
    """Where the values of a random variable come from.

    Attributes:
        name: one of `DISTRIBUTIONS`.
        arguments: low and high, both of which may be drawn; of a choice the values to choose from.
    """

    name: str
    arguments: tuple[Any, ...]

    def draw(self, key: str, samples: int, seed: int) -> list[Any]:
        """Give the values of a variable at the points 0 to `samples` - 1.

        A value depends on the distribution, the key, the point's number and the seed alone: more points keep the first
        ones, and no other variable matters. Numbers are rounded to `SIGNIFICANT_DIGITS`, and to more where these would
        be coarser than a thousandth of what lies between the bounds.
        """
        hashes = [_hash(key, number, seed) for number in range(samples)]
        if self.name == "choice":
            return [self.arguments[_scale(bits, len(self.arguments))] for bits in hashes]
        low, high = self.arguments
        if self.name == "int_uniform":
            return [low + _scale(bits, high - low + 1) for bits in hashes]
        return _draw_floats(hashes, low, high, logarithmic=self.name == "log_uniform")

    def can_repeat(self, value: Any) -> bool:
        """Say whether a value is one of few, so that it may well be drawn, and again; of a `uniform` none is."""
        if self.name == "choice":
            return as_key(value) in [as_key(argument) for argument in self.arguments]
        is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
        return self.name == "int_uniform" and is_whole and self.arguments[0] <= value <= self.arguments[1]

    def describe(self) -> dict[str, list[Any]]:
        """Give what a spec would say."""
        return {self.name: list(self.arguments)}


def read_distribution(
    key: str, name: str, value: Any, at: Mark, items: Sequence[Mark], problems: list[Problem]
) -> Distribution:
    """Give a distribution as it is written; what is wrong with it is added to the problems.

    Values of a choice that are alike are left to the caller, who looks for them in lists as well.

    Args:
        key: the variable's, named in what is wrong.
        name: one of `DISTRIBUTIONS`.
        value: what stands after the name.
        at: its place; `items` are those of its items where it is a list.
        items: as said.
        problems: gets what is wrong.
    """
    shown = show_value(value)
    if name == "choice":
        if not isinstance(value, list) or not value:
            problems.append(at.problem(f"{key}: choice takes the values to choose from, [a, b], got {shown}"))
        return Distribution(name, tuple(value) if isinstance(value, list) else ())
    if not isinstance(value, list) or len(value) != 2:
        problems.append(at.problem(f"{key}: {name} takes two numbers, [low, high], got {shown}"))
        return Distribution(name, ())
    faults = [_explain_bad_bound(name, bound) for bound in value]
    problems += [mark.problem(f"{key}: {fault}") for fault, mark in zip(faults, items, strict=True) if fault]
    if any(faults):
        return Distribution(name, ())
    low, high = (int(bound) if name == "int_uniform" else float(bound) for bound in value)
    if low >= high:
        repair = f"write [{show_value(value[1])}, {show_value(value[0])}]" if low > high else "a constant has one value"
        problems.append(at.problem(f"{key}: the low bound of {name} must be below the high one, got {shown}; {repair}"))
    return Distribution(name, (low, high))


def explain_misspelt(key: str, name: str) -> str | None:
    """Say which distribution is likely meant by a name that is none; None where it is rather a setting's name."""
    if name in DISTRIBUTIONS:
        return None
    if name in _MISSING:
        hint = f"; there are {', '.join(DISTRIBUTIONS)}"
    elif name in _OTHER_NAMES:
        hint = f"; did you mean {_OTHER_NAMES[name]!r}?"
    elif difflib.get_close_matches(name.lower(), DISTRIBUTIONS, n=1, cutoff=_NEAR):
        hint = suggest(name.lower(), DISTRIBUTIONS)
    else:
        return None
    return f"{key}: unknown distribution {name!r}{hint} (a setting of that name is written with a dot, {key}.{name})"


def _explain_bad_bound(name: str, bound: Any) -> str | None:
    """Say what is wrong with a bound, if anything."""
    shown = show_value(bound)
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        return f"a bound of {name} must be a number, got {shown}"
    if isinstance(bound, float) and not math.isfinite(bound):
        return f"every number must be finite, got {shown}"
    if name == "int_uniform":
        if bound != int(bound):
            return f"a bound of {name} must be a whole number, got {shown}"
        return f"a bound of {name} must lie within 2**53, got {shown}" if abs(bound) > MAX_WHOLE else None
    if name == "log_uniform" and bound <= 0:
        return f"a bound of {name} must be > 0, got {shown}"
    try:
        float(bound)
    except OverflowError:
        return f"a bound of {name} is too large for a float: {shown}"
    return None


def _hash(key: str, number: int, seed: int) -> int:
    """Give 64 bits that look random: BLAKE2b, as in ids, which no version of Python can change (RFC 7693)."""
    text = json.dumps([seed, key, number], separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _scale(bits: int, count: int) -> int:
    """Give one of `count` whole numbers from 0 on, all as likely as 64 bits can make them."""
    return bits * count >> 64


def _draw_floats(hashes: Sequence[int], low: float, high: float, *, logarithmic: bool) -> list[float]:
    """Give a float for each hash, in decimals: a C library's `exp` may differ in the last bit, and so in an id."""
    values = []
    with localcontext(_ARITHMETIC):
        # As they are written: 0.1 is a tenth, not the nearest binary fraction.
        bottom, top = Decimal(repr(low)), Decimal(repr(high))
        start, end = (bottom.ln(), top.ln()) if logarithmic else (bottom, top)
        coarsest = (top - bottom).adjusted() - 3
        for bits in hashes:
            # The middle of one of 2**52 equal parts, so never a bound itself.
            value = start + (end - start) * (2 * (bits >> 12) + 1) / 2**53
            value = value.exp() if logarithmic else value
            exponent = min(value.adjusted() - SIGNIFICANT_DIGITS + 1, coarsest)
            rounded = value.quantize(Decimal((0, (1,), exponent)))
            values.append(float(min(max(rounded, bottom), top)))
    return values
