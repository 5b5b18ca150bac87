"""`hybridna bench`: speed on this machine, against a peer with the same weights."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import Quiet, SummaryJson, Threads


def bench(
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="forward, or train: forward, loss and all gradients.")
    ] = "forward",
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="KIND", help="Of our matrix products: fp32 or bf16. The peer has fp32."),
    ] = "fp32",
    hidden_size: Annotated[int, typer.Option("--hidden-size", metavar="N", help="Width of the model timed.")] = 256,
    layers: Annotated[int, typer.Option("--layers", metavar="N", help="Its layers, one in eight attention.")] = 8,
    state_size: Annotated[
        int, typer.Option("--state-size", metavar="N", help="Its recurrent state per channel.")
    ] = 128,
    length: Annotated[
        list[int] | None,
        typer.Option("--length", metavar="TOKENS", show_default="2048 and 8192", help="Tokens per pass; repeatable."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Timed passes of each, in turn.")] = 5,
    threads: Threads = None,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):
    """Time a pass on CPU against transformers' Bamba with the same weights; equal logits or gradients come first.

    Needs transformers. Seconds are medians; take the ratio, not the seconds, from a machine that does other work too.
    """
    from hybridna_core.commands import bench as core

    with reporting("bench", quiet, summary_json) as report:
        found = core.bench(
            task=task, precision=precision, hidden_size=hidden_size, layers=layers, state_size=state_size,
            lengths=tuple(length or (2048, 8192)), repeats=repeats,
            progress=report.progress,
        )  # fmt: skip
        report.summary = found
    print("tokens\thybridna_s\tbamba_s\tratio\tproducts_s\tlargest_difference")
    for one in found.timings:
        ours, theirs = one.hybridna[0], one.bamba[0]
        print(f"{one.tokens}\t{ours:.4f}\t{theirs:.4f}\t{one.ratio:.2f}\t{one.products:.4f}\t{one.difference:.1e}")
