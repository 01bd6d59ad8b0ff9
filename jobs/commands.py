"""All commands of `oncesign`, by name."""

from __future__ import annotations

import typer

from jobs import (
    authorize,
    bench,
    broadcast,
    checks,
    config,
    export,
    keys,
    policy,
    recovery,
    rows,
    servers,
    signing,
    simulate,
    tail,
    top,
)
from jobs.chaos.command import chaos

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
app.command()(top.top)
app.command()(checks.verify)
app.command()(checks.tx)
app.command()(broadcast.broadcast)
app.command()(export.export)
app.command()(tail.tail)
app.command()(checks.assignments)
app.command()(authorize.authorize)
app.command()(recovery.recover)
app.command()(simulate.simulate)
app.command()(chaos)
app.command()(config.config)
app.add_typer(keys.app, name="keys")
app.add_typer(policy.app, name="policy")
app.add_typer(bench.app, name="bench")
