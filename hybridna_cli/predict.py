"""`hybridna predict`: labels of sequences by a fine-tuned model."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    BatchSize,
    Device,
    Dtype,
    Force,
    LabelColumn,
    Output,
    Quiet,
    RebuildIndex,
    RegionFasta,
    Rna,
    SequenceColumn,
    Strict,
    SummaryJson,
    Threads,
)


def predict(
    model: Annotated[
        str, typer.Argument(metavar="FOLDER", show_default=False, help="Model folder that finetune wrote.")
    ],
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE", show_default=False,
            help="TSV, CSV or Parquet with sequences or regions, or BED; labels in it are measured.",
        ),
    ],
    output: Output = "-",
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="NAME", show_default="where it was",
            help="Model that an adapter folder is for, where it lies elsewhere now.",
        ),
    ] = None,
    fasta_ref: RegionFasta = None,
    sequence_column: SequenceColumn = None,
    label_column: LabelColumn = None,
    batch_size: BatchSize = "auto",
    strict: Strict = False,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    rna: Rna = False,
    rebuild_index: RebuildIndex = False,
    allow_missing_eof: AllowMissingEof = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):  # fmt: skip
    """Predict the labels of sequences; .tsv, .parquet or .npz out, one row per sequence in input order.

    Classes get a probability each, in columns named p_ and the class; a regression one number per column; a model that
    knows labels P(label | sequence) over the labels seen in training. A sequence that cannot be read keeps its row,
    with the reason in the column `status`.
    """
    from hybridna_core.commands import predict as core

    with reporting("predict", quiet, summary_json) as report:
        report.summary = core.predict(
            model, table, output, base=base, fasta_ref=fasta_ref, sequence_column=sequence_column,
            label_column=label_column or (), batch_size=batch_size, strict=strict, force=force, device=device,
            dtype=dtype, rna=rna, rebuild_index=rebuild_index, allow_missing_eof=allow_missing_eof,
            progress=report.progress,
        )  # fmt: skip
