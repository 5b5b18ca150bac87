"""`hybridna generate`: new sequences after a label or a prompt."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    AllowNonfinite,
    Device,
    Dtype,
    Force,
    Model,
    Output,
    Quiet,
    RebuildIndex,
    Rna,
    Seed,
    SummaryJson,
    Threads,
)


def generate(
    output: Output = "-",
    model: Model = "base",
    label: Annotated[
        str | None, typer.Option("--label", metavar="DIGITS", help="Label to write for, such as 300.")
    ] = None,
    prompt: Annotated[
        str,
        typer.Option("--prompt", metavar="BASES", show_default=False, help="Bases that every sequence begins with."),
    ] = "",
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", show_default=False, help="FASTA of prompts, continued one by one."),
    ] = None,
    num_sequences: Annotated[
        int | None,
        typer.Option(
            "-n", "--num-sequences", metavar="N", show_default="10, or the number of beams if less",
            help="How many sequences, per prompt.",
        ),
    ] = None,
    length: Annotated[
        int, typer.Option("--length", metavar="BASES", help="Bases to generate after the prompt.")
    ] = 200,
    num_beams: Annotated[
        int | None,
        typer.Option(
            "--num-beams", "--beams", metavar="N", show_default=False,
            help="Beam search with N beams, best first; 1 is greedy. Without it: sampling.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", metavar="T", show_default="1", help="Below 1: closer to the likeliest."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", show_default=False, help="Sample from the K likeliest bases.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", metavar="P", show_default=False, help="Sample from the fewest bases that reach probability P."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
    rebuild_index: RebuildIndex = False,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    allow_nonfinite: AllowNonfinite = False,
):  # fmt: skip
    """Generate DNA after a label or a prompt; FASTA out.

    Each record says its log-probability (nats, over A, C, G and T, given label and prompt), its GC share and
    how it was made.
    """
    from hybridna_core.commands import generate as core

    with reporting("generate", quiet, summary_json) as report:
        report.summary = core.generate(
            output, model=model, label=label, prompt=prompt, prompts=prompts, num_sequences=num_sequences,
            length=length, num_beams=num_beams, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
            device=device, dtype=dtype, force=force, rebuild_index=rebuild_index, rna=rna,
            allow_missing_eof=allow_missing_eof, allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
