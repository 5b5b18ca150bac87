"""Verify scores: a sample of them is computed again from the reference and the model that the header names.

header -> run line -> sample of scored alleles -> reference and model compared by digest -> Scorer -> differences
"""

import random
import time
from typing import NamedTuple

import numpy as np

from hybridna_core.calibration import Calibration
from hybridna_core.checkpoint import load_model
from hybridna_core.data.genome import open_genome, read_renames
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.variants import read_alleles
from hybridna_core.data.vcf import VcfReader
from hybridna_core.errors import DataError, ModelError, UsageError
from hybridna_core.score_fields import FIELDS, read_runs
from hybridna_core.scoring import Scorer, check_distance, is_name, make_plan

SEED_LIMIT = 2**64
NATS = ("LLR", "FWD", "REV")


class Summary(NamedTuple):
    """What was found; a score that differs is an error and never gets here.

    records     of the input
    scored      alleles with a score there
    checked     of them computed again
    difference  the largest between a number and the same computed again, nats
    """

    records: int
    scored: int
    checked: int
    difference: float
    model: str
    seconds: float

    def to_dict(self):
        return self._asdict()


def verify(
    vcf, fasta_ref, *, model=None, calibration=None, sample=100, seed=0, tolerance=1e-4, info_prefix="HD_",
    rename_chrs=None, device="auto", rebuild_index=False, other_letters=None, rna=False, allow_missing_eof=False,
    allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Compute a sample of a file's scores again and compare; return a Summary.

    vcf          VCF, VCF.gz or BCF that score_variants wrote
    fasta_ref    the reference that it was scored with
    model        name, folder, or a loaded model; what the header names when None
    calibration  the file that it was scored with, without which percentiles are not compared
    sample       scored alleles to compute again, drawn evenly from all
    seed         of the draw
    tolerance    difference allowed, as a share of the score or in nats, whichever is more; ten times that share of a
                 distance
    info_prefix  of the fields' names
    rename_chrs  the table that the file was scored with

    Window, horizon, stride and precision are the header's. Raises DataError for scores that differ, for another
    reference and for a file without the run's header line, ModelError for another model.
    """
    start = time.monotonic()
    check_numbers(sample, seed, tolerance)
    for path in (vcf, fasta_ref):
        check_input(path, random_access=path is fasta_ref)
    renames = read_renames(rename_chrs) if rename_chrs is not None else {}
    with (
        open_genome(fasta_ref, rebuild_index, other_letters, rna, allow_missing_eof) as genome,
        VcfReader(vcf, allow_missing_eof=allow_missing_eof) as reader,
    ):
        run = find_run(reader.header, info_prefix, vcf)
        drawn, records, scored = draw(reader, info_prefix, sample, seed)
        if not drawn:
            warn("empty-input", f"{vcf}: no scores")
        check_reference(run, genome, {genome.resolve(record.contig, renames) for record, _ in drawn}, vcf)
        model = load_named(model, run, device, allow_nonfinite, vcf)
        plan = make_plan(model.config, *(int(run[key]) for key in ("Window", "Horizon", "Stride")))
        distance = run.get("Distance")
        check_distance(distance)
        matched = read_calibration(calibration, run, vcf)
        scorer, largest, wrong = Scorer(model, genome, plan, distance=distance), 0.0, []
        for number, (record, index) in enumerate(drawn, start=1):
            check_ref = "s" if value_of(record, info_prefix, "ST", index) == "swapped" else "w"
            alleles = read_alleles(record, genome, path=vcf, renames=renames, check_ref=check_ref, horizon=plan.horizon)
            found = scorer.score(alleles[index])
            difference, text = compare_score(record, index, found, info_prefix, tolerance)
            largest = max(largest, difference)
            if matched is not None and not text:
                text = compare_place(record, index, matched, alleles[index], found, genome, info_prefix, tolerance)
            wrong += [text] if text else []
            if progress is not None:
                progress(number, len(drawn))
    if wrong:
        what = f"{len(wrong):,} of {len(drawn):,} scores are not what they were: {wrong[0]}"
        hint = "was the file edited, or scored by another release? hybridna explain shows how it was made"
        raise DataError(what, where=vcf, hint=hint)
    return Summary(records, scored, len(drawn), largest, model.name, time.monotonic() - start)


def check_numbers(sample, seed, tolerance):
    """Raise UsageError for numbers that mean nothing."""
    if sample < 1:
        raise UsageError(f"is {sample:,}, must be at least 1", where="--sample")
    if not 0 <= seed < SEED_LIMIT:
        raise UsageError(f"is {seed}, must be 0 to 2^64 - 1", where="--seed")
    if not 0 <= tolerance <= 1:
        raise UsageError(f"is {tolerance}, must be 0 to 1", where="--tolerance")


def find_run(header, prefix, path):
    """Return the facts of the run whose fields have a prefix."""
    runs = [run for run in read_runs(header) if run.get("Prefix") == prefix]
    if not runs or prefix + "LLR" not in header.ids("INFO"):
        hint = "--info-prefix says which fields; --no-version leaves out what is needed here"
        raise DataError(f"the header does not say how {prefix}LLR was made", where=path, hint=hint)
    try:
        for key in ("Window", "Horizon", "Stride"):
            int(runs[-1][key])
    except (KeyError, ValueError):
        raise DataError("the line ##hybridna is damaged", where=path, hint="score the file anew") from None
    return runs[-1]


def draw(reader, prefix, sample, seed):
    """Draw scored alleles evenly from a file; return them as (record, index of ALT) in order, records, scored."""
    rng, kept, scored, number = random.Random(seed), [], 0, 0
    for number, record in enumerate(reader.records(), start=1):
        values = (record.info(prefix + "LLR") or "").split(",")
        for index in range(max(len(record.alts), 1)):
            if index >= len(values) or values[index] in ("", "."):
                continue
            scored += 1
            # Reservoir: any of those so far is kept with the same chance.
            at = len(kept) if len(kept) < sample else rng.randrange(scored)
            if at < sample:
                kept[at : at + 1] = [(number, index, record)]
    return [(record, index) for _, index, record in sorted(kept, key=lambda one: one[:2])], number, scored


def value_of(record, prefix, name, index):
    """Return the text of an allele's value of one of our fields, None where there is none."""
    values = (record.info(prefix + name) or "").split(",")
    return values[index] if index < len(values) and values[index] not in ("", ".") else None


def check_reference(run, genome, contigs, path):
    """Raise DataError when a contig is not the one that was scored."""
    digests = dict(pair.rpartition(":")[::2] for pair in run.get("ReferenceMD5", "").split())
    for name in contigs:
        if name in digests and genome.digest(name) != digests[name]:
            what = f"{name} of {genome.path} is not the sequence that was scored (MD5 {digests[name]})"
            raise DataError(what, where=path, hint=f"it was scored with {run.get('Reference')}")


def load_named(model, run, device, allow_nonfinite, path):
    """Load the model that the header names, or another name for it, and compare the weights' digest."""
    name = run.get("Model", "")
    if model is None or is_name(model):
        precision = run.get("Precision", "float32")
        try:
            model = load_model(model or name, device=device, dtype=precision, allow_nonfinite=allow_nonfinite)
        except ModelError as error:
            if model is None:
                what = f"the scores were made with model {name}, which is not found here"
                raise ModelError(what, where=path, hint="give its folder as --model") from error
            raise
    if model.digest != run.get("ModelSHA256"):
        what = f"the scores were made with model {name} (SHA-256 {run.get('ModelSHA256')}), this one has {model.digest}"
        raise ModelError(what, where=path, hint="give --model")
    return model


def read_calibration(path, run, vcf):
    """Return the Calibration that a run used, None where it used none or `path` is None."""
    if "CalibrationSHA256" not in run:
        if path is not None:
            raise UsageError("the file was scored without one", where="--calibration", hint=f"leave it out for {vcf}")
        return None
    if path is None:
        warn("not-compared", f"{vcf}: percentiles are not compared; give --calibration {run.get('Calibration')}")
        return None
    calibration = Calibration(path)
    if calibration.digest != run["CalibrationSHA256"]:
        what = f"is not the calibration that the file was scored with (SHA-256 {run['CalibrationSHA256']})"
        raise DataError(what, where=path, hint=f"that was called {run.get('Calibration')}")
    return calibration


def compare_place(record, index, calibration, allele, found, genome, prefix, tolerance):
    """Return what is wrong with an allele's percentile and phred, or "": they may move as far as the score may."""
    allowed = tolerance * max(1.0, abs(found.llr))
    bounds = [calibration.rank(allele.variant, found.llr + step, genome) for step in (-allowed, allowed)]
    where = f"{record.contig}:{record.pos} {record.ref}>{(record.alts or ['.'])[index]}"
    for name, (a, b) in zip(("PCT", "PHRED"), zip(*bounds, strict=True), strict=True):
        text = value_of(record, prefix, name, index)
        if a is None and text is None:
            continue
        try:
            is_there = min(a, b) - 1e-3 <= float(text) <= max(a, b) + 1e-3
        except (TypeError, ValueError):
            is_there = False
        if not is_there:
            return f"{where} {prefix}{name} is {text}, now {a}"
    return ""


def compare_score(record, index, found, prefix, tolerance):
    """Compare an allele's fields with a Score; return the largest difference in nats and what is wrong, or ""."""
    # Percentile and phred follow from the score: compare_place.
    names = [name for name, field in FIELDS.items() if field.kind == "Float" and name not in ("PCT", "PHRED")]
    numbers = {name: getattr(found, FIELDS[name].attribute) for name in names}
    where = f"{record.contig}:{record.pos} {record.ref}>{(record.alts or ['.'])[index]}"
    status = value_of(record, prefix, "ST", index)
    if status != found.status:
        return 0.0, f"{where} {prefix}ST is {status}, now {found.status}"
    largest = 0.0
    for name, number in numbers.items():
        text = value_of(record, prefix, name, index)
        if text is None:
            continue
        try:
            there = float(text)
        except ValueError:
            return largest, f"{where} {prefix}{name} is {text}"
        if number is None:
            return largest, f"{where} {prefix}{name} is {text}, now nothing"
        difference = abs(there - float(np.float32(number)))
        if name in NATS:
            largest = max(largest, difference)
        # What is no sum of nats, such as a distance, has no natural size but its own, and fewer digits.
        allowed = tolerance * max(1.0, abs(number)) if name in NATS else 10 * tolerance * abs(number)
        if not difference <= allowed:
            return largest, f"{where} {prefix}{name} is {text}, now {np.float32(number)}"
    return largest, ""
