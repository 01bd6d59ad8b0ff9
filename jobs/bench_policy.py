"""`oncesign bench policy`: what a source's policy costs, as the ratio of two rates that are measured in turn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson

from jobs.bench_pipeline import bench as drain
from pipeline.settings import ENV_PREFIX, Settings

SOURCES: Final = ENV_PREFIX + "SOURCES"


def bench(settings: Settings, policy_file: Path, count: int, rounds: int) -> dict[str, Any]:
    """Drain `count` rows without and with the policy, `rounds` times each. Raises what `bench pipeline` raises."""
    rates: dict[str, list[float]] = {"without": [], "with": []}
    cpu: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds):
        for name, file in (("without", None), ("with", policy_file.resolve())):
            with source_with(settings, file) as changed:
                found = drain(changed, count, verify=False)
            rates[name].append(found["tx_per_s"])
            cpu[name].append(found["cpu_us_per_tx"])
    return {
        "count": count,
        "rounds": rounds,
        "tx_per_s": {name: round(median(values)) for name, values in rates.items()},
        "cpu_us_per_tx": {name: round(median(values), 1) for name, values in cpu.items()},
        "rate_ratio": round(median(rates["with"]) / median(rates["without"]), 3),
        "cpu_ratio": round(median(cpu["with"]) / median(cpu["without"]), 3),
    }


@contextmanager
def source_with(settings: Settings, policy_file: Path | None) -> Iterator[Settings]:
    """Settings, and the variable that a job takes them from, whose first source has this policy."""
    first, *others = settings.sources
    sources = [first.model_copy(update={"policy_file": policy_file}), *others]
    before = os.environ.get(SOURCES)
    os.environ[SOURCES] = orjson.dumps([source.model_dump(mode="json") for source in sources]).decode()
    try:
        yield settings.model_copy(update={"sources": sources})
    finally:
        if before is None:
            del os.environ[SOURCES]
        else:
            os.environ[SOURCES] = before
