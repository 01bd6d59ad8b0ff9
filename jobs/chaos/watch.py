"""How long after a fault rows of every stream are settled again."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

import psycopg

from jobs.chaos.load import Load
from pipeline.adapters.postgres import connection_string
from pipeline.settings import PostgresSettings
from pipeline.testing.chaos.report import Ended

LOOK_S: Final = 0.25
RECONNECT_S: Final = 0.5
JOIN_S: Final = 30.0
SETTLED: Final = "SELECT count(*) FROM outcomes WHERE source = %s AND tx_id = ANY(%s)"


@dataclass(slots=True)
class Case:
    """A fault, from its end to its recovery."""

    kind: str
    ended_s: float
    disturbed: bool = False  #: another fault was there, or came, before it had recovered
    canaries: tuple[int, ...] | None = None
    recovered_s: float | None = None

    def ended(self) -> Ended:
        """For the report."""
        recovery_s = None if self.recovered_s is None else self.recovered_s - self.ended_s
        return Ended(self.kind, recovery_s, disturbed=self.disturbed)


class Watch:
    """Canaries: the first rows in every shard that were committed after the end of a fault."""

    def __init__(self, postgres: PostgresSettings, source: str, load: Load) -> None:
        self._postgres = postgres
        self._source = source
        self._load = load
        self._changed = threading.Condition()
        self._active = 0
        self._cases: list[Case] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(JOIN_S)

    def began(self) -> None:
        """A fault begins: whatever has not recovered is disturbed."""
        with self._changed:
            self._active += 1
            for case in self._cases:
                case.disturbed = case.disturbed or case.recovered_s is None

    def over(self, kind: str, *, done: bool) -> Case:
        """A fault has ended, `done` or not carried out at all."""
        with self._changed:
            self._active -= 1
            case = Case(kind, time.monotonic(), disturbed=self._active > 0)
            if done:
                self._cases.append(case)
            return case

    def wait(self, case: Case, until_s: float) -> bool:
        """Whether it recovers before that moment."""
        with self._changed:
            return self._changed.wait_for(
                lambda: case.recovered_s is not None, timeout=max(0.0, until_s - time.monotonic())
            )

    def ended(self) -> list[Ended]:
        """All of them."""
        with self._changed:
            return [case.ended() for case in self._cases]

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                with psycopg.connect(connection_string(self._postgres), autocommit=True) as connection:
                    while not self._stop.wait(LOOK_S):
                        for case in self._waiting():
                            self._look(connection, case)
            except psycopg.Error:
                self._stop.wait(RECONNECT_S)

    def _waiting(self) -> list[Case]:
        with self._changed:
            return [case for case in self._cases if case.recovered_s is None]

    def _look(self, connection: psycopg.Connection[tuple[object, ...]], case: Case) -> None:
        case.canaries = case.canaries or self._load.first_after(case.ended_s)
        if case.canaries is None:
            return
        row = connection.execute(SETTLED, [self._source, list(case.canaries)]).fetchone()
        if row is not None and row[0] == len(case.canaries):
            with self._changed:
                case.recovered_s = time.monotonic()
                self._changed.notify_all()
