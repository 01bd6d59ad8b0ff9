"""Which faults, in which order, for how long: a function of the seed."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from pipeline.testing.chaos.fault import EVERYDAY, RARE, Fault, Kind

HOLD_S_MIN: Final = 0.1
HOLD_S_MAX: Final = 30.0
PICKS: Final = 720_720
"""Divisible by every number of members up to 16, so that `pick % n` prefers none."""

RARE_EVERY: Final = 25
"""One fault in so many is a long one."""


def plan(seed: int, count: int, seconds: float, kinds: Collection[Kind] = (*EVERYDAY, *RARE)) -> list[Fault]:
    """`count` faults spread over so many seconds, every kind about as often as the others of its sort."""
    source = random.Random(seed)  # noqa: S311 - chaos, not keys
    everyday = _shuffled(source, [kind for kind in EVERYDAY if kind in kinds])
    rare = _shuffled(source, [kind for kind in RARE if kind in kinds])
    chosen = [_turn(number, everyday, rare) for number in range(1, count + 1)]
    return [
        Fault(number, kind, round(seconds * (number - 1) / count, 3), _hold_s(source), source.randrange(PICKS))
        for number, kind in enumerate(chosen, 1)
    ]


def _turn(number: int, everyday: Iterator[Kind], rare: Iterator[Kind]) -> Kind:
    """In the middle of every stretch of RARE_EVERY a rare one; only the sort that there is, where one is missing."""
    order = (rare, everyday) if number % RARE_EVERY == RARE_EVERY // 2 else (everyday, rare)
    for kinds in order:
        for kind in kinds:
            return kind
    raise ValueError("a plan needs a kind of fault")


def _shuffled(source: random.Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    """Each once in a random order, then each once more …; nothing when there is none."""
    while kinds:
        yield from source.sample(kinds, len(kinds))


def _hold_s(source: random.Random) -> float:
    """As many of a second as of ten: what breaks is often a matter of scale."""
    return round(math.exp(source.uniform(math.log(HOLD_S_MIN), math.log(HOLD_S_MAX))), 3)
