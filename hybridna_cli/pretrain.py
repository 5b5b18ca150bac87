"""`hybridna pretrain`: train a model as a run file says."""

import os
from typing import Annotated

import typer

from hybridna_cli.console import LOGGER, reporting
from hybridna_cli.options import (
    AllowMissingEof,
    Device,
    DryRun,
    OtherLetters,
    Quiet,
    RebuildIndex,
    Rna,
    SummaryJson,
    Threads,
)


def show_template(name):
    """Print the run file of a preset on stdout and leave."""
    if name is not None:
        from hybridna_core.run_config import read_template

        print(read_template(name), end="")
        raise typer.Exit()


def pretrain(
    run: Annotated[str, typer.Argument(metavar="RUN.TOML", show_default=False, help="Run file.")],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="DIR", show_default="the run file's output", help="Folder of the run."),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", show_default=False,
            help="Override a key of the run file, such as stage.0.steps=100; repeatable.",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template", metavar="300m|3b|7b|tiny", show_default=False, callback=show_template, is_eager=True,
            help="Print a complete run file, with genomes to fill in, and leave.",
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override", metavar="KEY", show_default=False,
            help="Go on though this key of the run file changed since the run began, such as optim.lr; repeatable.",
        ),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="none|optim|full",
            help="What processes started by torchrun split: nothing, the optimiser's state, or weights and gradients "
            "too.",
        ),
    ] = "none",
    rank_timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, help="How long such processes wait for one another before they stop."),
    ] = 600.0,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: DryRun = False,
    rebuild_index: RebuildIndex = False,
    other_letters: OtherLetters = None,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    exclude_bed: Annotated[
        str | None,
        typer.Option(
            "--exclude-bed", metavar="FILE", show_default=False,
            help="BED of regions never read, by contig name in every species.",
        ),
    ] = None,
    new_data: Annotated[bool, typer.Option("--new-data", help="Go on though the genomes changed.")] = False,
    plot: Annotated[
        bool,
        typer.Option("--plot", help="Draw the curves of a run, given its folder or run file, and train nothing."),
    ] = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):  # fmt: skip
    """Pretrain a model on genomes; run again after a stop to go on from the last snapshot.

    torchrun -m hybridna_cli pretrain RUN.TOML trains with several processes, on one machine or many.

    The folder gets log.jsonl (one JSON line now and then), snapshots, and at the end the finished model folder,
    model, and loss.png, its curves. A dry run prints a table of the species: known bases trained on and held out,
    share, passes.
    """
    from hybridna_core.commands import plot_training
    from hybridna_core.commands import pretrain as core

    if plot:
        with reporting("pretrain", quiet, summary_json) as report:
            report.summary = plot_training.plot_training(run, output=output, set=set or ())
        return
    # Of several processes the first one speaks for all, but for an error that is another's alone.
    first = os.environ.get("RANK", "0") == "0"
    with reporting("pretrain", quiet or not first, summary_json if first else None) as report:
        if not first:
            LOGGER.setLevel("ERROR")
        found = core.pretrain(
            run, output=output, set=set or (), override=override or (), device=device, shard=shard,
            rank_timeout=rank_timeout, dry_run=dry_run, rebuild_index=rebuild_index,
            other_letters=other_letters, rna=rna, allow_missing_eof=allow_missing_eof, exclude_bed=exclude_bed,
            new_data=new_data, progress=report.progress,
        )  # fmt: skip
        report.summary = found
    if dry_run and first:
        print("species\tbases\theld_out\tshare\tpasses")
        for one in found.species:
            print(f"{one.name}\t{one.bases}\t{one.held_out}\t{one.share:.4f}\t{one.passes:.2f}")
