"""`oncesign bench kernel | pipeline | latency`: figures that can be measured again."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Measure: the kernel, the pipeline, the latency.")
