"""`hybridna bench`: speed on this machine, each task beside another way to the same results."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import Device, Force, Quiet, SummaryJson, Threads

TASKS = """forward: a pass of the model, or train: forward, loss and all gradients, beside transformers' Bamba; mixer:
a Mamba-2 mixer beside transformers'; score, embed, beam: alleles, regions, and a step of beams, beside a slow way;
lengths: speed and memory of tokens beside a Transformer."""


def bench(
    task: Annotated[str, typer.Option("--task", metavar="TASK", help=" ".join(TASKS.split()))] = "forward",
    precision: Annotated[
        str,
        typer.Option(
            "--precision", metavar="KIND",
            help="Of products in forward, train and mixer: fp32 or bf16; on CUDA of both ways, and in lengths.",
        ),
    ] = "fp32",
    hidden_size: Annotated[
        int | None,
        typer.Option(
            "--hidden-size", metavar="N", show_default="256; 128 of score and lengths", help="Width of the model timed."
        ),
    ] = None,
    layers: Annotated[int, typer.Option("--layers", metavar="N", help="Its layers, one in eight attention.")] = 8,
    state_size: Annotated[
        int | None,
        typer.Option(
            "--state-size", metavar="N", show_default="128; 64 of score and lengths",
            help="Its recurrent state per channel.",
        ),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(
            "--length", metavar="TOKENS", show_default="by the task",
            help="Of a pass, of a window (score), of a region (embed), or read by each beam; repeatable.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", metavar="N", show_default="64; 2500", help="Regions of embed, beams of beam."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Timed passes of each, in turn.")] = 5,
    limit: Annotated[
        int,
        typer.Option("--limit", metavar="SECONDS", help="lengths: of a model at one length; then longer are skipped."),
    ] = 600,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot", metavar="FILE.png", show_default=False, help="Draw the rows against length; needs matplotlib."
        ),
    ] = None,
    force: Force = False,
    device: Device = "cpu",
    threads: Threads = None,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):  # fmt: skip
    """Time a task beside another way to the same results; both are compared before anything is timed.

    On the CPU unless --device says otherwise, as its aims are for the CPU; forward, train and lengths run on CUDA too.
    forward and train need transformers. Seconds are medians; take the ratio, not the seconds, from a machine that does
    other work too.
    """
    from hybridna_core.commands import bench as core

    with reporting("bench", quiet, summary_json) as report:
        found = core.bench(
            task=task, precision=precision, hidden_size=hidden_size, layers=layers, state_size=state_size,
            lengths=length, count=count, repeats=repeats, limit=limit, plot=plot, force=force,
            device=device, progress=report.progress,
        )  # fmt: skip
        report.summary = found
    print("\n".join("\t".join(cells) for cells in (spell_points if task == "lengths" else spell_timings)(found)))


def spell_timings(found):
    """Yield the header and the rows of a table of Timings."""
    yield (
        "case", "tokens", "count", "hybridna_s", "fastest", "slowest", "other_s", "other_fastest", "other_slowest",
        "ratio", f"{found.unit}_per_s", "products_s", "peak_share",
        "peak_mib", "other_peak_mib", "largest_difference",
    )  # fmt: skip
    for row in found.rows:
        seconds = [f"{value:.4f}" for value in (*row.hybridna, *row.other)]
        products = "" if row.products is None else f"{row.products:.4f}"
        share = "" if row.peak_share is None else f"{row.peak_share:.3f}"
        peaks = ["", ""] if row.peaks is None else [f"{size / 2**20:.0f}" for size in row.peaks]
        rest = f"{row.ratio:.2f}", f"{row.per_second:.4g}", products, share, *peaks, f"{row.difference:.1e}"
        yield row.case or found.task, str(row.tokens), str(row.count), *seconds, *rest


def spell_points(found):
    """Yield the header and the rows of a table of Points; those without figures say why."""
    yield (
        "model", "tokens", "seconds", "fastest", "slowest", "passes", "tokens_per_s", "ratio", "peak_mib",
        "resident_mib", "status",
    )  # fmt: skip
    for p in found.rows:
        memory = ["" if size is None else f"{size / 2**20:.0f}" for size in (p.peak_bytes, p.resident)]
        cells = [""] * 6
        if p.seconds:
            ratio = "" if p.ratio is None else f"{p.ratio:.2f}"
            cells = [*(f"{s:.3f}" for s in p.seconds), str(p.passes), f"{p.tokens_per_second:.0f}", ratio]
        yield p.model, str(p.tokens), *cells, *memory, p.status
