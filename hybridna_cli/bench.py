"""`hybridna bench`: speed on this machine, against a peer with the same weights."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import Quiet, SummaryJson, Threads


def bench(
    hidden_size: Annotated[int, typer.Option("--hidden-size", metavar="N", help="Width of the model timed.")] = 256,
    layers: Annotated[int, typer.Option("--layers", metavar="N", help="Its layers, one in eight attention.")] = 8,
    length: Annotated[
        list[int] | None,
        typer.Option("--length", metavar="TOKENS", show_default="2048 and 8192", help="Tokens per pass; repeatable."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Timed passes of each, in turn.")] = 5,
    threads: Threads = None,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):
    """Time a forward pass on CPU against transformers' Bamba with the same weights; equal logits come first.

    Needs transformers. Seconds are medians; take the ratio, not the seconds, from a machine that does other work too.
    """
    from hybridna_core.commands import bench as core

    with reporting("bench", quiet, summary_json) as report:
        found = core.bench(
            hidden_size=hidden_size, layers=layers, lengths=tuple(length or (2048, 8192)), repeats=repeats,
            progress=report.progress,
        )  # fmt: skip
        report.summary = found
    print("tokens\thybridna_s\tbamba_s\tratio\tlargest_logit_difference")
    for one in found.timings:
        ours, theirs = one.hybridna[0], one.bamba[0]
        print(f"{one.tokens}\t{ours:.4f}\t{theirs:.4f}\t{one.ratio:.2f}\t{one.difference:.1e}")
