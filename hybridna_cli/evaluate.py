"""`hybridna evaluate`: how well a model does on a named task, with simple baselines beside it."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.evaluate_tasks import HELP, make_command, predictions
from hybridna_cli.options import (
    AllowMissingEof,
    AllowNonfinite,
    BatchSize,
    Device,
    Dtype,
    Fasta,
    Force,
    Model,
    OtherLetters,
    Output,
    Quiet,
    RebuildIndex,
    RenameChrs,
    Rna,
    Seed,
    SequenceColumn,
    SummaryJson,
    Threads,
    Window,
    check_stdin,
)

Background = Annotated[
    list[str] | None,
    typer.Option(
        "--background",
        metavar="FILE",
        show_default=False,
        help="FASTA, or run file (.toml) for its training bases, that the order-5 Markov model counts; repeatable.",
    ),
]
ShortWindow = Annotated[int, typer.Option("--window", metavar="BASES", help="Bases read per allele and direction.")]
Horizon = Annotated[
    int | None,
    typer.Option("--horizon", metavar="BASES", show_default="half the window", help="Bases counted of each allele."),
]

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a model on a task, with simple baselines beside it.")


@evaluate_app.command("coding")
def coding(
    fasta_ref: Fasta,
    cds: Annotated[
        str,
        typer.Option(
            "--cds", metavar="FILE", show_default=False, help="GFF3, or BED (.bed, .bed.gz), of coding sequence."
        ),
    ],
    output: Output = "-",
    variants: Annotated[
        str | None,
        typer.Option("--variants", metavar="FILE", show_default=False, help="Also write a line per change, TSV."),
    ] = None,
    model: Model = "base",
    codon_table: Annotated[
        int, typer.Option("--codon-table", metavar="N", help="Genetic code, by NCBI's numbers.")
    ] = 1,
    contig: Annotated[
        list[str] | None,
        typer.Option("--contig", metavar="NAME", show_default="all", help="Draw from this contig; repeatable."),
    ] = None,
    sites: Annotated[
        int, typer.Option("--sites", metavar="N", help="Changes drawn of stop-gained and of synonymous each.")
    ] = 1000,
    missense: Annotated[int, typer.Option("--missense", metavar="N", help="Missense changes drawn beside them.")] = 0,
    background: Background = None,
    window: ShortWindow = 1024,
    horizon: Horizon = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
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
    """AUROC of -HD_LLR, stop-gained against synonymous single-base changes in coding sequence.

    Over all changes, and within strata of substitution, codon position and both, with 95 % intervals (transcripts
    drawn whole), beside a Markov model and a regression on substitution and codon position. Left out: first codons,
    stop codons, transcripts with a stop inside, bases in more than one transcript. With --variants, a run that was
    stopped goes on when it is called again. The table is TSV, or Markdown where OUTPUT ends in .md.
    """
    from hybridna_core.commands import evaluate_coding as core

    with reporting("evaluate coding", quiet, summary_json) as report:
        report.summary = core.evaluate_coding(
            fasta_ref, cds, output, model=model, variants=variants, codon_table=codon_table, contigs=contig or (),
            sites=sites, missense=missense, background=background or (), window=window, horizon=horizon, seed=seed,
            device=device, dtype=dtype, force=force, rebuild_index=rebuild_index, other_letters=other_letters, rna=rna,
            allow_missing_eof=allow_missing_eof, allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip


@evaluate_app.command("design")
def design(
    designs: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", show_default=False, help="Designs: FASTA or --table of generate; one file or several."
        ),
    ],
    real: Annotated[
        str,
        typer.Option("--real", metavar="TABLE", show_default=False, help="Held-out real sequences with labels."),
    ],
    oracle: Annotated[
        str,
        typer.Option(
            "--oracle", metavar="NAME", show_default=False,
            help="Folder of a fine-tuned regression model, or simulated: the function of the simulated assay.",
        ),
    ],
    output: Output = "-",
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="DIGITS", show_default="those of the designs", help="Label to measure; repeatable."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-m", "--model", metavar="NAME", show_default=False, help="The generator, for label fidelity."
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--beside", metavar="NAME=FILE", show_default=False,
            help="Designs of another model; without labels they stand beside every label; repeatable.",
        ),
    ] = None,
    sequence_column: SequenceColumn = None,
    label_column: Annotated[
        list[str] | None,
        typer.Option(
            "--label-column", metavar="NAME", show_default="label",
            help="Column of TABLE with the label; repeatable: a digit each.",
        ),
    ] = None,
    value_column: Annotated[
        list[str] | None,
        typer.Option(
            "--value-column", metavar="NAME", show_default=False,
            help="Column of TABLE with measured activity, one per number of the oracle, in its order.",
        ),
    ] = None,
    split_column: Annotated[
        str | None,
        typer.Option(
            "--split-column", metavar="NAME", show_default=False, help="Read only the rows of TABLE that say test."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="NAME", show_default="where it was",
            help="Model that an oracle without weights of its own is for.",
        ),
    ] = None,
    markdown: Annotated[
        str | None,
        typer.Option("--markdown", metavar="FILE", show_default=False, help="Also write the table as Markdown."),
    ] = None,
    sequences: Annotated[
        str | None,
        typer.Option("--sequences", metavar="FILE", show_default=False, help="Also write a line per sequence, TSV."),
    ] = None,
    max_sequences: Annotated[
        int, typer.Option("--max-sequences", metavar="N", help="Sequences of a set at most; of more, N are drawn.")
    ] = 1000,
    pairs: Annotated[
        int, typer.Option("--pairs", metavar="N", help="Pairs for diversity at most; of more, N are drawn.")
    ] = 1_000_000,
    batch_size: BatchSize = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    rna: Rna = False,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):  # fmt: skip
    """Designed sequences for each label, beside held-out real ones: activity, diversity, novelty, label fidelity.

    A row per label and set. Activity is what the oracle says of the numbers that the label's highest digit asks for;
    specificity takes off the mean of the others. The table is TSV, or Markdown where OUTPUT ends in .md. What has no
    value is NA, with a reason.
    """
    from hybridna_core.commands import evaluate_design as core

    with reporting("evaluate design", quiet, summary_json) as report:
        report.summary = core.evaluate_design(
            designs, output, real=real, oracle=oracle, label=label or (), model=model, beside=beside or (),
            sequence_column=sequence_column, label_column=label_column or (), value_column=value_column or (),
            split_column=split_column, base=base, markdown=markdown, sequences=sequences, max_sequences=max_sequences,
            pairs=pairs, batch_size=batch_size, seed=seed, device=device, dtype=dtype, rna=rna, force=force,
            progress=report.progress,
        )  # fmt: skip


@evaluate_app.command("effects")
def effects(
    vcf: Annotated[str, typer.Argument(metavar="VCF", callback=check_stdin, show_default=False)],
    fasta_ref: Fasta,
    output: Output = "-",
    effect: Annotated[
        str | None,
        typer.Option("--effect", metavar="KEY", show_default=False, help="INFO key of the effect that was measured."),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(
            "--positive", metavar="KEY=VALUE", show_default=False,
            help="Alleles that AUROC tells from the others; KEY=A,B, KEY!=A, KEY<1e-5 (also <= > >=).",
        ),
    ] = None,
    negative: Annotated[
        str | None,
        typer.Option("--negative", metavar="KEY=VALUE", show_default="all others", help="What they are told from."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="KEY=VALUE", show_default=False, help="Use only these alleles; repeatable."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group", metavar="KEY", show_default=False,
            help="INFO key of groups: compared within, too, and drawn whole for the intervals.",
        ),
    ] = None,
    each_group: Annotated[bool, typer.Option("--each-group", help="Also measure every group alone.")] = False,
    score: Annotated[
        list[str] | None,
        typer.Option(
            "--score", metavar="KEY", show_default=False,
            help="INFO key of a score that is there already; no model reads then; repeatable.",
        ),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option("--variants", metavar="FILE", show_default=False, help="Also write a line per allele, TSV."),
    ] = None,
    model: Model = "base",
    background: Background = None,
    sites: Annotated[
        int | None,
        typer.Option("--sites", metavar="N", show_default="all", help="Places drawn, all alleles of each."),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", metavar="N", help="Draws of each bootstrap.")] = 1000,
    window: ShortWindow = 1024,
    horizon: Horizon = None,
    stride: Annotated[
        int,
        typer.Option(
            "--stride", metavar="BASES",
            help="Begin what is read at multiples of so many bases; so many neighbours share a reading.",
        ),
    ] = 1,
    seed: Seed = 0,
    rename_chrs: RenameChrs = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    rebuild_index: RebuildIndex = False,
    other_letters: OtherLetters = None,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    allow_nonfinite: AllowNonfinite = False,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):  # fmt: skip
    """Spearman's correlation and AUROC of HD_LLR with effects that a VCF's INFO holds.

    Scores stand beside simple ones of the same alleles (a Markov model, GC gained, transition or not), with 95 %
    bootstrap intervals: groups drawn whole, without groups places. Correlated are scores with effects, and their sizes
    with sizes; AUROC is that of the scores turned round (-HD_LLR) and of their sizes. What has no value is NA, with a
    reason. With --variants, a run that was stopped goes on when it is called again. The table is TSV, or Markdown where
    OUTPUT ends in .md.
    """
    from hybridna_core.commands import evaluate_effects as core

    with reporting("evaluate effects", quiet, summary_json) as report:
        report.summary = core.evaluate_effects(
            vcf, fasta_ref, output, model=model, effect=effect, positive=positive, negative=negative,
            where=where or (), group=group, each_group=each_group, score=score or (), variants=variants,
            background=background or (), sites=sites, draws=draws, window=window, horizon=horizon, stride=stride,
            seed=seed, rename_chrs=rename_chrs, device=device, dtype=dtype, force=force, rebuild_index=rebuild_index,
            other_letters=other_letters, rna=rna, allow_missing_eof=allow_missing_eof, allow_nonfinite=allow_nonfinite,
            progress=report.progress,
        )  # fmt: skip


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
    from hybridna_core.commands import evaluate_genome as core

    with reporting("evaluate genome", quiet, summary_json) as report:
        report.summary = core.evaluate_genome(
            run, output, model=model, max_bases=max_bases, max_order=max_order, window=window, device=device,
            force=force, rebuild_index=rebuild_index, other_letters=other_letters, rna=rna,
            allow_missing_eof=allow_missing_eof, allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip


for _benchmark in HELP:
    evaluate_app.command(_benchmark)(make_command(_benchmark))
evaluate_app.command("predictions")(predictions)
