"""Option types that commands share, each with its help.

command file -> parameter annotated with one of these -> the keyword of the same name in the core
"""

import os
import sys
from typing import Annotated

import typer

from hybridna_core.errors import UsageError

# The thread library ends the process, with no word, when it cannot make as many as it is told.
THREADS_LIMIT = 1024


def check_stdin(path):
    """Raise UsageError when `-` is asked for but nothing can be read from standard input."""
    if path == "-" and (sys.stdin is None or sys.stdin.closed or sys.stdin.isatty()):
        state = "a terminal" if sys.stdin and not sys.stdin.closed and sys.stdin.isatty() else "closed"
        raise UsageError(f"standard input is {state}", where="-", hint="pipe data into it, or name a file")
    return path


def parse_batch_size(value):
    """Turn `auto` or a number of at least 1 into "auto" or an int; raise UsageError for anything else."""
    if value is None or value == "auto":
        return value
    if not (str(value).isascii() and str(value).isdigit()) or int(value) < 1:
        raise UsageError(f"is {value!r}, must be auto or a whole number of at least 1", where="--batch-size")
    return int(value)


def use_threads(value):
    """Hold torch to this many CPU threads; a setting of the process, so the core has no keyword for it."""
    if value is None:
        return value
    if not 1 <= value <= THREADS_LIMIT:
        raise UsageError(f"is {value:,}, must be 1 to {THREADS_LIMIT:,}", where="--threads")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(value)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(value)
    return value


def choose_shard(value):
    """Take `i/n` as it is given, else from the environment of a job; `none` is no shard."""
    from hybridna_core.data.shards import find_shard

    if value is None:
        return find_shard(os.environ)
    return None if value == "none" else value


Input = Annotated[str, typer.Argument(metavar="FILE", callback=check_stdin, show_default=False)]
Fasta = Annotated[
    str,
    typer.Option(
        "-f", "--fasta-ref", envvar="HYBRIDNA_FASTA", metavar="FILE", show_default=False,
        help="Reference FASTA, plain or bgzip.",
    ),
]  # fmt: skip
Output = Annotated[
    str,
    typer.Option("-o", "--output", metavar="FILE", help="Where to write; its suffix sets the type; - is stdout."),
]
WriteIndex = Annotated[bool, typer.Option("-W", "--write-index", help="Index the output (.tbi, of a BCF .csi).")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Model = Annotated[
    str,
    typer.Option(
        "-m", "--model", metavar="NAME",
        help="Bundled model, a model folder of ours, or a published HybriDNA folder.",
    ),
]  # fmt: skip
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[
    str, typer.Option("--dtype", metavar="TYPE", help="Precision of weights and products: float32 or bfloat16.")
]
AllowNonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Accept weights that are NaN or infinite.")]
BatchSize = Annotated[
    str,
    typer.Option("--batch-size", metavar="N", callback=parse_batch_size, help="Rows per pass; never changes a result."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random, 0 to 2^64 - 1.")]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="i/n", callback=choose_shard, show_default="of the job's environment; none: all",
        help="Do part i of n, from 1 to n; hybridna merge joins the parts.",
    ),
]  # fmt: skip
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", callback=use_threads, show_default=False, help="CPU threads to use."),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no closing summary.")]
SummaryJson = Annotated[
    str | None,
    typer.Option("--summary-json", metavar="FILE", show_default=False, help="Write the closing summary as JSON."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, with memory, before the model loads; then stop.")
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window", metavar="BASES", show_default="the smaller of 8192 and what the model reads at once",
        help="Bases read in one pass.",
    ),
]  # fmt: skip
Horizon = Annotated[
    int | None,
    typer.Option(
        "--horizon", metavar="BASES", show_default="half the window",
        help="Bases counted from the first changed base on; fewer are faster, and another score.",
    ),
]  # fmt: skip
RebuildIndex = Annotated[bool, typer.Option("--rebuild-index", help="Build the FASTA index anew.")]
OtherLetters = Annotated[
    str | None,
    typer.Option(
        "--other-letters", metavar="n", show_default=False, help="n: read letters that are no bases as N."
    ),
]  # fmt: skip
Rna = Annotated[bool, typer.Option("--rna", help="Read U as T.")]
AllowMissingEof = Annotated[
    bool, typer.Option("--allow-missing-eof", help="Accept bgzip files without their closing block.")
]
RenameChrs = Annotated[
    str | None,
    typer.Option(
        "--rename-chrs", metavar="FILE", show_default=False,
        help="Two columns, old and new contig name, for inputs named otherwise than the FASTA.",
    ),
]  # fmt: skip
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 when a record was marked or a warning says so.")]
NoVersion = Annotated[bool, typer.Option("--no-version", help="Leave program and run lines out of the header.")]
RegionFasta = Annotated[
    str | None,
    typer.Option(
        "-f", "--fasta-ref", metavar="FILE", show_default=False, envvar="HYBRIDNA_FASTA",
        help="Genome of a table of regions, plain or bgzip.",
    ),
]  # fmt: skip
SequenceColumn = Annotated[
    str | None,
    typer.Option("--sequence-column", metavar="NAME", show_default="sequence", help="Column with the bases."),
]
LabelColumn = Annotated[
    list[str] | None,
    typer.Option(
        "--label-column", metavar="NAME", show_default="label", help="Column with the label; repeatable; BED: name."
    ),
]  # fmt: skip
