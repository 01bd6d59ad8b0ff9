"""One run of chaos: load, faults in two lanes, quiet, proof."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

import orjson
import psycopg
from psycopg import sql

from jobs.chaos.evidence import breaches
from jobs.chaos.ground import Ground, ground
from jobs.chaos.load import Load
from jobs.chaos.nemesis import Nemesis, SkippedError
from jobs.chaos.operator import Operator
from jobs.chaos.signing import Signing, oncesign
from jobs.chaos.watch import Watch
from jobs.desk import etcd_view
from jobs.keys import create_keys
from jobs.output import say
from jobs.signing import warm_kernel
from pipeline.adapters.postgres import connection_string
from pipeline.assignment.records import KeyState
from pipeline.errors import OncesignError, RuntimeFault
from pipeline.settings import Settings
from pipeline.testing.chaos.fault import Fault, Kind
from pipeline.testing.chaos.plan import plan
from pipeline.testing.chaos.report import Report

KEYS: Final = 24
LANES: Final = 2
START_TIMEOUT_S: Final = 240.0
SETTLE_TIMEOUT_S: Final = 180.0
"""I9: when faults and load have stopped, all is settled within this time."""

PATIENCE_S: Final = 20.0
PATIENCE_ALONE_S: Final = 100.0
PATIENCE_BEHIND_S: Final = 2.0
"""So long a lane waits for the recovery of its fault before it begins the next: one that stands alone, one that is
behind its plan."""

BEHIND_S: Final = 15.0

LOOK_S: Final = 0.5
VERIFY_TIMEOUT_S: Final = 1_200.0
VIOLATION: Final = 4


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for."""

    minutes: float
    seed: int
    faults: int
    rate: int
    kinds: Collection[Kind]
    keep: bool = False


def run(settings: Settings, wish: Wish) -> Report:
    """All of it. Raises RuntimeFault when the pipeline does not even start, and what `ground` raises."""
    warm_kernel()
    with ground(settings, keep=wish.keep) as made:
        asyncio.run(create_keys(made.direct, KEYS))
        return Run(made, wish).carry_out()


class Run:
    """The threads of one run and what they found."""

    def __init__(self, made: Ground, wish: Wish) -> None:
        self._ground = made
        self._wish = wish
        self._over = threading.Event()
        self._signing = Signing(made.data_dir / "logs" / "sign.log")
        self._load = Load(made.direct.postgres, made.source, wish.seed, wish.rate)
        self._watch = Watch(made.direct.postgres, made.source.name, self._load)
        self._nemesis = Nemesis(made, self._signing, self._over)
        self._operator = Operator(made, self._signing, self._over)
        self._door = threading.Lock()
        self._idle = threading.Condition()
        self._busy = 0
        self.report = Report(wish.seed, wish.minutes)

    def carry_out(self) -> Report:
        """Until all is proved. Raises RuntimeFault."""
        report = self.report
        try:
            self._load.start()
            self._signing.start()
            self._await_first()
            self._watch.start()
            seconds = self._storm()
            self._load.stop()
            settled_s = self._settle()
            self._note_halts()
            self._watch.close()
            report.faults = self._watch.ended()
            self._signing.stop()
            report.violations += self._operator.findings
            report.violations += self._prove()
        finally:
            self._over.set()
            self._load.stop()
            self._signing.close()
        report.figures |= {
            "planned": self._wish.faults,
            "seconds": round(seconds, 1),
            "settled_s": settled_s,
            "sign_ended": list(self._signing.ends),
            "carried_bytes": self._ground.links.carried_bytes(),
        }
        return report

    # ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _storm(self) -> float:
        """Every fault of the plan, or as many as fit; how long it took."""
        started_s = time.monotonic()
        faults: SimpleQueue[Fault] = SimpleQueue()
        for fault in plan(self._wish.seed, self._wish.faults, self._wish.minutes * 60, self._wish.kinds):
            faults.put(fault)
        lanes = [
            threading.Thread(target=self._lane, args=(faults, started_s), name=f"lane-{k}", daemon=True)
            for k in range(LANES)
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        return time.monotonic() - started_s

    def _lane(self, faults: SimpleQueue[Fault], started_s: float) -> None:
        ends_s = started_s + self._wish.minutes * 60
        while (fault := self._next(faults, started_s, ends_s)) is not None:
            self._one(fault, behind=time.monotonic() - started_s > fault.start_s + BEHIND_S)
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    def _next(self, faults: SimpleQueue[Fault], started_s: float, ends_s: float) -> Fault | None:
        """The next everyday fault; the ones before it that stand alone are over by then. None at the end."""
        while True:
            with self._door:  # faults begin in the order of the plan
                if faults.empty() or time.monotonic() > ends_s:
                    return None
                fault = faults.get()
                self._over.wait(max(0.0, started_s + fault.start_s - time.monotonic()))
                with self._idle:
                    if not fault.kind.alone:
                        self._busy += 1
                        return fault
                    self._idle.wait_for(lambda: self._busy == 0)
                self._one(fault, behind=False)

    def _one(self, fault: Fault, *, behind: bool) -> None:
        alone = fault.kind.alone
        self._watch.began()
        if alone:
            self._note_halts()  # what it will halt itself, on purpose, is another matter
        say(f"{time.strftime('%H:%M:%S')} {fault}")
        done = self._carried_out(fault)
        case = self._watch.over(str(fault.kind), done=done)
        if alone:
            self._signing.start()  # whatever became of the repair
        if done:
            patience_s = PATIENCE_ALONE_S if alone else PATIENCE_BEHIND_S if behind else PATIENCE_S
            self._watch.wait(case, case.ended_s + patience_s)

    def _carried_out(self, fault: Fault) -> bool:
        try:
            (self._operator if fault.kind.alone else self._nemesis).carry_out(fault)
        except SkippedError as why:
            self.report.skipped[str(fault.kind)] = str(why)
        except Exception as error:  # noqa: BLE001 - whatever our own tool stumbles over is told, and the run goes on
            self.report.failed.append(f"{fault}: {type(error).__name__}: {error}")
            say(f"  {fault} could not be carried out: {error}")
        else:
            return True
        return False

    def _note_halts(self) -> None:
        for stream, why in sorted(self._signing.halts.items()):
            self.report.violations.append(f"I9: stream {stream} was halted, and nothing was lost: {why}")

    # ── quiet ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _await_first(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self._left() is None or self._rows("outcomes") == 0:
            if time.monotonic() > deadline_s:
                raise RuntimeFault(f"nothing was signed in {START_TIMEOUT_S:.0f} s; see {self._ground.data_dir}/logs.")
            time.sleep(LOOK_S)

    def _settle(self) -> float | None:
        """How long it took until nothing was left; None, and a violation, when it took too long."""
        started_s = time.monotonic()
        while (waited_s := time.monotonic() - started_s) < SETTLE_TIMEOUT_S:
            if self._left() == "":
                return round(waited_s, 1)
            time.sleep(LOOK_S)
        halted = "".join(f"; {stream} is halted: {why}" for stream, why in sorted(self._signing.halts.items()))
        self.report.violations.append(
            f"I9: {SETTLE_TIMEOUT_S:.0f} s after the last fault not all is settled: {self._left()}{halted}"
        )
        return None

    def _left(self) -> str | None:
        """What is not settled yet; None while that cannot be seen."""
        try:
            rows = self._rows(self._ground.source.table) - self._rows("outcomes")
            keys, assignments = asyncio.run(_held(self._ground.direct))
        except (psycopg.Error, OncesignError):
            return None
        return f"{rows} rows, {assignments} assignments, {keys} locked keys" if rows or assignments or keys else ""

    def _rows(self, table: str) -> int:
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
        with psycopg.connect(connection_string(self._ground.direct.postgres)) as connection:
            row = connection.execute(query).fetchone()
        return int(row[0]) if row else 0

    # ── proof ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _prove(self) -> list[str]:
        """`oncesign verify`, then the invariants over everything there is."""
        say("verifying")
        found, counts = verified()
        self.report.figures |= counts | {"rows": self._rows(self._ground.source.table)}
        return [*_unlisted(found, counts), *asyncio.run(breaches(self._ground.direct, found))]


def verified() -> tuple[list[str], dict[str, int]]:
    """What `oncesign verify` says: violations, and the numbers of rows. Raises RuntimeFault when it cannot be run."""
    done = oncesign("verify", "--json", timeout_s=VERIFY_TIMEOUT_S)
    if done.returncode not in (0, VIOLATION) or not done.stdout.strip():
        raise RuntimeFault(f"`oncesign verify` ended with {done.returncode}: {done.stderr[-500:]}")
    said = orjson.loads(done.stdout.strip().splitlines()[-1])
    counts = {name: int(said[name]) for name in ("signed", "rejected")}
    found = [str(violation) for violation in said["found"]]
    if bool(found) != (done.returncode == VIOLATION):
        found.append(f"`oncesign verify` ended with {done.returncode} and named {len(found)} violations")
    return found, counts


def _unlisted(found: list[str], counts: dict[str, int]) -> list[str]:
    """A run in which nothing was signed or rejected has proved nothing."""
    if not found and not (counts["signed"] and counts["rejected"]):
        return [f"I3: {counts['signed']} rows were signed and {counts['rejected']} rejected: that proves nothing"]
    return []


async def _held(settings: Settings) -> tuple[int, int]:
    """Locked keys and assignments in etcd."""
    async with etcd_view(settings) as view:
        return view.keys_in(KeyState.LOCKED), len(view.assignments)


def tell(report: Report) -> None:
    """What the table does not say, for the person at the terminal."""
    for kind, why in report.skipped.items():
        say(f"skipped {kind}: {why}")
    for failure in report.failed:
        say(f"not carried out: {failure}")
    for name, value in report.figures.items():
        sys.stderr.write(f"{name}: {value}\n")
