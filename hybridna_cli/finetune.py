"""`hybridna finetune`: train a model on a table of sequences and labels."""

from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    Device,
    DryRun,
    Force,
    LabelColumn,
    Model,
    Quiet,
    RebuildIndex,
    RegionFasta,
    Rna,
    SequenceColumn,
    SummaryJson,
    Threads,
)


def finetune(
    train: Annotated[
        str,
        typer.Argument(
            metavar="TABLE", show_default=False,
            help="Training table: TSV, CSV or Parquet with sequence and label, or regions and labels; or a folder with "
            "train.csv, dev.csv and test.csv.",
        ),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="DIR", show_default=False, help="Model folder to write.")
    ],
    valid: Annotated[
        str | None,
        typer.Option("--valid", metavar="TABLE", show_default=False, help="Rows that the best step is chosen by."),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="TABLE", show_default=False, help="Rows that the best step is measured on."),
    ] = None,
    fasta_ref: RegionFasta = None,
    model: Model = "base",
    task: Annotated[
        str,
        typer.Option(
            "--task", metavar="NAME",
            help="classification, multilabel, regression, or generation: label tokens before the bases, for generate.",
        ),
    ] = "classification",
    sequence_column: SequenceColumn = None,
    label_column: LabelColumn = None,
    split_column: Annotated[
        str | None,
        typer.Option(
            "--split-column", metavar="NAME", show_default=False,
            help="Column that says train, valid (val, dev) or test, where one table holds all.",
        ),
    ] = None,
    label_name: Annotated[
        list[str] | None,
        typer.Option(
            "--label-name", metavar="NAME", show_default="digit1, digit2, ...",
            help="Of generation: what a digit of the label is called; once for each digit.",
        ),
    ] = None,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="Of generation: learn the bases alone, without labels.")
    ] = False,
    head: Annotated[
        str,
        typer.Option(
            "--head", metavar="linear|mlp|cnn",
            help="What reads the network's vectors; cnn is BEND's two layers over every base.",
        ),
    ] = "linear",
    reading: Annotated[
        str, typer.Option("--reading", metavar="mean|last", help="Vector of a sequence: mean over bases, or the last.")
    ] = "mean",
    echo: Annotated[
        str | None,
        typer.Option(
            "--echo", metavar="same|rc", show_default=False,
            help="Read the sequence twice in one pass, the second time as it is or as its reverse complement, and take "
            "the second reading.",
        ),
    ] = None,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Train the head alone; the network's vectors are kept on disk.")
    ] = False,
    lora: Annotated[
        int, typer.Option("--lora", metavar="RANK", help="Train low-rank adapters of this rank, not the weights.")
    ] = 0,
    lora_alpha: Annotated[
        float | None,
        typer.Option("--lora-alpha", metavar="ALPHA", show_default="twice the rank", help="Scale of the adapters."),
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Write head and adapters without the base that they are for.")
    ] = False,
    cache: Annotated[
        str | None,
        typer.Option("--cache", metavar="DIR", show_default=False, help="Keep the vectors of --freeze there."),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", metavar="RATE", show_default="by size: 1e-3 below 20 M parameters, 5e-5, 3e-5, 1e-5",
            help="Learning rate; with --freeze 3e-3, with --lora 1e-3.",
        ),
    ] = None,
    label_lr: Annotated[
        float | None,
        typer.Option(
            "--label-lr", metavar="RATE", show_default="a tenth of the sd of the bases' rows",
            help="Of generation: learning rate of the label tokens' rows.",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", help="Times that every row is read.")] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Sequences per step.")] = 32,
    warmup: Annotated[
        float, typer.Option("--warmup", metavar="SHARE", help="Share of the steps in which the rate rises.")
    ] = 0.05,
    schedule: Annotated[
        str, typer.Option("--schedule", metavar="cosine|constant", help="How the rate goes down.")
    ] = "cosine",
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", metavar="RATE", help="Of projection matrices and heads.")
    ] = 0.01,
    class_weights: Annotated[
        str,
        typer.Option("--class-weights", metavar="none|balanced", help="balanced: rare classes count like others."),
    ] = "none",
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", metavar="NAME", show_default="mcc, auroc, pearson or bits_per_base, by task",
            help="Measure of the validation rows that the best step is chosen by.",
        ),
    ] = None,
    patience: Annotated[
        int, typer.Option("--patience", metavar="N", help="Stop after N measurements without a better one; 0: never.")
    ] = 0,
    valid_every: Annotated[
        int | None,
        typer.Option("--valid-every", metavar="STEPS", show_default="an epoch", help="Steps between measurements."),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", help="Trainings; mean and sd are told, the best is kept.")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the first training.")] = 0,
    precision: Annotated[
        str, typer.Option("--precision", metavar="auto|fp32|bf16", help="auto: bf16 on a GPU.")
    ] = "auto",
    microbatch_tokens: Annotated[
        int, typer.Option("--microbatch-tokens", metavar="N", help="Tokens read at once within a step.")
    ] = 16384,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Compute blocks again on the way back: less memory.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 when a sequence stands in training and elsewhere too.")
    ] = False,
    force: Force = False,
    device: Device = "auto",
    threads: Threads = None,
    rna: Rna = False,
    rebuild_index: RebuildIndex = False,
    allow_missing_eof: AllowMissingEof = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):  # fmt: skip
    """Fine-tune a model on a table; run again after a stop to go on from the last snapshot.

    The output is a model folder, with the head beside the weights, for predict, embed and the others. Beside it stands
    a folder named DIR.runs, with log and snapshots, until all is done.
    """
    from hybridna_core.commands import finetune as core

    with reporting("finetune", quiet, summary_json) as report:
        report.summary = core.finetune(
            train, output, valid=valid, test=test, fasta_ref=fasta_ref, model=model, task=task,
            sequence_column=sequence_column, label_column=label_column or (), split_column=split_column,
            label_names=label_name or (), unconditional=unconditional, head=head, reading=reading, echo=echo,
            freeze=freeze, lora=lora, lora_alpha=lora_alpha, adapter_only=adapter_only, cache=cache, lr=lr,
            label_lr=label_lr, epochs=epochs, batch_size=batch_size, warmup=warmup, schedule=schedule,
            weight_decay=weight_decay, class_weights=class_weights, metric=metric, patience=patience,
            valid_every=valid_every, seeds=seeds, seed=seed, precision=precision, microbatch_tokens=microbatch_tokens,
            checkpoint_activations=checkpoint_activations, strict=strict, force=force, device=device, rna=rna,
            rebuild_index=rebuild_index, allow_missing_eof=allow_missing_eof, dry_run=dry_run,
            progress=report.progress,
        )  # fmt: skip
