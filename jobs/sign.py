"""`python -m jobs.sign`: the entry point for `ray job submit`, and what `oncesign sign` submits."""

from __future__ import annotations

import argparse
import json
import sys

from jobs.driver import Wish, run
from jobs.loading import load_settings
from pipeline.errors import OncesignError
from pipeline.local.resolve import resolve


def main() -> None:
    """Settings come from ONCESIGN_ variables; the exit code is flattened by Ray, the last line has it."""
    parser = argparse.ArgumentParser(prog="python -m jobs.sign", description=__doc__)
    parser.add_argument("--until-drained", action="store_true", help="end when all that was committed is signed")
    parser.add_argument("--no-verify", action="store_true", help="do not follow and check what is signed")
    parser.add_argument("--expect", type=int, default=0, help="rows without which it is not drained")
    arguments = parser.parse_args()
    try:
        settings = resolve(load_settings())
    except OncesignError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.stdout.write(json.dumps({"exit_code": error.exit_code, "error": str(error)}) + "\n")
        sys.exit(error.exit_code)
    wish = Wish(until_drained=arguments.until_drained, verify=not arguments.no_verify, expect=arguments.expect)
    sys.exit(run(settings, wish))


if __name__ == "__main__":
    main()
