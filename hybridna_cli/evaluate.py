"""`hybridna evaluate`: how well a model does on a named task, with simple baselines beside it."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    AllowNonfinite,
    Device,
    Force,
    Model,
    OtherLetters,
    Output,
    Quiet,
    RebuildIndex,
    Rna,
    SummaryJson,
    Threads,
    Window,
)

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a model on a task, with simple baselines beside it.")


@evaluate_app.command("genome")
def genome(
    run: Annotated[str, typer.Argument(metavar="RUN.TOML", show_default=False, help="Run file with held-out bases.")],
    output: Output = "-",
    model: Model = "base",
    max_bases: Annotated[
        int,
        typer.Option("--max-bases", "--limit", metavar="N", help="Bases measured per set, in windows spread evenly."),
    ] = 500_000,
    max_order: Annotated[int, typer.Option("--max-order", metavar="K", help="Highest Markov order, to 12.")] = 12,
    window: Window = None,
    device: Device = "auto",
    threads: Threads = None,
    rebuild_index: RebuildIndex = False,
    other_letters: OtherLetters = None,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    allow_nonfinite: AllowNonfinite = False,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):
    """Bits per base on a run file's held-out bases, beside Markov models trained on its training bases.

    Beside them, learning from the measured bases alone: a compressor (GeCo3 or cmix if there is one, else xz) and an
    adaptive mixture of orders 1 to 20 on both strands. The table is TSV, or Markdown where OUTPUT ends in .md.
    """
    from hybridna_core.commands import evaluate as core

    with reporting("evaluate genome", quiet, summary_json) as report:
        report.summary = core.evaluate_genome(
            run, output, model=model, max_bases=max_bases, max_order=max_order, window=window, device=device,
            force=force, rebuild_index=rebuild_index, other_letters=other_letters, rna=rna,
            allow_missing_eof=allow_missing_eof, allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
