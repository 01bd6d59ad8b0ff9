"""A policy as its owner writes it: TOML, read strictly.

    recipients = ["0x…", …]         the only recipients
    creations = false               no contract creations
    value_max_wei = "1000000000000000000"     per transaction
    fee_cap_max_wei = 200_000_000_000         per gas
    gas_limit_max = 500_000
    selectors = ["0xa9059cbb"]      the only first four bytes that data may have, when there is data
    budget_wei = "50000000000000000000"       of all rows together, in each
    budget_period_s = 86_400                  so many seconds

Every line may be left out: then that is not bounded. Numbers are TOML integers, or decimal text where they are larger.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

from pipeline.errors import InputFileError
from pipeline.ethereum.policy import ADDRESS_BYTES, SELECTOR_BYTES, Policy

HEX: Final = re.compile(r"0x([0-9a-fA-F]{2})+")
U256: Final = 2**256 - 1
U64: Final = 2**64 - 1
LISTED_MAX: Final = 100_000
"""Recipients, or selectors."""

PERIOD_MIN_S: Final = 10
PERIOD_MAX_S: Final = 366 * 86_400
TEXT_MAX_BYTES: Final = 8 * 1024 * 1024


def read_policy(name: str, text: str, version: int) -> Policy:
    """Raises InputFileError with the line: `name:line: what`."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"at line (\d+)", str(error))
        line = int(place[1]) if place else text.count("\n") + 1
        raise InputFileError(f"{name}:{line}: {str(error).split(' (at ')[0]}.", hint=HINT) from None
    values: dict[str, Any] = {"version": version}
    for key, value in found.items():
        if key not in KEYS:
            raise _wrong(name, text, key, f"is none of {', '.join(KEYS)}")
        field, parse = KEYS[key]
        try:
            values[field] = parse(value)
        except ValueError as error:
            raise _wrong(name, text, key, str(error)) from None
    if ("budget" in values) != ("period_s" in values):
        raise _wrong(name, text, "budget", "and budget_period_s belong together")
    return Policy(**values)


HINT: Final = "See docs/custody.md, 'Policies'."


def _wrong(name: str, text: str, key: str, why: str) -> InputFileError:
    lines = text.splitlines()
    at = next((n for n, line in enumerate(lines, 1) if re.match(rf"\s*\[*\s*[\"']?{re.escape(key)}\b", line)), 1)
    return InputFileError(f"{name}:{at}: {key} {why}.", hint=HINT)


def _hexes(value: Any, width: int) -> frozenset[bytes]:
    if not isinstance(value, list) or len(value) > LISTED_MAX:
        raise ValueError(f"is not a list of at most {LISTED_MAX:,}")
    for item in value:
        if not isinstance(item, str) or not HEX.fullmatch(item) or len(item) != 2 + 2 * width:
            raise ValueError(f"lists {str(item)[:48]!r}, which is not 0x and {2 * width} hex digits")
    return frozenset(bytes.fromhex(item[2:]) for item in value)


def _recipients(value: Any) -> frozenset[bytes]:
    return _hexes(value, ADDRESS_BYTES)


def _selectors(value: Any) -> frozenset[bytes]:
    return _hexes(value, SELECTOR_BYTES)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")  # noqa: TRY004 - the file is wrong, not a type of ours
    return value


def _number(value: Any, most: int) -> int:
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[0-9]{1,78}", text) or int(text) > most:
        raise ValueError(f"is not a whole number from 0 to {most}")
    return int(text)


def _wei(value: Any) -> int:
    return _number(value, U256)


def _word(value: Any) -> int:
    return _number(value, U64)


def _period(value: Any) -> int:
    seconds = _number(value, PERIOD_MAX_S)
    if seconds < PERIOD_MIN_S:
        raise ValueError(f"is less than {PERIOD_MIN_S}")
    return seconds


KEYS: Final[dict[str, tuple[str, Any]]] = {
    "recipients": ("recipients", _recipients),
    "creations": ("creations", _flag),
    "value_max_wei": ("value_max", _wei),
    "fee_cap_max_wei": ("fee_cap_max", _word),
    "gas_limit_max": ("gas_limit_max", _word),
    "selectors": ("selectors", _selectors),
    "budget_wei": ("budget", _wei),
    "budget_period_s": ("period_s", _period),
}
"""Of the file: the field of Policy, and how its value is read."""
