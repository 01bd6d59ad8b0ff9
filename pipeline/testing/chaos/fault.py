"""What can go wrong in a run of chaos: every kind of fault by its name, and one fault of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Action(StrEnum):
    """What is done."""

    KILL = "kill"  #: SIGKILL
    FREEZE = "freeze"  #: SIGSTOP, and SIGCONT later
    HOLD = "hold"  #: a link carries nothing, in both directions
    HOLD_THERE = "hold requests to"
    HOLD_BACK = "hold answers of"
    CUT = "cut"  #: a link resets its connections, new ones are accepted
    REFUSE = "refuse"  #: a link resets its connections and accepts none
    SLOW = "slow"
    STORM_OF_DEATHS = "storm: kill"
    STORM_OF_MEMBERS = "storm: join and leave"
    FILL = "fill"
    RESTORE = "restore"
    DELETE = "delete"


AT_ONCE: Final = (Action.KILL, Action.CUT)
ACTORS: Final = ("reader", "consumer", "signer", "key-manager", "tx-verifier", "supervisor", "driver")
SERVERS: Final = ("etcd", "etcd leader", "kafka", "postgres")
LINKED: Final = ("etcd", "kafka", "postgres")
ON_LINKS: Final = (
    Action.HOLD,
    Action.HOLD_THERE,
    Action.HOLD_BACK,
    Action.CUT,
    Action.REFUSE,
    Action.SLOW,
)
DISKS: Final = ("etcd", "kafka", "postgres")


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """A kind of fault; the report has a line for each."""

    action: Action
    part: str
    alone: bool = False  #: nothing else is done meanwhile: an operator is at work

    def __str__(self) -> str:
        return f"{self.action} {self.part}"


QUOTA: Final = Kind(Action.FILL, "etcd's quota")
TOPIC: Final = Kind(Action.DELETE, "topic of batches", alone=True)
BACKUP: Final = Kind(Action.RESTORE, "etcd from a backup", alone=True)
HEAD: Final = Kind(Action.KILL, "ray head", alone=True)

EVERYDAY: Final = (
    *(Kind(action, part) for action in (Action.KILL, Action.FREEZE) for part in (*ACTORS, *SERVERS)),
    *(Kind(action, "daemon") for action in (Action.KILL, Action.FREEZE)),
    *(Kind(action, part) for part in LINKED for action in ON_LINKS),
    Kind(Action.STORM_OF_DEATHS, "consumers"),
    Kind(Action.STORM_OF_MEMBERS, "consumers"),
    QUOTA,
    *(Kind(Action.FILL, f"disk of {part}") for part in DISKS),
)
"""Over by themselves, or by what an operator's machines do: nobody has to repair anything."""

RARE: Final = (HEAD, TOPIC, BACKUP)
"""Long ones."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a plan."""

    number: int  #: from 1
    kind: Kind
    start_s: float  #: not before, after the first fault may start
    hold_s: float  #: how long it lasts, where that can be chosen
    pick: int  #: which of several: of members, brokers, links, workers

    def __str__(self) -> str:
        lasts = f" for {self.hold_s:.1f} s" if self.kind.action not in AT_ONCE else ""
        return f"fault {self.number}: {self.kind}{lasts}"
