"""`hybridna score-variants`: how likely each alternative allele is, beside the reference, written into the VCF."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    AllowNonfinite,
    Device,
    DryRun,
    Dtype,
    Fasta,
    Force,
    Horizon,
    Input,
    Model,
    NoVersion,
    OtherLetters,
    Output,
    Quiet,
    RebuildIndex,
    RenameChrs,
    Rna,
    Shard,
    Strict,
    SummaryJson,
    Threads,
    Window,
    WriteIndex,
)


def score_variants(
    vcf: Input,
    fasta_ref: Fasta,
    output: Output = "-",
    output_type: Annotated[
        str | None,
        typer.Option(
            "-O", "--output-type", metavar="v|z|b|u|t|p", show_default="by the output's suffix",
            help="VCF, bgzip VCF, BCF, uncompressed BCF; a table, a line per allele; Parquet.",
        ),
    ] = None,
    write_index: WriteIndex = False,
    model: Model = "base",
    window: Window = None,
    horizon: Horizon = None,
    stride: Annotated[
        int, typer.Option("--stride", metavar="BASES", help="Begin what is read at multiples of so many bases.")
    ] = 1,
    per_strand: Annotated[
        bool, typer.Option("--per-strand", help="Write HD_FWD and HD_REV, the two reading directions, too.")
    ] = False,
    embedding_distance: Annotated[
        str | None,
        typer.Option(
            "--embedding-distance", metavar="cosine|l2", show_default=False,
            help="Write HD_DIST, how far the two alleles' mean hidden vectors lie apart, too.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration", metavar="FILE", show_default=False,
            help="A file of hybridna calibrate: write HD_PCT and HD_PHRED, the place among matched alleles, too.",
        ),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            "-r", "--regions", metavar="REGIONS", show_default=False, help="chr, chr:beg-end, ...; counted from 1."
        ),
    ] = None,
    regions_file: Annotated[
        str | None,
        typer.Option(
            "-R", "--regions-file", metavar="FILE", show_default=False,
            help="Regions from a file: BED if it ends in .bed or .bed.gz, else contig, beg, end counted from 1.",
        ),
    ] = None,
    check_ref: Annotated[
        str,
        typer.Option(
            "--check-ref", metavar="e|w|x|s",
            help="Where REF is not what the FASTA has: stop; mark; mark as excluded; swap where ALT is what it has.",
        ),
    ] = "w",
    rename_chrs: RenameChrs = None,
    haplotypes: Annotated[
        bool,
        typer.Option(
            "--haplotypes", help="Score what stands together on each sample's haplotypes, too: HD_HAP and HD_EPI."
        ),
    ] = False,
    phase: Annotated[
        str,
        typer.Option(
            "-p", "--phase", metavar="a|m|r|R|s",
            help="Of --haplotypes, for genotypes that are not phased: a as they stand, m merge into one haplotype, "
            "r refuse, R put the ALT for REF, s skip.",
        ),
    ] = "r",
    info_prefix: Annotated[
        str, typer.Option("--info-prefix", metavar="TEXT", help="What the names of the new fields begin with.")
    ] = "HD_",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite scores that the input has already.")] = False,
    shard: Shard = None,
    skipped: Annotated[
        str | None,
        typer.Option(
            "--skipped", metavar="FILE", show_default=False,
            help="List every allele without a score, with the reason; a table, bgzip if the name ends in .gz.",
        ),
    ] = None,
    strict: Strict = False,
    fail_on: Annotated[
        str | None,
        typer.Option(
            "--fail-on", metavar="STATUS,...", show_default=False,
            help="Exit with 3 when an allele ended with one of these statuses; the output is complete.",
        ),
    ] = None,
    no_version: NoVersion = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    force: Force = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
    rebuild_index: RebuildIndex = False,
    other_letters: OtherLetters = None,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    allow_nonfinite: AllowNonfinite = False,
):  # fmt: skip
    """Score every alternative allele of a VCF or BCF.

    The same records come out with HD_LLR = log P(alternative) - log P(reference), in nats; HD_EDGE, which tells
    that a contig end was near; and HD_ST: ok, or why an allele has no score. Negative: the model finds the
    alternative less likely.
    """
    from hybridna_core.commands import score_variants as core

    with reporting("score-variants", quiet, summary_json) as report:
        report.summary = core.score_variants(
            vcf, fasta_ref, output, output_type=output_type, write_index=write_index, model=model, window=window,
            horizon=horizon, stride=stride, per_strand=per_strand, embedding_distance=embedding_distance,
            calibration=calibration, regions=regions, regions_file=regions_file, check_ref=check_ref,
            rename_chrs=rename_chrs, haplotypes=haplotypes, phase=phase, info_prefix=info_prefix, replace=replace,
            shard=shard,
            skipped=skipped, strict=strict, fail_on=fail_on, no_version=no_version, device=device, dtype=dtype,
            force=force, dry_run=dry_run, rebuild_index=rebuild_index, other_letters=other_letters, rna=rna,
            allow_missing_eof=allow_missing_eof, allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
