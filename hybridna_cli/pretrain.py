"""`hybridna pretrain`: train a model as a run file says."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import Device, DryRun, Quiet, SummaryJson, Threads


def pretrain(
    run: Annotated[str, typer.Argument(metavar="RUN.TOML", show_default=False, help="Run file.")],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="DIR", show_default="the run file's output", help="Folder of the run."),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="Override, such as stage.0.steps=100."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):
    """Pretrain a model on genomes; run again after a stop to go on from the last snapshot.

    The folder gets log.jsonl (one JSON line now and then), snapshots, and at the end the finished model folder.
    """
    from hybridna_core.commands import pretrain as core

    with reporting("pretrain", quiet, summary_json) as report:
        report.summary = core.pretrain(
            run, output=output, set=set or (), device=device, dry_run=dry_run, progress=report.progress
        )
