"""What an operator does to etcd's members: look at them, fill and empty the quota, take and restore a backup."""

from __future__ import annotations

import base64
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import orjson
import psutil

from jobs.chaos.ground import MEMBERS, Ground
from pipeline.errors import RuntimeFault

TIMEOUT_S: Final = 10.0
REPAIR_TIMEOUT_S: Final = 60.0
SERVE_TIMEOUT_S: Final = 60.0
LOOK_S: Final = 0.3
FILLER: Final = b"/filler/"
FILLER_BYTES: Final = 1024**2
FILLERS_MAX: Final = 96
"""More than fit the quota."""

NO_SPACE: Final = "space exceeded"
ALARM_DEACTIVATE: Final = "DEACTIVATE"


class EtcdRefusedError(Exception):
    """etcd answered, and the answer is no; or it did not answer."""


def leader(ground: Ground) -> str:
    """The name of the member that leads. Raises RuntimeFault when none says so."""
    for index, url in enumerate(ground.etcd_urls()):
        try:
            status = ask(url, "maintenance/status", {})
        except EtcdRefusedError:
            continue
        if status.get("leader") == status["header"]["member_id"]:
            return f"etcd-{index}"
    raise RuntimeFault("no member of etcd leads now.")


def fill(ground: Ground) -> bool:
    """Put so much into etcd that it refuses more; whether it does."""
    value = base64.b64encode(bytes(FILLER_BYTES)).decode()
    for number in range(FILLERS_MAX):
        key = base64.b64encode(FILLER + str(number).encode()).decode()
        try:
            ask_any(ground, "kv/put", {"key": key, "value": value})
        except EtcdRefusedError as error:
            if NO_SPACE in str(error):
                return True
    return False


def empty(ground: Ground) -> None:
    """What etcd's documentation says to do: delete, compact, defragment each member, disarm. Raises RuntimeFault."""
    deadline_s = time.monotonic() + REPAIR_TIMEOUT_S
    end = FILLER[:-1] + bytes([FILLER[-1] + 1])
    bounds = {"key": base64.b64encode(FILLER).decode(), "range_end": base64.b64encode(end).decode()}
    while True:
        try:
            deleted = ask_any(ground, "kv/deleterange", bounds)
            ask_any(ground, "kv/compaction", {"revision": deleted["header"]["revision"], "physical": True})
            for url in ground.etcd_urls():
                ask(url, "maintenance/defragment", {})
            for alarm in ask_any(ground, "maintenance/alarm", {"action": "GET"}).get("alarms", []):
                ask_any(ground, "maintenance/alarm", alarm | {"action": ALARM_DEACTIVATE})
        except EtcdRefusedError as error:
            if time.monotonic() > deadline_s:
                raise RuntimeFault(f"etcd could not be given room again: {error}") from error
            time.sleep(LOOK_S)
        else:
            return


def back_up(ground: Ground) -> None:
    """Copy the data directories of all members as they are at one moment."""
    with frozen([ground.server(f"etcd-{index}") for index in range(MEMBERS)]):
        shutil.rmtree(ground.data_dir / "backup", ignore_errors=True)
        for index in range(MEMBERS):
            shutil.copytree(_folder(ground, index), ground.data_dir / "backup" / str(index))


def restore(ground: Ground) -> None:
    """End all members, put the copies back, and wait until they serve. Raises RuntimeFault."""
    daemon = ground.record().daemon_process()
    with frozen([daemon] if daemon is not None else []):  # it would start them again too early
        members = [ground.record().running().get(f"etcd-{index}") for index in range(MEMBERS)]
        alive = [member for member in members if member is not None]
        for member in alive:
            member.kill()
        psutil.wait_procs(alive, timeout=TIMEOUT_S)
        for index in range(MEMBERS):
            _replace(ground, index)
    deadline_s = time.monotonic() + SERVE_TIMEOUT_S
    while not serves(ground):
        if time.monotonic() > deadline_s:
            raise RuntimeFault("etcd does not serve after its backup was restored.")
        time.sleep(LOOK_S)


def serves(ground: Ground) -> bool:
    """Whether every member answers a read that needs a majority."""
    try:
        for url in ground.etcd_urls():
            ask(url, "kv/range", {"key": base64.b64encode(b"/").decode()})
    except EtcdRefusedError:
        return False
    return True


@contextmanager
def frozen(processes: list[psutil.Process]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT whatever happens."""
    for process in processes:
        _send(process, "suspend")
    try:
        yield
    finally:
        for process in processes:
            _send(process, "resume")


def ask_any(ground: Ground, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The first member that answers. Raises EtcdRefusedError, at once when the answer is that there is no space."""
    last: EtcdRefusedError | None = None
    for url in ground.etcd_urls():
        try:
            return ask(url, path, body)
        except EtcdRefusedError as error:
            last = error
            if NO_SPACE in str(error):
                break
    raise last or EtcdRefusedError("there is no member")


def ask(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request to the JSON gateway of one member. Raises EtcdRefusedError."""
    request = urllib.request.Request(f"{url}/v3/{path}", orjson.dumps(body))  # noqa: S310 - our own http address
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
            answer: dict[str, Any] = orjson.loads(response.read())
    except urllib.error.HTTPError as error:
        raise EtcdRefusedError(error.read().decode(errors="replace")) from error
    except (OSError, http.client.HTTPException, orjson.JSONDecodeError) as error:
        raise EtcdRefusedError(str(error)) from error
    return answer


def _send(process: psutil.Process, what: str) -> None:
    try:
        getattr(process, what)()
    except psutil.NoSuchProcess:
        return


def _folder(ground: Ground, index: int) -> Any:
    return ground.data_dir / "etcd" / str(index)


def _replace(ground: Ground, index: int) -> None:
    """The content, not the folder: it may be a disk of its own."""
    folder = _folder(ground, index)
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    shutil.copytree(ground.data_dir / "backup" / str(index), folder, dirs_exist_ok=True)
