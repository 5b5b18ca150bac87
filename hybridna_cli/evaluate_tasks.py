"""`hybridna evaluate gue|bend|lrb|genomic-benchmarks|table|predictions`: benchmarks of labelled sequences."""

import inspect
from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import (
    AllowMissingEof,
    Device,
    Force,
    LabelColumn,
    Output,
    Quiet,
    RebuildIndex,
    RegionFasta,
    Rna,
    SequenceColumn,
    SummaryJson,
    Threads,
)
from hybridna_core.errors import UsageError

SAME = (
    "Simple models stand beside (k-mers, bases by place, GC content, the commonest class), fitted on the same rows, "
    "and 95 % bootstrap intervals. DIR gets results.tsv, results.md and results.png; what is finished there is not "
    "done again, and another call with the same DIR (another reading, another model) adds its rows."
)
HELP = {
    "gue": "GUE: a folder per task with train.csv, dev.csv, test.csv; MCC, for covid F1; epochs, warm-up and batch as "
    "DNABERT-2's script has them.",
    "bend": "BEND's chromatin accessibility, histone modification and CpG methylation: TASK.bed, labels there or in "
    "TASK.hdf5, and -f; AUROC of a two-layer CNN on frozen vectors.",
    "lrb": "LRB's variants (variant_effect_causal_eqtl, variant_effect_pathogenic) and -f: AUROC and AUPRC of HD_LLR "
    "as it is, and of an MLP on the frozen vectors of both alleles.",
    "genomic-benchmarks": "Genomic Benchmarks: DATASET/train/CLASS/*.txt and DATASET/test/CLASS/*.txt; accuracy.",
    "table": "Any table, with a split column or cut by its sequences; or a folder with train, dev and test tables.",
}
# Options that a benchmark has no use for.
UNUSED = {
    "gue": ("fasta_ref", "window", "task", "sequence_column", "label_column", "split_column", "rebuild_index",
            "allow_missing_eof"),
    "bend": ("window", "task", "sequence_column", "label_column", "split_column"),
    "lrb": ("task", "sequence_column", "label_column", "split_column", "reading", "echo"),
    "genomic-benchmarks": ("fasta_ref", "window", "task", "sequence_column", "label_column", "split_column",
                           "rebuild_index", "allow_missing_eof"),
    "table": ("window",),
}  # fmt: skip


def parse_rates(text):
    """Turn `1e-4,5e-4` into numbers; raise UsageError."""
    try:
        return tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError:
        what = f"is {text!r}, must be numbers with commas between"
        raise UsageError(what, where="--lr", hint="such as 1e-4,5e-4,2e-3") from None


def split_words(text):
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text else ()


def make_command(benchmark):
    """Return the command of a benchmark: the same for all, but for options that it has no use for."""

    def command(
        folder: Annotated[str, typer.Argument(metavar="FOLDER", show_default=False, help="The benchmark's folder.")],
        output: Annotated[
            str, typer.Option("-o", "--output", metavar="DIR", show_default=False, help="Folder of the results.")
        ],
        fasta_ref: RegionFasta = None,
        model: Annotated[
            str,
            typer.Option(
                "-m", "--model", metavar="NAME",
                help="Bundled model, model folder, published HybriDNA folder, or hf:FOLDER: any local transformers "
                "model, read frozen.",
            ),
        ] = "base",
        tasks: Annotated[
            str | None,
            typer.Option("--tasks", metavar="NAMES", show_default="all", help="Tasks, with commas between."),
        ] = None,
        reading: Annotated[
            str, typer.Option("--reading", metavar="mean,last", help="Vectors taken; each is a row of the table.")
        ] = "mean",
        echo: Annotated[
            str,
            typer.Option(
                "--echo", metavar="none,same,rc",
                help="Read sequences twice, the second time as they are or as their reverse complement; each is a row.",
            ),
        ] = "none",
        lr: Annotated[
            str | None,
            typer.Option(
                "--lr", metavar="RATES", show_default="the benchmark's, or by the model's size",
                help="Learning rates, with commas between; the best on the validation rows is taken, row by row.",
            ),
        ] = None,
        seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Trainings with the rate that is taken.")] = 1,
        seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the first training.")] = 0,
        freeze: Annotated[
            bool | None,
            typer.Option(
                "--freeze/--no-freeze", show_default="as the benchmark has it", help="Train the head alone, or all."
            ),
        ] = None,
        head: Annotated[
            str | None,
            typer.Option("--head", metavar="linear|mlp|cnn", show_default="as the benchmark has it", help="The head."),
        ] = None,
        epochs: Annotated[
            int | None,
            typer.Option("--epochs", metavar="N", show_default="as the benchmark has it", help="Epochs of training."),
        ] = None,
        batch_size: Annotated[
            int | None,
            typer.Option(
                "--batch-size", metavar="N", show_default="as the benchmark has it", help="Sequences per step."
            ),
        ] = None,
        metric: Annotated[
            str | None,
            typer.Option("--metric", metavar="NAME", show_default="as the benchmark has it", help="The measure."),
        ] = None,
        limit: Annotated[
            int | None,
            typer.Option("--limit", metavar="N", show_default="all", help="Training rows of a task, drawn by --seed."),
        ] = None,
        trial_rows: Annotated[
            int | None,
            typer.Option("--trial-rows", metavar="N", show_default="all", help="Training rows rates are tried on."),
        ] = None,
        trial_epochs: Annotated[
            int | None,
            typer.Option(
                "--trial-epochs", metavar="N", show_default="as at the end", help="Epochs that rates are tried for."
            ),
        ] = None,
        task: Annotated[
            str, typer.Option("--task", metavar="NAME", help="classification, multilabel or regression.")
        ] = "classification",
        sequence_column: SequenceColumn = None,
        label_column: LabelColumn = None,
        split_column: Annotated[
            str | None,
            typer.Option(
                "--split-column", metavar="NAME", show_default=False, help="Column that says train, valid or test."
            ),
        ] = None,
        window: Annotated[
            int, typer.Option("--window", metavar="BASES", help="Bases read around each variant.")
        ] = 1024,
        baselines: Annotated[bool, typer.Option("--baselines/--no-baselines", help="Simple models beside.")] = True,
        compare: Annotated[
            bool, typer.Option("--compare", help="Also beside published figures: compare.tsv, compare.md.")
        ] = False,
        strict: Annotated[
            bool, typer.Option("--strict", help="Exit with 3 when a test sequence stands in training too.")
        ] = False,
        allow_remote_code: Annotated[
            bool, typer.Option("--allow-remote-code", help="Run the Python code in an hf: folder; it can do anything.")
        ] = False,
        precision: Annotated[
            str, typer.Option("--precision", metavar="auto|fp32|bf16", help="auto: bf16 on a GPU.")
        ] = "auto",
        device: Device = "auto",
        threads: Threads = None,
        rna: Rna = False,
        rebuild_index: RebuildIndex = False,
        allow_missing_eof: AllowMissingEof = False,
        quiet: Quiet = False,
        summary_json: SummaryJson = None,
    ):  # fmt: skip
        from hybridna_core.commands import evaluate_tasks as core

        with reporting(f"evaluate {benchmark}", quiet, summary_json) as report:
            report.summary = core.evaluate_tasks(
                benchmark, folder, output, model=model, fasta_ref=fasta_ref, tasks=split_words(tasks),
                readings=split_words(reading), echoes=[None if word == "none" else word for word in split_words(echo)],
                rates=parse_rates(lr), seeds=seeds, seed=seed, freeze=freeze, head=head, epochs=epochs,
                batch_size=batch_size, metric=metric, limit=limit, trial_rows=trial_rows, trial_epochs=trial_epochs,
                task=task, sequence_column=sequence_column, label_column=label_column or (),
                split_column=split_column, window=window, baselines=baselines, compare=compare, strict=strict,
                allow_remote_code=allow_remote_code, precision=precision, device=device, rna=rna,
                rebuild_index=rebuild_index, allow_missing_eof=allow_missing_eof, progress=report.progress,
            )  # fmt: skip

    signature = inspect.signature(command)
    kept = [one for name, one in signature.parameters.items() if name not in UNUSED[benchmark]]
    command.__signature__ = signature.replace(parameters=kept)
    command.__doc__ = f"{HELP[benchmark]}\n\n{SAME}"
    return command


def predictions(
    predictions: Annotated[
        str, typer.Argument(metavar="PREDICTIONS", show_default=False, help="TSV as `predict` writes it.")
    ],
    labels: Annotated[str, typer.Argument(metavar="TABLE", show_default=False, help="Table with the true labels.")],
    output: Output = "-",
    task: Annotated[
        str, typer.Option("--task", metavar="NAME", help="classification or regression.")
    ] = "classification",
    sequence_column: SequenceColumn = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", metavar="NAME", show_default="label", help="Column with the label.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):  # fmt: skip
    """What anyone's predictions are worth: measures with 95 % bootstrap intervals, TSV.

    PREDICTIONS has a column name or row (1-based) to pair it by, and p_CLASS for every class, or prediction. What has
    no value is NA, with a reason.
    """
    from hybridna_core.commands import evaluate_predictions as core

    with reporting("evaluate predictions", quiet, summary_json) as report:
        report.summary = core.evaluate_predictions(
            predictions, labels, output, task=task, sequence_column=sequence_column, label_column=label_column,
            force=force,
        )  # fmt: skip
