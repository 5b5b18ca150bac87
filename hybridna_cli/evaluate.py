"""`hybridna evaluate`: how well a model does on a named task, with simple baselines beside it."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    AllowNonfinite,
    Device,
    Model,
    OtherLetters,
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
    model: Model = "base",
    max_bases: Annotated[
        int, typer.Option("--max-bases", metavar="N", help="Bases measured per set, in windows spread evenly.")
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
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):
    """Bits per base on a run file's held-out bases, beside Markov models trained on its training bases.

    A table goes to stdout: per set the model, the best Markov order, and every order.
    """
    from hybridna_core.commands import evaluate as core

    with reporting("evaluate genome", quiet, summary_json) as report:
        found = core.evaluate_genome(
            run, model=model, max_bases=max_bases, max_order=max_order, window=window, device=device,
            rebuild_index=rebuild_index, other_letters=other_letters, rna=rna, allow_missing_eof=allow_missing_eof,
            allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
        report.summary = found
    print("set\tbases\tmodel\tbest_markov\tbest_order\t" + "\t".join(f"order_{k}" for k in range(max_order + 1)))
    for one in found.sets:
        order, best = one.best_markov
        cells = [one.name, one.bases, f"{one.model:.4f}", f"{best:.4f}", order, *(f"{v:.4f}" for v in one.markov)]
        print("\t".join(str(c) for c in cells))
