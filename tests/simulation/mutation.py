"""Edits of the code under test, made in a process that has it loaded already.

A function is changed by giving it other code: everybody who imported it has it at once, and a mutant costs no second
import of numba and Arrow. So an edit must stay inside functions. One whose text is gone, or is there twice, is refused:
a mutant that changes nothing would look like one that nobody kills.
"""

from __future__ import annotations

import importlib
import inspect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from pipeline.testing.simulation.crashes import Plan

CLASS_BODY = "__qualname__"
"""What only the body of a class assigns."""


class Stale(Exception):
    """The text that a mutant changes is not there once, or the change does not stay inside functions."""


class Edit(NamedTuple):
    """One piece of source text, and what takes its place."""

    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """The real code without one guard."""

    name: str
    without: str  #: what it takes away, in a sentence
    edits: tuple[Edit, ...]
    twin: bool = False  #: the guard is a server's or a client library's, and the twin plays it
    calm: bool = False  #: the guard is at work even when nothing goes wrong, so that a calm course may break
    deed: str = ""  #: of the nemesis; it comes in every course, for without it the guard has hardly anything to do
    plans: tuple[Plan, ...] = ()  #: crash points that meet nowhere else
    breaks: tuple[str, ...] = ()  #: of a second guard, taken away with the first: what the second alone prevents
    real: str = ""  #: of a twin's rule: the test that would catch the same edit in the adapter


def apply(mutant: Mutant) -> list[str]:
    """Change this process for good; the functions that are changed. Raises Stale."""
    by_module: dict[str, list[Edit]] = defaultdict(list)
    for edit in mutant.edits:
        by_module[edit.module].append(edit)
    changed = []
    for name, edits in by_module.items():
        module = importlib.import_module(name)
        found = list(_exchange(module, edits))
        if not found:
            raise Stale(f"{mutant.name}: it changes no function of {name}")
        changed += found
    return changed


def _exchange(module: ModuleType, edits: list[Edit]) -> Iterator[str]:
    path = Path(module.__file__ or "")
    source = path.read_text(encoding="utf-8")
    mutated = source
    for edit in edits:
        if (times := source.count(edit.old)) != 1:
            raise Stale(f"{edit.module} has {edit.old!r} {times} times")
        mutated = mutated.replace(edit.old, edit.new)
    try:
        before, after = (_functions(compile(text, str(path), "exec")) for text in (source, mutated))
    except SyntaxError as error:
        raise Stale(f"{module.__name__}: {error}") from error
    if before.keys() != after.keys():
        raise Stale(f"{module.__name__}: functions come or go: {sorted(before.keys() ^ after.keys())}")
    for qualname, code in after.items():
        if _plain(code) != _plain(before[qualname]):
            function = _live(module, qualname)
            if _plain(function.__code__) != _plain(before[qualname]):
                raise Stale(f"{module.__name__}.{qualname} is not what is loaded; the file has changed since")
            function.__code__ = code
            yield f"{module.__name__}.{qualname}"


def _functions(code: CodeType) -> dict[str, CodeType]:
    """By qualified name: those of a module and of its classes, without those inside functions."""
    found: dict[str, CodeType] = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if CLASS_BODY in constant.co_names:
                found |= _functions(constant)
            else:
                found[constant.co_qualname] = constant
    return found


def _live(module: ModuleType, qualname: str) -> FunctionType:
    """The function object behind static methods, properties and wrappers. Raises Stale for one that is compiled."""
    found: Any = module
    for name in qualname.split("."):
        found = inspect.getattr_static(found, name)
    found = getattr(found, "fget", None) or getattr(found, "__func__", found)
    found = inspect.unwrap(found)
    if not isinstance(found, FunctionType):
        raise Stale(f"{module.__name__}.{qualname} is a {type(found).__name__}, whose code cannot be exchanged")
    return found


def _plain(code: CodeType) -> tuple[Any, ...]:
    """What a function does, without where it stands."""
    constants = tuple(_plain(c) if isinstance(c, CodeType) else (type(c), repr(c)) for c in code.co_consts)
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags
