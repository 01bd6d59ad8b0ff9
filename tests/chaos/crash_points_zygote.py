"""A process that has loaded everything once and is forked for each life: a life starts in milliseconds, not seconds.

Before a fork there is no thread, no client and no event loop, so that nothing of them is half copied.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from pipeline.adapters.postgres_source import driver
from pipeline.effects import Moment
from pipeline.ethereum import kernel
from pipeline.testing.simulation.crashes import Boundary
from tests.chaos.crash_points_life import SETTLE_MAX_S, STOP_MAX_S, Place, Point, Record, begin

LIFE_MAX_S: Final = SETTLE_MAX_S + STOP_MAX_S + 20.0
LOOK_S: Final = 0.02
START_MAX_S: Final = 120.0
ROOT: Final = Path(__file__).resolve().parents[2]
SINGLE: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""Environment of the zygote, in which libraries would start threads when they are loaded."""


def serve() -> None:
    """Fork a life for each line of stdin, say on stdout when one has ended; end with stdin."""
    kernel.warm()
    driver()
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise SystemExit(f"the zygote has {threads} threads; a fork would copy one of them")
    _say({"ready": True})
    lives: dict[int, tuple[int, float]] = {}
    rest = b""
    while True:
        if select.select([0], [], [], LOOK_S)[0]:
            read = os.read(0, 65536)
            if not read:
                break
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                lives[_fork(asked)] = asked["id"], time.monotonic() + LIFE_MAX_S
        _reap(lives)
    for pid in lives:
        os.kill(pid, signal.SIGKILL)


def _fork(asked: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        point = asked["point"] and Point(Boundary(*asked["point"][:3]), Moment(asked["point"][3]), asked["point"][4])
        begin(
            Place.from_json(asked["place"]), point, Path(asked["record"]), Path(asked["log"]), repairs=asked["repairs"]
        )
    return pid


def _reap(lives: dict[int, tuple[int, float]]) -> None:
    for pid, (number, deadline_s) in list(lives.items()):
        if time.monotonic() > deadline_s:
            os.kill(pid, signal.SIGKILL)
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if ended:
            del lives[pid]
            _say({"ended": number})


def _say(what: dict[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


class Zygote:
    """The other end of it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._ended: dict[int, Future[None]] = {}
        self._ready: Future[None] = Future()
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.crash_points_zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | SINGLE,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def live(self, place: Place, point: Point | None, name: str, *, repair: bool = False) -> Record:
        """One life of the pipeline, or one `oncesign recover`, from its birth to its end."""
        self._ready.result(START_MAX_S)
        path = place.directory / f"{name}.json"
        asked: dict[str, Any] = {"place": place.to_json(), "record": str(path), "log": str(path.with_suffix(".log"))}
        asked["repairs"] = repair
        asked["point"] = point and [*point.boundary, point.moment, point.nth]
        with self._turn:
            self._number += 1
            ended = self._ended[self._number] = Future()
            self._write(asked | {"id": self._number})
        ended.result(LIFE_MAX_S * 2)
        return Record.load(path)

    def close(self) -> None:
        """End it, and every life that it still has."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(START_MAX_S)

    def _write(self, asked: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                what = json.loads(line)
                (self._ready if "ready" in what else self._ended.pop(what["ended"])).set_result(None)
        for waiting in [self._ready, *self._ended.values()]:
            if not waiting.done():
                waiting.set_exception(ChildProcessError("the zygote has ended"))


if __name__ == "__main__":
    serve()
