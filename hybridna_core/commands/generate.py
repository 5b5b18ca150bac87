"""Generate DNA after a label or a prompt, by sampling or by beam search, within constraints; certify what comes out.

options -> Plan -> prompts, each checked before the model loads -> designs -> certificates -> FASTA, table
"""

import collections
import hashlib
import os
import time
from dataclasses import asdict, dataclass, replace

from hybridna_core.certificate import Certificate, Reference, certify, read_certificates, table_columns
from hybridna_core.checkpoint import (
    bundled_names,
    choose_device,
    choose_dtype,
    load_model,
    read_structure,
    resolve_folder,
    version,
)
from hybridna_core.data.genome import open_genome
from hybridna_core.data.partial import finish_renaming, hold_outputs
from hybridna_core.data.shards import parse_shard
from hybridna_core.data.writers import check_output
from hybridna_core.design_report import check_report, spell_report
from hybridna_core.errors import DataError, UsageError
from hybridna_core.generation import check_prompt, make_designs, make_plan, start_tokens, why_unusable
from hybridna_core.memory import keep_freed_memory, spell_bytes
from hybridna_core.part_files import read_scheme
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
    forbid=None, template=None, require=None, seed=0, table=None, report=None, reference=None, shard=None,
    device="auto", dtype="float32", dry_run=False, force=False, rebuild_index=False, rna=False, allow_missing_eof=False,
    allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Generate sequences and write them as FASTA, each with its certificate; return a Summary.

    output     FASTA to write, `-` for standard output
    model      name, folder, or a loaded model; None: the bundled one that knows the label, base without a label
    prompts    FASTA of many prompts instead of one; each gives num_sequences, as if it were alone
    table      .tsv to write the certificates to as well
    report     .html of pictures and numbers to write as well; needs matplotlib
    reference  FASTA of known sequences; the nearest one to each design is named
    shard      `i/n`: the i-th of n parts of the prompts alone; written one after the other the parts are the whole
    dry_run    check everything that can be checked without the model, estimate memory and time, write nothing
    rebuild_index, rna, allow_missing_eof: as `open_genome` has them, for both FASTA files

    The other keywords are those of `generate_sequences`, num_sequences being its n. A prompt in a file that holds
    other letters than A, C, G, T, is too long or cannot satisfy the constraints stays in the output as it is, with a
    status word.
    """
    start = time.monotonic()
    model = pick_model(label) if model is None else model
    if length is None and template is None:
        length = usual_length(model, label)
    plan = make_plan(
        num_sequences, length, num_beams, beam_groups, diversity_penalty, temperature, top_k, top_p, seed, gc,
        max_homopolymer, forbid, template, require,
    )  # fmt: skip
    if prompts is not None and prompt:
        raise UsageError("one of --prompt and --prompts, not both", where="--prompts")
    part = parse_shard(shard)
    if part is not None and prompts is None:
        hint = "--shard none, and another --seed for each job"
        raise UsageError("divides prompts, and there is but one", where="--shard", hint=hint)
    if not dry_run:
        finish_renaming(output)
    check_outputs(output, table, report, (prompts, reference), force, dry_run)
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
    jobs = cut(list(zip(named, reasons, strict=True)), part)
    lengths = [len(start_tokens(config, tokenizer, label, given)) for (_, given), reason in jobs if reason is None]
    longest = max(lengths, default=0)
    check_memory(config, device, number_format, longest, plan.length, plan.beams)
    if dry_run:
        marked = count_marks(reason for _, reason in jobs)
        summary = Summary(plan.count * len(lengths), marked, 0, None, 0.0, None, str(model))
        return estimate(summary, config, device, number_format, longest, len(lengths), plan, start)
    # A pass takes and frees the states of all its rows.
    keep_freed_memory()
    with hold_outputs([output, table, report], force) as outputs:
        if isinstance(model, str | os.PathLike):
            model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
        how = plan.to_fields() | {"model": f"{model.name}:{model.digest[:12]}"}
        texts = Texts(outputs, table is not None, report is not None, part is None or part.index == 1)
        tally = texts.begin(take_fingerprint(plan, label, jobs, compared, model, part))
        for i, ((name, given), reason) in list(enumerate(jobs))[tally["records"] :]:
            if reason is not None:
                texts.add([Certificate(name, given, {"status": reason})], model.digest)
            else:
                designs = make_designs(model, plan, label, given, share(progress, i, len(jobs)))
                texts.add(certify(name, designs, plan.constraints, compared, how), model.digest)
                tally["sequences"] += len(designs)
                for design in designs:
                    tally["bases"] += len(design.sequence)
                    tally["log_prob"] += design.log_prob
            tally["records"] += 1
            if outputs.is_due():
                outputs.save([b""] * len(outputs.handles), tally)
        texts.finish(compared)
    count, marked = tally["sequences"], count_marks(reason for _, reason in jobs)
    mean = tally["log_prob"] / count if count else None
    return Summary(count, marked, tally["bases"], mean, time.monotonic() - start, str(output), how["model"])


class Texts:
    """Writes certificates into the outputs that are wanted, and goes on where an earlier run was stopped.

    has_header  the table begins with the names of its columns
    """

    def __init__(self, outputs, has_table, has_report, has_header):
        self.outputs, self.has_table, self.has_header = outputs, has_table, has_header
        self.kept = [] if has_report else None

    def begin(self, fingerprint):
        """Open the outputs; return what was counted before, `records` being the prompts that are done."""
        tally, _ = self.outputs.begin(fingerprint)
        if tally is None:
            if self.has_table and self.has_header:
                self.outputs.handles[1].write(("\t".join(table_columns()) + "\n").encode())
            return {"records": 0, "sequences": 0, "bases": 0, "log_prob": 0.0}
        if self.kept is not None:
            with open(self.outputs.handles[0].name, encoding="utf-8") as handle:
                self.kept = list(read_certificates(handle))
        return tally

    def add(self, certificates, model_digest):
        """Write the certificates of one prompt."""
        for certificate in certificates:
            record = certificate.to_record()
            self.outputs.handles[0].write(record.encode())
            if self.has_table:
                self.outputs.handles[1].write(certificate.to_row(model_digest).encode())
            if self.kept is not None:
                # As they stand in the FASTA, from which a run that goes on takes them.
                self.kept += read_certificates(record.splitlines())

    def finish(self, compared):
        """Write the report, and let the outputs take their names."""
        if self.kept is not None:
            known = None if compared is None else [bases for _, bases in compared.named]
            self.outputs.handles[-1].write(spell_report(self.kept, known).encode())
        self.outputs.finish()


def cut(jobs, part):
    """Return the jobs of a Shard, or all."""
    if part is None:
        return jobs
    if part.count > len(jobs):
        raise UsageError(f"is {part}, but there are {len(jobs):,} prompts", where="--shard")
    return jobs[len(jobs) * (part.index - 1) // part.count : len(jobs) * part.index // part.count]


def take_fingerprint(plan, label, jobs, compared, model, part):
    """Return what must stay the same for a run to be gone on with, by names in words."""

    def digest(thing):
        return hashlib.sha256(repr(thing).encode()).hexdigest()

    return {
        "the version": version(), "the options": repr((plan, label)), "the prompts": digest(jobs),
        "the known sequences": digest(compared and compared.named), "the shard": str(part),
        "the model": f"{model.digest} {model.dtype} {model.device.type}",
    }  # fmt: skip


def generate_sequences(
    model, *, label=None, prompt="", n=None, length=None, num_beams=None, beam_groups=None, diversity_penalty=None,
    temperature=None, top_k=None, top_p=None, gc=None, max_homopolymer=None, forbid=None, template=None, require=None,
    seed=0, progress=None,
):  # fmt: skip
    """Generate n sequences after a label, a prompt, both or neither; return a list of Design.

    label        digits that the model's tokenizer knows, such as "300"
    prompt       bases that every sequence begins with
    n            how many; 10 when None, or the number of beams if that is less
    length       bases to generate after the prompt; when None those of the template, else of most sequences that a
                 model with labels was trained on, else 200
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
    if length is None and template is None:
        length = usual_length(model, label)
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


def usual_length(model, label):
    """Return the bases of most sequences that a model was trained on after labels; None without a label."""
    if label is None:
        return None
    folder = resolve_folder(model) if isinstance(model, str | os.PathLike) else model.folder
    scheme = None if folder is None else read_scheme(folder)
    return None if scheme is None else scheme.get("length")


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
