"""`hybridna verify`: a sample of a file's scores computed again."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    AllowNonfinite,
    Device,
    Fasta,
    Input,
    OtherLetters,
    Quiet,
    RebuildIndex,
    RenameChrs,
    Rna,
    Seed,
    SummaryJson,
    Threads,
)


def verify(
    vcf: Input,
    fasta_ref: Fasta,
    model: Annotated[
        str | None,
        typer.Option(
            "-m", "--model", metavar="NAME", show_default="what the header names",
            help="Bundled model, a model folder of ours, or a published HybriDNA folder.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration", metavar="FILE", show_default=False,
            help="The calibration that the file was scored with: compare percentiles, too.",
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", help="Scored alleles to compute again, drawn from all.")
    ] = 100,
    seed: Seed = 0,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", metavar="SHARE", help="Difference allowed, as a share of the score or in nats, the larger."
        ),
    ] = 1e-4,
    info_prefix: Annotated[
        str, typer.Option("--info-prefix", metavar="TEXT", help="What the names of the fields begin with.")
    ] = "HD_",
    rename_chrs: RenameChrs = None,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
    rebuild_index: RebuildIndex = False,
    other_letters: OtherLetters = None,
    rna: Rna = False,
    allow_missing_eof: AllowMissingEof = False,
    allow_nonfinite: AllowNonfinite = False,
):  # fmt: skip
    """Compute a sample of the scores in a VCF or BCF again, and fail with 3 if any is not what it was.

    Window, horizon, stride and precision come from the header. Another reference (by MD5 of the contigs) is an error,
    and so is another model (by SHA-256 of its weights).
    """
    from hybridna_core.commands import verify as core

    with reporting("verify", quiet, summary_json) as report:
        report.summary = core.verify(
            vcf, fasta_ref, model=model, calibration=calibration, sample=sample, seed=seed, tolerance=tolerance,
            info_prefix=info_prefix, rename_chrs=rename_chrs, device=device, rebuild_index=rebuild_index,
            other_letters=other_letters, rna=rna,
            allow_missing_eof=allow_missing_eof, allow_nonfinite=allow_nonfinite, progress=report.progress,
        )  # fmt: skip
