"""`hybridna models`: list, show, import and check model folders."""

from contextlib import contextmanager
from typing import Annotated

import typer

from hybridna_cli.console import reporting
from hybridna_cli.options import AllowNonfinite, Device, Dtype, Force, Quiet, SummaryJson, Threads
from hybridna_core.errors import ModelError

models_app = typer.Typer(
    help="List, show, import and check model folders.", rich_markup_mode=None, no_args_is_help=False
)

Folder = Annotated[str, typer.Argument(metavar="DIR", show_default=False, help="A published HybriDNA folder.")]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", show_default=False, help="Write the machine-readable report; - is stdout."),
]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="Load the tensors that fit; the rest keeps fresh initial weights.")
]
NGroups = Annotated[
    int | None,
    typer.Option("--n-groups", metavar="N", show_default=False, help="Mamba groups, whatever config.json says."),
]
AttentionHeads = Annotated[
    int | None,
    typer.Option("--attention-heads", metavar="N", show_default=False, help="Query heads, whatever config.json says."),
]


def print_table(rows):
    """Print rows of text in columns as wide as they need."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_lines(lines):
    """Print each line on stdout."""
    for line in lines:
        print(line)


@contextmanager
def report_of_refusal(json):
    """Print the report that a refused published folder carries, unless stdout is for JSON."""
    try:
        yield
    except ModelError as error:
        if json != "-" and getattr(error, "report", None) is not None:
            print_lines(error.report.lines())
        raise


@models_app.command("list")
def list_():
    """List the models that ship with the package."""
    from hybridna_core.commands.models import list_models

    rows = [("name", "elements", "layers", "width", "context", "labels", "state")]
    for line in list_models():
        rows.append(tuple("-" if v is None else f"{v:,}" if isinstance(v, int) else v for v in line))
    print_table(rows)


@models_app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="Bundled model or model folder.")],
    json: Json = None,
    force: Force = False,
):
    """Tell a model's structure, digest and card; its files are verified, no weights are loaded."""
    from hybridna_core.commands.models import show_model, write_report

    about = show_model(name)
    if json is not None:
        write_report(json, about.to_dict(), force)
    if json != "-":
        print_lines(about.lines())


@models_app.command("import")
def import_(
    folder: Folder,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="OUT", show_default=False, help="Model folder to write.")
    ],
    json: Json = None,
    allow_partial: AllowPartial = False,
    accept_conflicts: Annotated[
        bool,
        typer.Option(
            "--accept-conflicts", help="Go on where config.json contradicts the shapes in what they cannot settle."
        ),
    ] = False,
    allow_nonfinite: AllowNonfinite = False,
    n_groups: NGroups = None,
    attention_heads: AttentionHeads = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="TYPE", help="Stored precision: auto (as it is), float32 or bfloat16.")
    ] = "auto",
    threads: Threads = None,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):
    """Turn a published HybriDNA folder into a model folder of ours.

    Names and structure are read from the tensors, the rest from config.json; every assumption and conflict is printed.
    Remote code is never run, pickles are refused.
    """
    from hybridna_core.commands.models import import_model

    with reporting("models import", quiet, summary_json) as shown, report_of_refusal(json):
        summary = import_model(
            folder, output, json=json, force=force, allow_partial=allow_partial, accept_conflicts=accept_conflicts,
            allow_nonfinite=allow_nonfinite, n_groups=n_groups, attention_heads=attention_heads, dtype=dtype,
            progress=shown.progress,
        )  # fmt: skip
        if json != "-":
            print_lines(summary.report.lines())
        shown.summary = summary


@models_app.command()
def check(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", show_default=False, help="Published folder, folder of ours or bundled name.")
    ],
    json: Json = None,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Try all combinations, not one change at a time.")
    ] = False,
    all_probes: Annotated[bool, typer.Option("--all-probes", help="Read all 112 probes, not 8.")] = False,
    allow_partial: AllowPartial = False,
    allow_nonfinite: AllowNonfinite = False,
    n_groups: NGroups = None,
    attention_heads: AttentionHeads = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    threads: Threads = None,
    force: Force = False,
    quiet: Quiet = False,
    summary_json: SummaryJson = None,
):
    """Search how a model's tokens and weights are to be read; report only, change nothing.

    Groups, head layouts, letter orders, special tokens and target offsets are tried on public probes whose
    log-likelihoods under the official weights are published.
    """
    from hybridna_core.commands.models import check_model

    with reporting("models check", quiet, summary_json) as shown, report_of_refusal(json):
        summary = check_model(
            folder, json=json, force=force, exhaustive=exhaustive, all_probes=all_probes, device=device, dtype=dtype,
            allow_partial=allow_partial, allow_nonfinite=allow_nonfinite, n_groups=n_groups,
            attention_heads=attention_heads, progress=shown.progress,
        )  # fmt: skip
        if json != "-":
            if summary.report is not None:
                print_lines(summary.report.lines())
                print()
            print_table(summary.table())
            print()
            print_lines(summary.verdict.lines())
        shown.summary = summary.brief()
