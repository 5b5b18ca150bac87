"""Model folders as a user meets them: list, show, import and check.

name or folder -> manifest or published headers -> lines and tables; import -> report -> HybridLM -> folder of ours
"""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hybridna_core.checkpoint import (
    STORED_DTYPES,
    bundled_names,
    check_target,
    is_own_folder,
    load_model,
    read_notice,
    read_own_folder,
    resolve_folder,
    save_model,
    weights_digest,
)
from hybridna_core.data.writers import check_output, open_output
from hybridna_core.errors import HybriDNAError, UsageError
from hybridna_core.hf_weights import OFFICIAL_ELEMENTS, Report, load_published, plan_import, stored_dtype
from hybridna_core.part_files import read_scheme
from hybridna_core.weight_files import check_inside

CARD_BYTES_LIMIT, LABELS_SHOWN = 2**20, 16


class ModelLine(NamedTuple):
    """One model in short; `state` is `ok` or what is wrong with it."""

    name: str
    elements: int | None
    layers: int | None
    hidden_size: int | None
    context: int | None
    labels: str | None
    state: str

    def to_dict(self):
        return self._asdict()


def list_models(progress=None):
    """Describe every bundled model; a damaged one stands in the list with its fault."""
    lines = []
    for i, name in enumerate(bundled_names()):
        try:
            about = show_model(name)
        except HybriDNAError as error:
            lines.append(ModelLine(name, None, None, None, None, None, str(error)))
            continue
        c = about.config
        shape = (c["num_hidden_layers"], c["hidden_size"], c["max_position_embeddings"])
        lines.append(ModelLine(name, about.elements, *shape, about.labels, "ok"))
        if progress:
            progress(i + 1, None)
    return lines


@dataclass
class ModelAbout:
    """All that is known of a model folder without reading its weights into memory."""

    name: str
    folder: str
    kind: str
    elements: int
    digest: str | None
    written_by: str | None
    labels: str
    config: dict
    card: str = ""
    notice: str = ""
    report: Report | None = None
    scheme: dict | None = None

    def to_dict(self):
        return {**vars(self), "report": self.report and self.report.to_dict()}

    def lines(self):
        """Spell it for people, one fact a line, the model card last."""
        c = self.config
        layers = c["layer_types"]
        places = ", ".join(str(i) for i, kind in enumerate(layers) if kind == "attention") or "none"
        yield f"name        {self.name}"
        if self.notice:
            yield f"notice      {self.notice}"
        yield f"folder      {self.folder} ({self.kind})"
        yield f"elements    {self.elements:,}"
        yield f"layers      {len(layers)}, attention at {places} (counted from 0)"
        yield f"width       {c['hidden_size']}, MLP {c['intermediate_size']}"
        state = f"{c['mamba_n_groups']} groups x {c['mamba_d_state']}"
        yield f"mamba       {c['mamba_n_heads']} heads x {c['mamba_d_head']}, state {state}"
        yield f"attention   {c['num_attention_heads']} query heads, {c['num_key_value_heads']} key/value heads"
        yield f"context     {c['max_position_embeddings']:,} tokens"
        yield f"vocabulary  {c['vocab_size']}; labels: {self.labels}"
        yield from self._label_lines()
        if self.digest:
            yield f"weights     SHA-256 {self.digest}"
        if self.written_by:
            yield f"written by  hybridna {self.written_by}"
        if self.report:
            yield from self.report.lines()
        if self.card:
            yield ""
            yield self.card.rstrip("\n")

    def _label_lines(self):
        """Spell the labels that the model was trained on: what each digit says, and how often each label stood."""
        if self.scheme is None:
            return
        for number, position in enumerate(self.scheme["positions"], start=1):
            values, meaning = position["values"], position["meaning"]
            yield f"digit {number}     {position['name']}: {values[0]}-{values[-1]}" + (
                f", {meaning}" if meaning else ""
            )
        if self.scheme.get("length"):
            yield f"length      {self.scheme['length']:,} bases, as most sequences of the training"
        counts = self.scheme["frequencies"]
        possible = math.prod(len(position["values"]) for position in self.scheme["positions"])
        yield f"trained on  {self.scheme['rows']:,} sequences with {len(counts):,} of {possible:,} labels"
        shown = sorted(counts, key=lambda label: (-counts[label], label))[:LABELS_SHOWN]
        more = f", and {len(counts) - len(shown):,} more" if len(counts) > len(shown) else ""
        yield "            " + ", ".join(f"{label} ({counts[label]:,})" for label in shown) + more


def show_model(name):
    """Describe a bundled model, a folder of ours (verified) or a published folder; raise ModelError if damaged."""
    folder = resolve_folder(name)
    card = _read_card(folder)
    if not is_own_folder(folder):
        plan = plan_import(folder)
        c, labels = plan.report.config, plan.tokenizer.describe_labels()
        return ModelAbout(
            folder.name, str(folder), "published", plan.report.elements, None, None, labels, c, card, report=plan.report
        )
    manifest, config, tokenizer, headers = read_own_folder(folder)
    return ModelAbout(
        name=folder.resolve().name,
        folder=str(folder),
        kind="ours",
        elements=sum(entry.elements for entry in headers.values()),
        digest=weights_digest(manifest, headers),
        written_by=manifest.get("hybridna"),
        labels=tokenizer.describe_labels(),
        config=config.to_dict(),
        card=card,
        notice=read_notice(folder, manifest),
        scheme=read_scheme(folder),
    )


def _read_card(folder):
    path = Path(folder) / "README.md"
    if not path.is_file():
        return ""
    check_inside(path, folder)
    with open(path, "rb") as handle:
        return handle.read(CARD_BYTES_LIMIT).decode("utf-8", "replace")


@dataclass
class ImportSummary:
    """What an import wrote."""

    output: str
    dtype: str
    digest: str
    seconds: float
    report: Report = field(repr=False)

    def to_dict(self):
        counts = {k: len(getattr(self.report, k)) for k in ("loaded", "missing", "unexpected", "mismatched")}
        return {
            "output": self.output, "elements": self.report.elements, "official": self.report.official,
            "dtype": self.dtype, **counts, "assumed": len(self.report.assumed),
            "conflicting": len(self.report.conflicting), "digest": self.digest, "seconds": self.seconds,
        }  # fmt: skip


def import_model(
    folder, output, *, json=None, force=False, allow_partial=False, accept_conflicts=False, allow_nonfinite=False,
    n_groups=None, attention_heads=None, dtype="auto", progress=None,
):  # fmt: skip
    """Turn a published HybriDNA folder into a folder of ours; return an ImportSummary.

    json              file for the machine-readable report, written even when the import is refused
    allow_partial     load what fits, the rest keeps fresh initial weights
    accept_conflicts  go on where config.json contradicts the shapes in what shapes cannot settle
    n_groups, attention_heads  go over config.json
    dtype             auto keeps the stored one (bfloat16, else float32)

    Raises ModelError, carrying the report as `error.report`, when tensors or settings do not fit.
    """
    began = time.monotonic()
    source = resolve_folder(folder)
    if is_own_folder(source):
        raise UsageError("is a model folder of ours already", where=source, hint="use it with --model")
    if dtype not in ("auto", *STORED_DTYPES):
        raise UsageError(f"dtype {dtype!r} is unknown", hint=f"one of auto, {', '.join(STORED_DTYPES)}")
    check_target(output, force=force)
    if Path(output).resolve() == source.resolve():
        raise UsageError("the output is the folder to import", where=output, hint="give another -o")
    if json is not None:
        check_output(json, force=force)
    report = None
    try:
        plan = plan_import(source, n_groups=n_groups, attention_heads=attention_heads)
        report = plan.report
        kept = stored_dtype(plan) if dtype == "auto" else dtype
        model = load_published(
            source, device="cpu", dtype=kept, allow_nonfinite=allow_nonfinite, allow_partial=allow_partial,
            accept_conflicts=accept_conflicts, plan=plan,
        )  # fmt: skip
    finally:
        if report is not None and json is not None:
            write_report(json, report.to_dict(), force)
    model.name = Path(output).resolve().name
    save_model(
        output, model, card=_import_card(source, model), force=force, dtype=kept,
        extra_files={"import_report.json": _to_json(report.to_dict())},
    )  # fmt: skip
    # Reading it back proves that it is whole.
    manifest, _, _, headers = read_own_folder(output)
    digest = weights_digest(manifest, headers)
    return ImportSummary(str(output), kept, digest, time.monotonic() - began, report)


def _import_card(source, model):
    lines = "\n".join(f"- {line}" for line in model.report.lines())
    return (
        f"# {model.name}\n\nImported from the published folder `{source.resolve().name}` "
        f"(SHA-256 of its weights: {model.digest}).\nIts licence and card are those of its authors.\n\n{lines}\n"
    )


@dataclass
class CheckSummary:
    """What a check found; `outcomes` are those of hf_check, the model's own setting first."""

    name: str
    probes: int
    bases: int
    seconds: float
    outcomes: list = field(repr=False)
    verdict: object = field(repr=False)
    report: Report | None = field(repr=False, default=None)

    def to_dict(self):
        return {
            "name": self.name, "probes": self.probes, "bases": self.bases, "seconds": self.seconds,
            "verdict": self.verdict.to_dict(), "outcomes": [o.to_dict() for o in self.outcomes],
            "report": self.report and self.report.to_dict(),
        }  # fmt: skip

    def brief(self):
        """Return the counts and the verdict in short, for the closing summary."""
        return {
            "settings": len(self.outcomes), "probes": self.probes, "bases": self.bases, "seconds": self.seconds,
            "default": self.verdict.default.nats, "best": self.verdict.best.nats,
            "best_differs_in": "; ".join(self.verdict.best.setting.differences(self.verdict.default.setting)) or None,
            "published_reproduced": self.verdict.reproduced,
        }  # fmt: skip

    def table(self, limit=40):
        """Return rows of text: a heading, the model's own setting, then the others, best first."""
        heading = ("groups", "heads", "letters", "before", "offset", "nats/base", "all tokens", "differs in")
        own = self.outcomes[0]
        shown = [own, *sorted(self.outcomes[1:], key=lambda o: o.nats)[:limit]]
        rows = [
            (*map(str, o.setting), f"{o.nats:.4f}", f"{o.nats_vocabulary:.4f}",
             ", ".join(o.setting.differences(own.setting)) or "(own)")
            for o in shown
        ]  # fmt: skip
        return [heading, *rows]


def check_model(
    folder, *, json=None, force=False, exhaustive=False, all_probes=False, device="auto", dtype="float32",
    allow_partial=False, allow_nonfinite=False, n_groups=None, attention_heads=None, progress=None,
):  # fmt: skip
    """Search the reading that suits a model best, and report only; return a CheckSummary.

    Groups, attention heads, letter orders, special tokens and target offsets are changed one at a time from the
    model's own setting, or all together when `exhaustive`, on 8 public probes, or all 112. For an official size the
    log-likelihoods are compared with those published. Nothing is changed in the folder.

    json  file for the machine-readable form
    """
    from hybridna_core.hf_check import judge, read_probes, search
    from hybridna_core.model.hybrid import count_parameters

    began = time.monotonic()
    if json is not None:
        check_output(json, force=force)
    source = resolve_folder(folder)
    if is_own_folder(source):
        if n_groups is not None or attention_heads is not None:
            raise UsageError("goes with published folders only", where="--n-groups, --attention-heads")
        model = load_model(source, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
        report, size = None, OFFICIAL_ELEMENTS.get(count_parameters(model.config))
    else:
        plan = plan_import(source, n_groups=n_groups, attention_heads=attention_heads)
        # What conflicts is what the search is there to settle.
        model = load_published(
            source, device=device, dtype=dtype, allow_partial=allow_partial, allow_nonfinite=allow_nonfinite,
            accept_conflicts=True, plan=plan,
        )  # fmt: skip
        report, size = plan.report, plan.report.official
    probes = read_probes(every=all_probes)
    outcomes = search(model, probes, exhaustive, progress)
    verdict = judge(outcomes, probes, size)
    bases = sum(len(p.sequence) for p in probes)
    summary = CheckSummary(model.name, len(probes), bases, time.monotonic() - began, outcomes, verdict, report)
    if json is not None:
        write_report(json, summary.to_dict(), force)
    return summary


def _to_json(table):
    return json.dumps(table, indent=2) + "\n"


def write_report(path, table, force=False):
    """Write a report as JSON; `-` is stdout."""
    check_output(path, force=force)
    with open_output(path, force=force) as handle:
        handle.write(_to_json(table).encode())
