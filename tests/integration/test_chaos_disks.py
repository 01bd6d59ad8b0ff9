"""A small disk of chaos is full when it is told to be, and only for those in its namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration]

SKIPPED = 77
FILLED = f"""
import sys
from pathlib import Path
from jobs.chaos.disks import Disks, enter_namespace
enter_namespace()
disks = Disks(Path(sys.argv[1]))
if not disks.available:
    sys.stderr.write(disks.why_not)
    sys.exit({SKIPPED})
file = Path(sys.argv[1]) / "etcd/0/file"
file.write_bytes(bytes(100_000))
disks.fill("etcd/0")
try:
    file.with_name("another").write_bytes(bytes(1_000_000))
except OSError as error:
    assert error.errno == 28
else:
    raise AssertionError("it was not full")
disks.free("etcd/0")
file.with_name("another").write_bytes(bytes(1_000_000))
assert file.read_bytes() == bytes(100_000)
moved = Path(sys.argv[1]) / "postgres"
moved.mkdir(mode=0o700)
(moved / "kept").write_text("seven")
disks.move("postgres")
assert (moved / "kept").read_text() == "seven"
assert moved.is_mount()
disks.give_back()
"""
THREADED = """
import threading
from jobs.chaos import disks
from pathlib import Path
done = threading.Event()
threading.Thread(target=done.wait).start()
disks.enter_namespace()
made = disks.Disks(Path("nowhere"))
assert not made.available
assert "2 threads" in made.why_not
done.set()
"""


def test_a_disk_is_full_until_it_is_freed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("etcd/0/*"))  # it was a mount of that process


def test_without_a_namespace_the_reason_is_kept() -> None:
    subprocess.run([sys.executable, "-c", THREADED], timeout=60, check=True)
