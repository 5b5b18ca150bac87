"""`hybridna merge`: what --shard made in parts, joined into one file."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import Force, Output, Quiet, SummaryJson, WriteIndex


def merge(
    parts: Annotated[list[str], typer.Argument(metavar="PART...", show_default=False)],
    output: Output = "-",
    write_index: WriteIndex = False,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):
    """Join the parts that score-variants --shard or embed --shard made.

    All must be there, in whichever order, of one run and whole; the output is, byte for byte, what one process would
    have written.
    """
    from hybridna_core.commands.merge import merge as join

    with reporting("merge", quiet, summary_json) as report:
        report.summary = join(parts, output, write_index=write_index, force=force, progress=report.progress)
