"""`hybridna generate`: new sequences after a label or a prompt."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    AllowNonfinite,
    Device,
    DryRun,
    Dtype,
    Force,
    Output,
    Quiet,
    RebuildIndex,
    Rna,
    Seed,
    Shard,
    SummaryJson,
    Threads,
)


def generate(
    output: Output = "-",
    model: Annotated[
        str | None,
        typer.Option(
            "-m", "--model", metavar="NAME", show_default="base; with --label the bundled one that knows it",
            help="Bundled model, a model folder of ours, or a published HybriDNA folder.",
        ),
    ] = None,
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
        int | None,
        typer.Option(
            "--length", metavar="BASES", show_default="the template's; after a label its training's; else 200",
            help="Bases to generate after the prompt.",
        ),
    ] = None,
    num_beams: Annotated[
        int | None,
        typer.Option(
            "--num-beams", "--beams", metavar="N", show_default=False,
            help="Beam search with N beams, best first; 1 is greedy. Without it: sampling.",
        ),
    ] = None,
    beam_groups: Annotated[
        int | None,
        typer.Option(
            "--beam-groups", metavar="N", show_default=False,
            help="Divide the beams into N groups, each kept off what the earlier ones chose.",
        ),
    ] = None,
    diversity_penalty: Annotated[
        float | None,
        typer.Option(
            "--diversity-penalty", metavar="NATS", show_default="1",
            help="Nats off a base for each earlier group whose beams all chose it at that place.",
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
    gc: Annotated[
        str | None,
        typer.Option("--gc", metavar="LOW:HIGH", show_default=False, help="Share of G and C, such as 0.4:0.6."),
    ] = None,
    max_homopolymer: Annotated[
        int | None,
        typer.Option("--max-homopolymer", metavar="N", show_default=False, help="Longest run of one base."),
    ] = None,
    forbid: Annotated[
        list[str] | None,
        typer.Option(
            "--forbid", metavar="SITES", show_default=False,
            help="Sites that may stand on neither strand: IUPAC letters or enzymes, such as GAATTC,BsaI.",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template", metavar="IUPAC", show_default=False, help="One letter per generated base; N is any base."
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require", metavar="MOTIFS", show_default=False,
            help="Motifs that must stand there: CCAAT anywhere, ATG@1 from the first base, TATAWAW@-30 from the 30th "
            "before the end.",
        ),
    ] = None,
    seed: Seed = 0,
    table: Annotated[
        str | None,
        typer.Option("--table", metavar="FILE", show_default=False, help="Write the certificates to a TSV as well."),
    ] = None,
    report_html: Annotated[
        str | None,
        typer.Option(
            "--report", metavar="FILE", show_default=False, help="Write pictures and numbers to one HTML file as well."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="FILE", show_default=False,
            help="FASTA of known sequences, such as the training set; the nearest to each design is named.",
        ),
    ] = None,
    shard: Shard = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    dry_run: DryRun = False,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
    rebuild_index: RebuildIndex = False,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    allow_nonfinite: AllowNonfinite = False,
):  # fmt: skip
    """Generate DNA after a label or a prompt, within constraints; FASTA out.

    Each record is certified: log-probability (nats, over A, C, G and T, given label and prompt) read again in one
    plain pass, GC share, longest run, forbidden sites, the nearest other design, and how it was made.
    """
    from hybridna_core.commands import generate as core

    with reporting("generate", quiet, summary_json) as report:
        report.summary = core.generate(
            output, model=model, label=label, prompt=prompt, prompts=prompts, num_sequences=num_sequences,
            length=length, num_beams=num_beams, beam_groups=beam_groups, diversity_penalty=diversity_penalty,
            temperature=temperature, top_k=top_k, top_p=top_p, gc=gc, max_homopolymer=max_homopolymer, forbid=forbid,
            template=template, require=require, seed=seed, table=table, report=report_html, reference=reference,
            shard=shard, device=device, dtype=dtype, dry_run=dry_run, force=force, rebuild_index=rebuild_index, rna=rna,
            allow_missing_eof=allow_missing_eof, allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
