"""What a key manager works with is closed with it, also when it never came to lead."""

from __future__ import annotations

import pytest

from actors.composition import managing
from pipeline.errors import NotLeader
from pipeline.settings import Settings

CLOSED = ["ledger closed", "store closed"]


class Client:
    def __init__(self, name: str, events: list[str]) -> None:
        self._name, self._events = name, events

    async def close(self) -> None:
        self._events.append(f"{self._name} closed")


class Manager:
    def __init__(self, events: list[str], refusal: NotLeader | None) -> None:
        self._events, self._refusal = events, refusal

    async def start(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        self._events.append("leads")

    async def stop(self) -> None:
        self._events.append("leads no more")


def events_of(monkeypatch: pytest.MonkeyPatch, refusal: NotLeader | None = None) -> list[str]:
    """What happens to a manager and its clients, from now on."""
    events: list[str] = []
    monkeypatch.setattr(managing, "EtcdStore", lambda _: Client("store", events))
    monkeypatch.setattr(managing, "PostgresLedger", lambda _: Client("ledger", events))
    monkeypatch.setattr(managing, "KeyManager", lambda *_: Manager(events, refusal))
    return events


async def test_it_resigns_before_its_clients_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    events = events_of(monkeypatch)
    async with managing.key_manager(Settings(), lambda: None):
        assert events == ["leads"]
    assert events == ["leads", "leads no more", *CLOSED]


async def test_one_that_may_not_lead_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    events = events_of(monkeypatch, NotLeader("another leads."))
    with pytest.raises(NotLeader):
        async with managing.key_manager(Settings(), lambda: None):
            pytest.fail("it leads")
    assert events == CLOSED
