"""The command line `oncesign`.

Exit codes: 0 ok · 1 failed · 2 usage · 3 a dependency is down · 4 verification found a violation · 5 halted or not
leader · 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from jobs import bench, checks, config, keys, recovery, rows, servers, signing
from pipeline.errors import OncesignError

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals can hold keys
    help="Sign large batches of Ethereum transactions, each exactly once.",
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 a dependency is down, 4 a violation was found, 5 halted.",
)
app.command()(signing.demo)
app.command()(servers.up)
app.command()(servers.down)
app.command()(servers.status)
app.command()(servers.doctor)
app.command()(rows.migrate)
app.command()(rows.stock)
app.command()(signing.sign)
app.command()(checks.verify)
app.command()(checks.tx)
app.command()(checks.assignments)
app.command()(recovery.recover)
app.command()(config.config)
app.add_typer(keys.app, name="keys")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run a command; every expected error is one line and an exit code."""
    try:
        app()
    except OncesignError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
