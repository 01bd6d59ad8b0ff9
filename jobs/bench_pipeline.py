"""`oncesign bench pipeline`: where the CPU time of a drain goes.

CPU seconds are those that the operating system counted for every process of the stack between two moments: when the
rows are committed, all at once, to a pipeline that is up and idle, and when the last of them is signed.
`signing_cpu_share` is raw_us times the rows signed over all of them. raw_us is the median of short probes of bare
libsecp256k1 between the same two moments: a processor whose other half or cache is busy signs slower, so a figure from
an idle machine would be of another machine. The probes' own CPU time is in no group.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import psutil
import psycopg

from actors import cluster
from jobs import submission
from jobs.bench_kernel import raw_signatures
from jobs.signing import ensure_keys, warm_kernel
from pipeline.adapters import migrations
from pipeline.adapters.postgres import connection_string
from pipeline.errors import RuntimeFault
from pipeline.local import record
from pipeline.local.cache import progress
from pipeline.settings import Settings
from pipeline.stock.mix import Mix
from pipeline.stock.row import COPY_ROWS, Row, copy_rows

MIB: Final = 1024**2
PROBE_SIGNATURES: Final = 500
SAMPLE_EVERY_S: Final = 0.5
SEED: Final = 1
ACTORS: Final = {
    "reader": "reader",
    "consumer": "consumer",
    "signer": "signer",
    "key-manager": "key_manager",
    "tx-verifier": "verifier",
}
"""Actor names' beginnings → groups; everything else of Ray is `ray`."""

TOO_SHORT: Final = RuntimeFault("the run was too short to measure.", hint="Give a larger --count.")


@dataclass(slots=True)
class Meter:
    """CPU seconds and peak memory per group of processes, sampled from a thread."""

    settings: Settings
    pids: dict[str, int] = field(default_factory=dict)
    samples: list[tuple[float, dict[tuple[str, int], float]]] = field(default_factory=list)
    peak_mib: dict[str, float] = field(default_factory=dict)
    raw_us: list[tuple[float, float]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `ended`."""
        while not self.ended.is_set():
            self.samples.append((time.time(), self._read()))
            self.ended.wait(SAMPLE_EVERY_S)

    def probe(self) -> None:
        """Until `ended`: what one bare signature costs while all else goes on."""
        sign = raw_signatures(PROBE_SIGNATURES)
        sign()
        while not self.ended.wait(SAMPLE_EVERY_S):
            begun_s = time.thread_time()
            sign()
            self.raw_us.append((time.time(), (time.thread_time() - begun_s) * 1e6 / PROBE_SIGNATURES))

    def signature_us(self, until_s: float) -> float:
        """The median of the probes up to `until_s`. Raises RuntimeFault when there is none."""
        probes = [raw_us for at_s, raw_us in self.raw_us if at_s <= until_s]
        if not probes:
            raise TOO_SHORT
        return statistics.median(probes)

    def cpu_seconds(self, until_s: float) -> dict[str, float]:
        """Per group, from the first sample to the first one after `until_s`."""
        first = self.samples[0][1]
        last: dict[tuple[str, int], float] = {}
        for at_s, cpu in self.samples:
            last |= cpu  # a process that has ended keeps its last reading
            if at_s >= until_s:
                break
        totals: dict[str, float] = {}
        for (group, pid), cpu_s in last.items():
            totals[group] = totals.get(group, 0.0) + cpu_s - first.get((group, pid), 0.0)
        return {group: round(total, 2) for group, total in sorted(totals.items())}

    def _read(self) -> dict[tuple[str, int], float]:
        cpu: dict[tuple[str, int], float] = {}
        memory: dict[str, list[Any]] = {}
        for group, process in self._processes():
            try:
                times = process.cpu_times()
                memory.setdefault(group, []).append(process.memory_info())
            except psutil.Error:
                continue
            cpu[group, process.pid] = times.user + times.system
        for group, processes in memory.items():
            self.peak_mib[group] = max(self.peak_mib.get(group, 0.0), _resident_mib(processes))
        return cpu

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        actors = {pid: _group(name) for name, pid in self.pids.items()}
        head = cluster.running(self.settings.data_dir)
        root = head.head.process() if head else None
        found = [(actors.get(p.pid, "ray"), p) for p in ([root, *root.children(recursive=True)] if root else [])]
        for name, server in record.load(self.settings.data_dir.resolve()).running().items():
            group = name.split("-")[0]
            found += [(group, process) for process in [server, *server.children(recursive=True)]]
        return found


def _resident_mib(processes: list[Any]) -> float:
    """Of a group; what they share (Postgres' buffers, Ray's object store) is counted once."""
    shared = [getattr(memory, "shared", 0) for memory in processes]
    private = sum(memory.rss for memory in processes) - sum(shared)
    return float(private + max(shared)) / MIB


def _group(name: str) -> str:
    return next((group for beginning, group in ACTORS.items() if name.startswith(beginning)), "ray")


def bench(
    settings: Settings, count: int, *, verify: bool, written: Callable[[Iterator[Row]], Iterator[Row]] = iter
) -> dict[str, Any]:
    """Drain `count` rows that become visible at one moment, when the pipeline is up and idle.

    `written` changes rows before they are inserted. Raises RuntimeFault when the drain did not end well.
    """
    migrations.migrate(settings.postgres)
    ensure_keys(settings)
    warm_kernel()
    source = settings.sources[0]
    meter = Meter(settings)
    begun: list[float] = []
    with psycopg.connect(connection_string(settings.postgres)) as connection:
        with progress(f"inserting {count:,} rows, not yet committed"):
            rows = written(Mix(SEED, source.chain_id).rows(count))
            while chunk := list(islice(rows, COPY_ROWS)):
                copy_rows(connection, source.table, chunk)

        def follow(fields: dict[str, Any]) -> None:
            meter.pids |= fields["pids"]
            if fields["ready"] and not begun:
                for task in (meter.run, meter.probe):
                    threading.Thread(target=task, daemon=True).start()
                connection.commit()
                begun.append(time.time())

        started_s = time.time()
        summary = submission.sign(settings, until_drained=True, verify=verify, expect=count, progress=follow)
    meter.ended.set()
    submission.check(summary)
    if not begun or not summary.get("last_signed_s"):
        raise TOO_SHORT
    return _report(meter, summary, begun[0], begun[0] - started_s)


def _report(meter: Meter, summary: dict[str, Any], begun_s: float, start_up_s: float) -> dict[str, Any]:
    seconds = summary["last_signed_s"] - begun_s
    cpu = meter.cpu_seconds(summary["last_signed_s"])
    total = sum(cpu.values())
    raw = meter.signature_us(summary["last_signed_s"])
    rows = summary["signed"] + summary["rejected"]
    return {
        "count": rows,
        "seconds": round(seconds, 2),
        "tx_per_s": round(rows / seconds),
        "cpu_seconds": cpu,
        "cpu_us_per_tx": round(total / rows * 1e6, 1),
        "raw_us": round(raw, 2),
        "signing_cpu_share": round(raw * summary["signed"] / 1e6 / total, 3),
        "peak_rss_mib": {group: round(mib) for group, mib in sorted(meter.peak_mib.items())},
        "start_up_seconds": round(start_up_s, 2),
        "cores": len(os.sched_getaffinity(0)),
    }
