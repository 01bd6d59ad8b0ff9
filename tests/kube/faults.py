"""Pods that are deleted while the pipeline signs, and for how long it does not."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.kube.namespace import NAME, KubeError, kubectl, pod_ready, pods, say, sql, until

RESUME_TIMEOUT_S: Final = 240.0
SLOWLY_S: Final = 4.0
"""Between two looks while something is measured, which has the same processor."""

FEED_EVERY_S: Final = 0.25
FEED_TIMES: Final = 40
"""By one psql: a process for each insert would take the processor from what is measured."""

FEED_ROWS: Final = 24
SHARDS: Final = 8
FEED: Final = f"""
INSERT INTO transactions (type, chain_id, "to", value, gas_limit, max_fee_per_gas, max_priority_fee_per_gas, data)
SELECT type, chain_id, "to", value, gas_limit, max_fee_per_gas, max_priority_fee_per_gas, data
FROM transactions WHERE access_list IS NULL ORDER BY id LIMIT {FEED_ROWS}
\\watch interval={FEED_EVERY_S} count={FEED_TIMES}
"""
LONGEST: Final = """
SELECT max(written_at - before) FROM (
    SELECT extract(epoch FROM written_at) AS written_at,
           extract(epoch FROM lag(written_at) OVER (PARTITION BY source, shard ORDER BY seq)) AS before
    FROM signing_ledger) AS batches
WHERE written_at > {began}
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of pod, and for how many seconds a stream may stand still when one is deleted."""

    name: str
    selector: str
    bound_s: float


KINDS: Final = (
    Kind("signer", "ray.io/group=signers", 15),
    Kind("io", "ray.io/group=io", 30),
    Kind("key manager", "ray.io/group=key-manager", 15),
    Kind("head", "ray.io/node-type=head", 90),
    Kind("etcd member", "app=etcd", 30),
    Kind("kafka", "app=kafka", 60),
)


@dataclass(slots=True)
class Feeder:
    """Inserts rows all the time, so that there is always something to sign."""

    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Until stopped."""
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more rows."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)

    def _feed(self) -> None:
        while not self._stop.wait(FEED_EVERY_S):
            try:
                sql(FEED)
            except KubeError as error:
                say(f"  rows could not be inserted: {error}")


def rows() -> int:
    """Committed ones."""
    return int(sql("SELECT count(*) FROM transactions")[0])


def outcomes() -> int:
    """Rows that the verifier has seen published."""
    return int(sql("SELECT count(*) FROM outcomes")[0])


def delete(kind: Kind) -> float:
    """Delete one of them, wait for the next; the longest time meanwhile in which a stream signed no batch, in seconds.

    Rows come all the time for every stream; about a second is what is seen without any deletion.
    """
    victim = pods(kind.selector)[0]["metadata"]["name"]
    [began] = sql("SELECT extract(epoch FROM clock_timestamp())")
    kubectl("-n", NAME, "delete", "pod", victim, timeout_s=RESUME_TIMEOUT_S)
    until(f"a new {kind.name}", lambda: _all_ready(kind), RESUME_TIMEOUT_S, every_s=SLOWLY_S)
    mark = int(sql("SELECT max(id) FROM transactions")[0])
    until(f"signing goes on without {victim}", lambda: _verified_since(mark), RESUME_TIMEOUT_S, every_s=SLOWLY_S)
    [longest] = sql(LONGEST.format(began=began))
    say(f"  {kind.name}: {victim} deleted; no stream stood still for more than {float(longest):.1f} s")
    return float(longest)


def _verified_since(mark: int) -> bool:
    found = sql(f"SELECT count(DISTINCT tx_id % {SHARDS}) FROM outcomes WHERE tx_id > {mark}")
    return int(found[0]) == SHARDS


def delete_each(kinds: Sequence[Kind], rounds: int, settle_s: float) -> dict[str, list[float]]:
    """Each kind in turn, so often; the seconds of each."""
    found: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for number in range(rounds):
        for kind in kinds:
            found[kind.name].append(delete(kind))
            time.sleep(settle_s)
        say(f"  round {number + 1} of {rounds} is over")
    return found


def _all_ready(kind: Kind) -> bool:
    found = pods(kind.selector)
    return bool(found) and all(pod_ready(pod) for pod in found)


def table(found: dict[str, list[float]]) -> list[str]:
    """Lines for people: median and worst by kind, against the bound."""
    lines = [f"{'deleted':<14}{'times':>6}{'median s':>10}{'worst s':>9}{'bound s':>9}"]
    for name, times in found.items():
        kind = next(kind for kind in KINDS if kind.name == name)
        late = "" if max(times) <= kind.bound_s else "   TOO LATE"
        median, worst = statistics.median(times), max(times)
        lines.append(f"{kind.name:<14}{len(times):>6}{median:>10.1f}{worst:>9.1f}{kind.bound_s:>9.0f}{late}")
    return lines


def too_late(found: dict[str, list[float]]) -> list[str]:
    """Kinds whose worst time is above its bound."""
    return [kind.name for kind in KINDS if max(found.get(kind.name, [0.0])) > kind.bound_s]
