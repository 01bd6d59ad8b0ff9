"""Carries out one fault after the other: signals to processes, faults on links, storms, full quotas and disks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psutil
from confluent_kafka import Consumer, KafkaException

from jobs.chaos import members
from jobs.chaos.ground import BROKERS, MEMBERS, Ground
from jobs.chaos.signing import Signing
from pipeline.adapters.kafka import Topics, client_config, consumer_group
from pipeline.errors import RuntimeFault
from pipeline.testing.chaos.fault import ACTORS, LINKED, QUOTA, Action, Fault
from pipeline.testing.chaos.link import Direction

SLOW_S: Final = 0.2
"""Delay of a slow link, for each piece."""

STORM_EVERY_S: Final = 1.0
STORM_S_MIN: Final = 4.0
STORM_S_MAX: Final = 15.0
MEMBER_STAYS_S: Final = 0.8
MEMBER_TIMEOUT_S: Final = 30.0
DAEMON_AWAY_S_MAX: Final = 5.0
PID_WAIT_S: Final = 60.0
LOOK_S: Final = 0.2
DISK_FOLDERS: Final = {"etcd": "etcd/0", "kafka": "kafka/0", "postgres": "postgres"}
OURS: Final = ("ray::", "jobs.sign")
"""One of these is on the command line of every process that the pipeline reports as its own."""


class SkippedError(Exception):
    """This fault is not possible on this machine, and why."""


class Nemesis:
    """Does everyday faults; two threads may use it."""

    def __init__(self, ground: Ground, signing: Signing, over: threading.Event) -> None:
        """`over` ends every fault early."""
        self._ground = ground
        self._signing = signing
        self._over = over
        self._turns = {what: threading.Lock() for what in (*LINKED, "daemon", "disk", "quota")}

    def carry_out(self, fault: Fault) -> None:
        """From its beginning to its end. Raises SkippedError, OncesignError, OSError."""
        action, part = fault.kind.action, fault.kind.part
        if part == "daemon":
            self._daemon(fault)
        elif action in (Action.KILL, Action.FREEZE):
            self._signal(fault)
        elif action is Action.STORM_OF_DEATHS:
            self._deaths(fault)
        elif action is Action.STORM_OF_MEMBERS:
            self._members(fault)
        elif fault.kind == QUOTA:
            self._quota(fault)
        elif action is Action.FILL:
            self._disk(fault, DISK_FOLDERS[part.removeprefix("disk of ")])
        else:
            self._link(fault)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _signal(self, fault: Fault) -> None:
        victims = self._processes(fault)
        if fault.kind.action is Action.KILL:
            for victim in victims:
                _kill(victim)
            return
        with members.frozen(victims):
            self._over.wait(fault.hold_s)

    def _processes(self, fault: Fault) -> list[psutil.Process]:
        """Of one victim; of Postgres sometimes the postmaster alone, else it and all it started."""
        part, pick = fault.kind.part, fault.pick
        if part in ACTORS:
            return [self._actor(part, pick)]
        if part == "postgres":
            postmaster = self._ground.server(part)
            alone = fault.kind.action is Action.KILL and pick % 2 == 0
            return [postmaster] if alone else [postmaster, *postmaster.children(recursive=True)]
        if part == "etcd leader":
            return [self._ground.server(members.leader(self._ground))]
        return [self._ground.server(f"{part}-{pick % (BROKERS if part == 'kafka' else MEMBERS)}")]

    def _actor(self, prefix: str, pick: int) -> psutil.Process:
        """One of the actors of this kind, waiting for one to be reported. Raises RuntimeFault."""
        deadline_s = time.monotonic() + PID_WAIT_S
        while time.monotonic() < deadline_s and not self._over.is_set():
            names = self._signing.names(prefix)
            found = _ours(self._signing.pid(names[pick % len(names)])) if names else None
            if found is not None:
                return found
            self._over.wait(LOOK_S)
        raise RuntimeFault(f"no {prefix} ran in {PID_WAIT_S:.0f} s.")

    def _daemon(self, fault: Fault) -> None:
        """The servers serve on; `oncesign up` gives them another one."""
        with self._turns["daemon"]:
            daemon = self._ground.record().daemon_process()
            if daemon is None:
                raise RuntimeFault("the daemon does not run.")
            if fault.kind.action is Action.FREEZE:
                with members.frozen([daemon]):
                    self._over.wait(fault.hold_s)
                return
            _kill(daemon)
            self._over.wait(min(fault.hold_s, DAEMON_AWAY_S_MAX))
            self._ground.stack.up()

    def _deaths(self, fault: Fault) -> None:
        killed: set[int] = set()
        for _ in self._rounds(fault):
            for name in self._signing.names("consumer"):
                pid = self._signing.pid(name)
                victim = _ours(pid)
                if victim is not None and pid not in killed:
                    _kill(victim)
                    killed.add(victim.pid)
        if not killed:
            raise RuntimeFault("no consumer was there to be killed.")

    def _members(self, fault: Fault) -> None:
        """A member that takes partitions away, commits nothing, and leaves; again and again."""
        thread = threading.Thread(target=self._visit, args=(fault,), name="visitor", daemon=True)
        thread.start()
        thread.join(STORM_S_MAX + MEMBER_TIMEOUT_S)  # a client's close() may hang; then it is left behind

    def _visit(self, fault: Fault) -> None:
        settings = self._ground.settings
        config = client_config(settings.kafka) | {
            "group.id": consumer_group(settings.deployment),
            "group.protocol": "consumer",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
        }
        for _ in self._rounds(fault):
            visitor = Consumer(config)
            try:
                visitor.subscribe([Topics(settings.kafka.topic_prefix).batches(self._ground.source.name)])
                visitor.poll(MEMBER_STAYS_S)
            except KafkaException:
                continue
            finally:
                visitor.close()

    def _rounds(self, fault: Fault) -> Iterator[int]:
        """One a second for as long as the storm lasts."""
        ends_s = time.monotonic() + min(max(fault.hold_s, STORM_S_MIN), STORM_S_MAX)
        number = 0
        while time.monotonic() < ends_s and not self._over.is_set():
            yield number
            number += 1
            self._over.wait(STORM_EVERY_S)

    # ── links ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _link(self, fault: Fault) -> None:
        """On one link of the part, or on all of them, whichever `pick` says."""
        links, part = self._ground.links, fault.kind.part
        names = links.named(part)
        chosen = fault.pick % (len(names) + 1)
        names = [names[chosen]] if chosen < len(names) else names
        deeds: dict[Action, Callable[[], None]] = {
            Action.HOLD: lambda: links.pause(names),
            Action.HOLD_THERE: lambda: links.pause(names, Direction.THERE),
            Action.HOLD_BACK: lambda: links.pause(names, Direction.BACK),
            Action.CUT: lambda: links.cut(names),
            Action.REFUSE: lambda: links.refuse(names),
            Action.SLOW: lambda: links.delay(names, SLOW_S),
        }
        with self._turns[part]:
            try:
                deeds[fault.kind.action]()
                if fault.kind.action is not Action.CUT:  # over at once
                    self._over.wait(fault.hold_s)
            finally:
                links.heal(names)

    # ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _quota(self, fault: Fault) -> None:
        with self._turns["quota"]:
            try:
                if not members.fill(self._ground):
                    raise RuntimeFault("etcd took all that it was given; its quota was not reached.")
                self._over.wait(fault.hold_s)
            finally:
                members.empty(self._ground)

    def _disk(self, fault: Fault, folder: str) -> None:
        disks = self._ground.disks
        if not disks.available:
            raise SkippedError(disks.why_not)
        with self._turns["disk"], _full(self._ground, folder):
            self._over.wait(fault.hold_s)


@contextmanager
def _full(ground: Ground, folder: str) -> Iterator[None]:
    ground.disks.fill(folder)
    try:
        yield
    finally:
        ground.disks.free(folder)


def _ours(pid: int | None) -> psutil.Process | None:
    """The process, if it runs and is one of the pipeline's: the number may belong to another one by now."""
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        said = " ".join(process.cmdline())
    except psutil.Error:
        return None
    return process if any(mark in said for mark in OURS) else None


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
