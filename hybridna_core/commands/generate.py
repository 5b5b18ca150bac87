"""Generate DNA after a label or a prompt, by sampling or by beam search, within constraints; certify what comes out.

options -> Plan -> prompts, each checked before the model loads -> designs -> certificates -> FASTA, table
"""

import collections
import contextlib
import os
import time
from dataclasses import asdict, dataclass, replace

from hybridna_core.certificate import Certificate, Reference, certify, table_columns
from hybridna_core.checkpoint import (
    bundled_names,
    choose_device,
    choose_dtype,
    load_model,
    read_structure,
)
from hybridna_core.data.genome import open_genome
from hybridna_core.data.writers import check_output, open_output
from hybridna_core.design_report import check_report, spell_report
from hybridna_core.errors import DataError, UsageError
from hybridna_core.generation import check_prompt, make_designs, make_plan, start_tokens, why_unusable
from hybridna_core.memory import spell_bytes
from hybridna_core.search import SAMPLE_ROWS, check_memory, count_bytes, count_seconds


@dataclass(frozen=True)
class Summary:
    """What a run of `generate` wrote; `marked` counts prompts without sequences, by reason.

    memory, time  of a dry run: estimates spelt out; what is not known then is None
    """

    sequences: int
    marked: dict
    bases: int
    mean_log_prob: float | None
    seconds: float
    output: str | None
    model: str
    memory: str | None = None
    time: str | None = None

    def to_dict(self):
        return {key: value for key, value in asdict(self).items() if value is not None}


def generate(
    output="-", *, model=None, label=None, prompt="", prompts=None, num_sequences=None, length=None, num_beams=None,
    beam_groups=None, diversity_penalty=None, temperature=None, top_k=None, top_p=None, gc=None, max_homopolymer=None,
    forbid=None, template=None, require=None, seed=0, table=None, report=None, reference=None, device="auto",
    dtype="float32", dry_run=False, force=False, rebuild_index=False, rna=False, allow_missing_eof=False,
    allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Generate sequences and write them as FASTA, each with its certificate; return a Summary.

    output     FASTA to write, `-` for standard output
    model      name, folder, or a loaded model; None: the bundled one that knows the label, base without a label
    prompts    FASTA of many prompts instead of one; each gives num_sequences, as if it were alone
    table      .tsv to write the certificates to as well
    report     .html of pictures and numbers to write as well; needs matplotlib
    reference  FASTA of known sequences; the nearest one to each design is named
    dry_run    check everything that can be checked without the model, estimate memory and time, write nothing
    rebuild_index, rna, allow_missing_eof: as `open_genome` has them, for both FASTA files

    The other keywords are those of `generate_sequences`, num_sequences being its n. A prompt in a file that holds
    other letters than A, C, G, T, is too long or cannot satisfy the constraints stays in the output as it is, with a
    status word.
    """
    start = time.monotonic()
    plan = make_plan(
        num_sequences, length, num_beams, beam_groups, diversity_penalty, temperature, top_k, top_p, seed, gc,
        max_homopolymer, forbid, template, require,
    )  # fmt: skip
    if prompts is not None and prompt:
        raise UsageError("one of --prompt and --prompts, not both", where="--prompts")
    check_outputs(output, table, report, (prompts, reference), force, dry_run)
    model = pick_model(label) if model is None else model
    config, tokenizer = read_model(model)
    reading = {"rebuild_index": rebuild_index, "rna": rna, "allow_missing_eof": allow_missing_eof}
    named = [("design", prompt)] if prompts is None else read_prompts(prompts, **reading)
    compared = None if reference is None else Reference(read_prompts(reference, **reading))
    device, number_format = choose_device(device), choose_dtype(dtype)
    reasons = [None]
    if prompts is None:
        check_prompt(config, tokenizer, label, prompt, plan)
    else:
        reasons = [why_unusable(config, tokenizer, label, given, plan) for _, given in named]
        if all(reasons):
            raise DataError(f"none of {len(named)} prompts can be used ({reasons[0]})", where=prompts)
    usable = [given for (_, given), reason in zip(named, reasons, strict=True) if reason is None]
    longest = max(len(start_tokens(config, tokenizer, label, given)) for given in usable)
    check_memory(config, device, number_format, longest, plan.length, plan.beams)
    if dry_run:
        summary = Summary(plan.count * len(usable), count_marks(reasons), 0, None, 0.0, None, str(model))
        return estimate(summary, config, device, number_format, longest, len(usable), plan, start)
    if isinstance(model, str | os.PathLike):
        model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
    how = plan.to_fields() | {"model": f"{model.name}:{model.digest[:12]}"}
    log_probs, bases = [], 0
    kept = []
    with (
        open_output(output, force) as handle,
        open_lines(table, force) as add,
        open_lines(report, force) as write_report,
    ):
        add("\t".join(table_columns()) + "\n")
        for i, ((name, given), reason) in enumerate(zip(named, reasons, strict=True)):
            if reason is not None:
                designs, certificates = [], [Certificate(name, given, {"status": reason})]
            else:
                designs = make_designs(model, plan, label, given, share(progress, i, len(named)))
                certificates = certify(name, designs, plan.constraints, compared, how)
            for certificate in certificates:
                handle.write(certificate.to_record().encode())
                add(certificate.to_row(model.digest))
            kept += certificates if report is not None else []
            log_probs += [design.log_prob for design in designs]
            bases += sum(len(design.sequence) for design in designs)
        if report is not None:
            write_report(spell_report(kept, None if compared is None else [bases for _, bases in compared.named]))
    mean, marked = sum(log_probs) / len(log_probs), count_marks(reasons)
    return Summary(len(log_probs), marked, bases, mean, time.monotonic() - start, str(output), how["model"])


def generate_sequences(
    model, *, label=None, prompt="", n=None, length=None, num_beams=None, beam_groups=None, diversity_penalty=None,
    temperature=None, top_k=None, top_p=None, gc=None, max_homopolymer=None, forbid=None, template=None, require=None,
    seed=0, progress=None,
):  # fmt: skip
    """Generate n sequences after a label, a prompt, both or neither; return a list of Design.

    label        digits that the model's tokenizer knows, such as "300"
    prompt       bases that every sequence begins with
    n            how many; 10 when None, or the number of beams if that is less
    length       bases to generate after the prompt; those of the template, else 200, when None
    num_beams    None: sampling; 1: the likeliest base at each step; more: beam search, best first
    beam_groups  of equal size, searched one after the other; each keeps off what the earlier ones chose
    diversity_penalty  nats off a base for each earlier group whose beams all chose it at that place; 1 when None
    temperature  divides the log-probabilities before sampling, 1 when None
    top_k, top_p draw from the k likeliest bases, or from the fewest that reach a probability of p
    gc, max_homopolymer, forbid, template, require: constraints, as `parse_constraints` reads them
    seed         of the draws: sequence i depends on seed and i alone, not on n

    With groups fewer than n may come back, as a sequence that several of them found is given once. Raises UsageError
    for what cannot be done, before anything is computed; GuardError when the numbers fail.
    """
    plan = make_plan(
        n, length, num_beams, beam_groups, diversity_penalty, temperature, top_k, top_p, seed, gc, max_homopolymer,
        forbid, template, require,
    )  # fmt: skip
    check_prompt(model.config, model.tokenizer, label, prompt, plan)
    given = len(start_tokens(model.config, model.tokenizer, label, prompt))
    check_memory(model.config, model.device, model.dtype, given, plan.length, plan.beams)
    return make_designs(model, plan, label, prompt, progress)


def check_outputs(output, table, report, inputs, force, dry_run):
    """Raise when an output cannot or must not be written, is one of the others, or is none by its name."""
    if table is not None and not str(table).lower().endswith(".tsv"):
        raise UsageError("the table is a TSV", where=str(table), hint="end its name in .tsv")
    if report is not None:
        check_report(report)
    paths = [path for path in (output, table, report) if path is not None]
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise UsageError("two outputs have one name", where=str(output), hint="give each its own")
    for path in paths:
        if not dry_run:
            check_output(path, inputs=inputs, force=force)


def pick_model(label):
    """Return the bundled model that knows a label; `base` without a label, or when none does."""
    for name in bundled_names() if label is not None else ():
        tokenizer = read_structure(name)[1]
        if tokenizer.label_positions:
            try:
                tokenizer.encode_label(label)
            except UsageError:
                continue
            return name
    return "base"


def read_model(model):
    """Return config and tokenizer of a loaded model, or of a name or folder without loading it."""
    is_name = isinstance(model, str | os.PathLike)
    return read_structure(model) if is_name else (model.config, model.tokenizer)


def read_prompts(path, **reading):
    """Return (name, bases) of each record of a FASTA; letters other than A, C, G, T come as N.

    reading  options of `open_genome`
    """
    with open_genome(path, other_letters="n", **reading) as genome:
        return [(name, genome.fetch(name, 0, length)) for name, length in genome.contigs.items()]


def count_marks(reasons):
    """Return {status: prompts} of those that cannot be used."""
    return dict(collections.Counter(reason for reason in reasons if reason is not None))


def estimate(summary, config, device, dtype, given, prompts, plan, start):
    """Fill in a dry run's Summary how much memory and time it would take."""
    rows = SAMPLE_ROWS if plan.beams is None else plan.beams.width
    per_row, fixed = count_bytes(config, device, dtype, given, plan.length, plan.beams)
    blocks = -(-plan.count // SAMPLE_ROWS) if plan.beams is None else 1
    seconds = prompts * blocks * count_seconds(config, device, dtype, given, plan.length, rows)
    return replace(
        summary, memory=f"about {spell_bytes(fixed + rows * per_row)}", time=f"about {seconds:,.0f} s",
        bases=summary.sequences * plan.length, seconds=time.monotonic() - start,
    )  # fmt: skip


def share(progress, i, count):
    """Return a progress callable for the i-th of `count` equal parts, or None."""
    if progress is None:
        return None
    return lambda done, total: progress(i * total + done, count * total)


@contextlib.contextmanager
def open_lines(path, force):
    """Yield write(text) for a further output; without a path it does nothing."""
    if path is None:
        yield lambda text: None
        return
    with open_output(path, force) as handle:
        yield lambda text: handle.write(text.encode())
