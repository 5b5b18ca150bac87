"""Score the variants of a VCF or BCF: log P(alternative) - log P(reference), written into the same records.

records -> alleles judged against the genome (the first thousand before the model loads) -> per allele and direction:
prefix read once, then both suffixes -> differences summed -> INFO fields appended -> VCF, bgzip or BCF

The definition is that of docs/scoring.md: what is read is laid out by data.variants.compare, here it is only read.
"""

import collections
import contextlib
import itertools
import math
import os
import shlex
import time
from typing import NamedTuple

import numpy as np
import torch

from hybridna_core.checkpoint import is_own_folder, load_model, read_description, resolve_folder, version
from hybridna_core.data.genome import open_genome, read_renames
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.variants import CHECK_REF, SCORED, compare, read_alleles
from hybridna_core.data.vcf import (
    CONTIG_NAME,
    INFO_KEY,
    VcfReader,
    VcfWriter,
    build_index,
    choose_output_type,
    read_regions,
    to_bytes,
)
from hybridna_core.data.writers import atomic_output, check_output, is_stdout, open_output
from hybridna_core.errors import DataError, GuardError, UsageError, nearest
from hybridna_core.memory import spell_bytes
from hybridna_core.model.likelihood import read
from hybridna_core.tokenizer import N

GUARD_RECORDS, GUARD_SHARE, GUARD_LEAST = 1000, 0.05, 20
DEFAULT_WINDOW = 8192
# Bases of a contig that a .tbi index can reach.
TBI_LIMIT = 2**29
FIELDS = ("LLR", "EDGE", "ST")
STRAND_FIELDS = {"+": "FWD", "-": "REV"}
# Further fields that an earlier run may have left, wrong beside new scores.
OTHER_FIELDS = ("DIST", "PCT", "PHRED")


class Score(NamedTuple):
    """What an allele ends with; numbers are None where there is no score.

    llr, forward, reverse  nats: mean of the strands, `+`, `-`
    is_edge                a contig end shortened what was read
    has_unknown            what was read held unknown bases
    """

    status: str
    llr: float | None = None
    is_edge: bool | None = None
    forward: float | None = None
    reverse: float | None = None
    has_unknown: bool = False


class Summary(NamedTuple):
    """What a run did: `alleles` is `scored` plus the reasons among `statuses`.

    records   of the input that were looked at
    alleles   alternative alleles; a record without any counts as one
    scored    alleles with a score
    statuses  status -> alleles
    edge      alleles scored beside a contig end
    unknown   alleles scored though unknown bases were read
    tokens, memory, time  of a dry run: tokens to read, estimates spelt out
    """

    records: int
    alleles: int
    scored: int
    statuses: dict
    edge: int
    unknown: int
    window: int
    horizon: int
    model: str
    output: str | None
    seconds: float
    tokens: int | None = None
    memory: str | None = None
    time: str | None = None

    def to_dict(self):
        return {name: value for name, value in self._asdict().items() if value is not None}


class Plan(NamedTuple):
    """The numbers that define a score, checked."""

    window: int
    horizon: int
    stride: int


def score_variants(
    vcf, fasta_ref, output="-", *, model="base", window=None, horizon=None, stride=1, per_strand=False,
    output_type=None, write_index=False, regions=None, regions_file=None, check_ref="w", rename_chrs=None,
    info_prefix="HD_", replace=False, strict=False, no_version=False, force=False, device="auto", dtype="float32",
    dry_run=False, rebuild_index=False, other_letters=None, rna=False, allow_missing_eof=False,
    allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Score every alternative allele of a VCF or BCF and write the same records with the scores; return a Summary.

    vcf            VCF, VCF.gz or BCF; `-` for standard input
    fasta_ref      the reference genome, plain or bgzip
    output         `-` for standard output; the suffix sets the type unless `output_type` (v, z, b, u) does
    model          name, folder, or a loaded model
    window         bases of prefix and horizon together; the smaller of 8,192 and what the model reads when None
    horizon        known bases counted from the first changed base on; half the window when None
    stride         prefixes begin at multiples of it
    per_strand     write HD_FWD and HD_REV, too
    regions        `chr:beg-end`, 1-based inclusive, comma-separated or a list; regions_file: a table or BED of them
    check_ref      where REF is not what the genome has: e stop, w mark, x mark as excluded, s swap where ALT fits
    rename_chrs    table of contig names, old and new, for records named otherwise than the genome
    info_prefix    of the fields' names
    replace        overwrite fields that are there already
    strict         raise DataError at the end if any allele has no score, and for contig lengths that differ
    dry_run        judge all records, estimate memory and time, load no model and write nothing

    Raises HybriDNAError kinds; on an error nothing is at `output`, but for `strict`.
    """
    start = time.monotonic()
    kind = check_options(vcf, fasta_ref, output, output_type, write_index, check_ref, info_prefix, force, dry_run)
    config = read_config(model)
    plan = make_plan(config, window, horizon, stride)
    renames = read_renames(rename_chrs) if rename_chrs is not None else {}
    wanted = read_regions(regions, regions_file)
    tally = Tally()
    with (
        open_genome(fasta_ref, rebuild_index, other_letters, rna, allow_missing_eof) as genome,
        VcfReader(vcf, regions=wanted, allow_missing_eof=allow_missing_eof) as reader,
    ):
        check_fields(reader.header, info_prefix, per_strand, replace, vcf)
        check_contigs(reader.header, genome, renames, wanted, strict, vcf)
        judged = judge(reader, genome, renames, check_ref, plan.horizon)
        ahead = list(itertools.islice(judged, GUARD_RECORDS))
        is_whole = len(ahead) < GUARD_RECORDS
        guard(ahead, is_whole, reader.header, genome, renames, vcf)
        records = itertools.chain(ahead, judged)
        if dry_run:
            tokens = plan_records(records, genome, plan, config, tally, progress)
            known_horizon = summarise(tally, plan, name_model(model), None, start)
            return estimate(known_horizon, config, tokens, device, dtype)
        if is_name(model):
            model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
        header = strip_header(reader.header, info_prefix) if replace else reader.header
        used = contigs_in_use(ahead, is_whole, reader.header, genome, renames)
        options = spell_options(vcf, fasta_ref, model, plan, check_ref, rename_chrs, info_prefix, per_strand)
        header = header.extended(
            describe(header, genome, renames, model, plan, info_prefix, per_strand, no_version, used, options)
        )
        scorer = Scorer(model, genome, plan)
        with contextlib.ExitStack() as stack:
            index = None
            if write_index:
                index = stack.enter_context(atomic_output(name_index(output, kind, genome), force=force))
            handle = stack.enter_context(open_output(output, force))
            with VcfWriter(handle, kind, header) as writer:
                order = Order(vcf) if write_index else None
                for number, (record, alleles) in enumerate(records, start=1):
                    if order is not None:
                        order.check(record)
                    scores = [scorer.score(allele) for allele in alleles]
                    tally.add(scores)
                    removed = find_stale(record, info_prefix, replace, vcf)
                    writer.write_record(record, spell_fields(scores, info_prefix, per_strand), removed)
                    if progress is not None:
                        progress(number, None)
                check_any_known(tally, genome, vcf)
                genome.check_unchanged()
            if index is not None:
                handle.flush()
                build_index(handle.name, index, kind)
        if tally.records == 0:
            asked = regions is not None or regions_file is not None
            warn("empty-input", f"{vcf}: no records{' in the regions asked for' * asked}")
    summary = summarise(tally, plan, model.name, str(output), start)
    if strict and summary.scored < summary.alleles:
        reasons = ", ".join(f"{status} {count:,}" for status, count in tally.reasons().items())
        what = f"{summary.alleles - summary.scored:,} of {summary.alleles:,} alleles have no score ({reasons})"
        raise DataError(what, where=vcf, hint="the output is complete; leave out --strict to accept it")
    return summary


# Checks before any work


def is_name(model):
    return isinstance(model, str | os.PathLike)


def name_model(model):
    return str(model) if is_name(model) else model.name


def check_options(vcf, fasta_ref, output, output_type, write_index, check_ref, info_prefix, force, dry_run):
    """Check what can be checked before anything is read; return the output type."""
    if check_ref not in CHECK_REF:
        known = ", ".join(f"{letter} ({what})" for letter, what in CHECK_REF.items())
        raise UsageError(f"is {check_ref!r}", where="--check-ref", hint=f"one of {known}")
    if not INFO_KEY.fullmatch(info_prefix + FIELDS[0]):
        what = f"{info_prefix!r} cannot begin a VCF key"
        raise UsageError(what, where="--info-prefix", hint="letters, digits, _ and ., not a digit first")
    kind = choose_output_type(output, output_type)
    if write_index and (kind not in "zb" or is_stdout(output)):
        what = "an index is made for a bgzip VCF or a BCF in a file"
        raise UsageError(what, where="--write-index", hint="give -o FILE.vcf.gz or -o FILE.bcf")
    for path in (vcf, fasta_ref):
        check_input(path, random_access=path is fasta_ref)
    if not dry_run:
        check_output(output, inputs=(vcf, fasta_ref), force=force)
        if not is_stdout(output):
            for suffix in (".tbi", ".csi"):
                check_old_index(f"{output}{suffix}", write_index, force)
    return kind


def check_old_index(index, write_index, force):
    """Deal with an index of an output that is about to be replaced: refuse, or warn that it will not fit."""
    if os.path.exists(index) and not write_index:
        warn("old-index", f"{index} will not fit the new output; make it anew (tabix -f)")
    elif os.path.exists(index) and not force:
        raise UsageError("the index of the output exists already", where=index, hint="give --force to replace it")


def read_config(model):
    """Return the ModelConfig of a loaded model, or of a name or folder without loading it."""
    if not is_name(model):
        return model.config
    folder = resolve_folder(model)
    if is_own_folder(folder):
        return read_description(folder)[0]
    from hybridna_core.hf_weights import plan_import

    return plan_import(folder).config


def make_plan(config, window, horizon, stride):
    """Fill in the defaults of window and horizon and check them against the model."""
    room = config.bases_at_once
    window = min(DEFAULT_WINDOW, room) if window is None else window
    if not 1 <= window <= room:
        what = f"is {window:,}, must be 1 to {room:,}"
        raise UsageError(what, where="--window", hint=f"this model reads {room:,} bases at once")
    horizon = max(window // 2, 1) if horizon is None else horizon
    if not 1 <= horizon <= window:
        raise UsageError(f"is {horizon:,}, must be 1 to the window of {window:,}", where="--horizon")
    if stride < 1:
        raise UsageError(f"is {stride:,}, must be at least 1", where="--stride")
    return Plan(window, horizon, stride)


def name_fields(prefix, per_strand):
    """Names of the INFO fields that are written."""
    return [prefix + name for name in (*FIELDS, *(STRAND_FIELDS.values() if per_strand else ()))]


def check_fields(header, prefix, per_strand, replace, path):
    """Raise UsageError when a field of ours is declared already."""
    there = set(header.ids("INFO"))
    for name in name_fields(prefix, per_strand):
        if name in there and not replace:
            hint = "--replace overwrites it, --info-prefix gives the new ones another name"
            raise UsageError(f"the header has the field {name} already", where=path, hint=hint)


def check_contigs(header, genome, renames, regions, strict, path):
    """Compare declared lengths and asked-for regions with the genome."""
    declared = header.contigs
    for name, length in declared.items():
        there = genome.contigs.get(genome.resolve(name, renames))
        if None not in (length, there) and length != there:
            what = f"contig {name} has {length:,} bp in the header and {there:,} in {genome.path}"
            if strict:
                raise DataError(what, where=path, hint="another genome build?")
            warn("contig-length", f"{path}: {what}; another genome build?")
    for name in dict.fromkeys(contig for contig, _, _ in regions or ()):
        if name not in declared and genome.resolve(name, renames) is None:
            close = nearest(name, [*declared, *genome.contigs][:2000])
            hint = f"did you mean {close}?" if close else None
            raise DataError(f"no contig {name!r} in the header or the genome", where="--regions", hint=hint)


def judge(reader, genome, renames, check_ref, horizon):
    """Yield (record, its alleles) for every record."""
    told = set()
    for record in reader.records():
        alleles = read_alleles(record, genome, path=reader.path, renames=renames, check_ref=check_ref, horizon=horizon)
        if alleles[0].status == "unknown_contig" and record.contig not in told and len(told) < 1000:
            told.add(record.contig)
            close = genome.suggest(record.contig)
            hint = f"; did you mean {close}? give --rename-chrs FILE" if close else ""
            where = f"{reader.path}:{record.number}"
            warn("unknown_contig", f"{where}: contig {record.contig} is not in {genome.path}{hint}")
        yield record, alleles


def guard(ahead, is_whole, header, genome, renames, path):
    """Raise DataError when the first records show that VCF and genome do not belong together."""
    unknown = [record for record, alleles in ahead if alleles[0].status == "unknown_contig"]
    # Sorted files may begin with contigs that the genome lacks, and go on with others.
    is_final = is_whole or not any(genome.resolve(name, renames) for name in header.contigs)
    if ahead and len(unknown) == len(ahead) and is_final:
        raise no_contig_known(unknown[0].contig, genome, path)
    mismatched = [r for r, alleles in ahead if any(a.status in ("ref_mismatch", "excluded") for a in alleles)]
    if len(mismatched) >= GUARD_LEAST and len(mismatched) > GUARD_SHARE * len(ahead):
        first = mismatched[0]
        what = f"{len(mismatched):,} of the first {len(ahead):,} records ({len(mismatched) / len(ahead):.0%})"
        what = f"{what} have another REF than {genome.path}, the first at {first.contig}:{first.pos}"
        hint = "the wrong genome build, or contig names that mean other sequences?"
        raise DataError(what, where=path, hint=hint)


def check_any_known(tally, genome, path):
    """Raise DataError when no record at all has a contig of the genome."""
    if tally.records and tally.statuses["unknown_contig"] == tally.alleles:
        raise no_contig_known(None, genome, path)


def no_contig_known(example, genome, path):
    close = genome.suggest(example) if example is not None else None
    what = f"no record has a contig of {genome.path}"
    if example is not None:
        what += f" (the first has {example}{f', there it is {close}' if close else ''})"
    hint = "give --rename-chrs FILE with lines `old new`" if close else "is it the right genome?"
    return DataError(what, where=path, hint=hint)


class Order:
    """Sees to it that records are sorted, which an index needs."""

    def __init__(self, path):
        self.path, self.contig, self.pos, self.done = path, None, 0, set()

    def check(self, record):
        """Raise DataError for a record out of order."""
        if record.contig != self.contig:
            self.done.add(self.contig)
            self.contig, self.pos = record.contig, 0
        if record.contig in self.done or record.pos is None or record.pos < self.pos:
            where = f"{self.path}:{record.number}"
            raise DataError(
                "records are not sorted, so --write-index is not possible", where=where, hint="bcftools sort first"
            )
        self.pos = record.pos


# Reading


class Scorer:
    """Scores alleles, one row per pass, so that a score depends on nothing but its variant.

    What the reference gave is kept for the last places, where a record's further alleles mostly want it again.
    """

    KEPT = 4

    def __init__(self, model, genome, plan):
        self.model, self.genome, self.plan = model, genome, plan
        bos = model.config.bos_token_id
        self.opening = np.array([] if bos is None else [bos], dtype=np.int64)
        self.prefixes, self.references = collections.OrderedDict(), collections.OrderedDict()

    def score(self, allele):
        """Return the Score of an Allele; raise GuardError when the model gives no finite number."""
        if allele.variant is None:
            return Score(allele.status)
        variant = allele.variant
        status, comparisons = compare(variant, self.genome, *self.plan)
        if status != "ok":
            return Score(status)
        values = {c.strand: variant.sign * self.compare(variant.contig, c) for c in comparisons}
        llr = math.fsum(values.values()) / len(values)
        if not math.isfinite(llr):
            where = f"{variant.contig}:{variant.start + 1}"
            raise GuardError("the model gives no finite number", where=where, hint="hybridna models check FOLDER")
        is_edge = len(values) < 2 or any(c.is_short for c in comparisons)
        has_unknown = any(c.unknown_share > 0 for c in comparisons)
        return Score(allele.status, llr, is_edge, values.get("+"), values.get("-"), has_unknown)

    def compare(self, contig, comparison):
        """Return log P(alternative) - log P(reference) in one direction, nats."""
        place = contig, comparison.strand, comparison.start, comparison.change
        prefix = self._keep(self.prefixes, place, lambda: self._read_prefix(comparison.prefix))
        reference = self._keep(
            self.references,
            (*place, len(comparison.reference)),
            lambda: self._read_suffix(comparison.reference, prefix),
        )
        alternative = self._read_suffix(comparison.alternative, prefix)
        # Subtracted base by base first: sums over thousands of bases would drown the difference.
        return float(np.sum(alternative - reference))

    def _keep(self, kept, key, make):
        if key not in kept:
            kept[key] = make()
            if len(kept) > self.KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    def _read_prefix(self, ids):
        tokens = np.concatenate([self.opening, ids]).astype(np.int64)
        return self._read(tokens, None)[1] if len(tokens) else None

    def _read_suffix(self, ids, reading):
        """Log-probability of each known base, nats. (known bases,) float64"""
        log_probs, _ = self._read(ids.astype(np.int64), reading)
        return log_probs[0].cpu().numpy()[ids != N]

    def _read(self, tokens, reading):
        return read(self.model, torch.from_numpy(tokens)[None].to(self.model.device), reading)


# Counting


class Tally:
    """Counts what became of the alleles."""

    def __init__(self):
        self.records = self.edge = self.unknown = 0
        self.statuses = collections.Counter()

    def add(self, scores):
        self.records += 1
        self.statuses.update(score.status for score in scores)
        self.edge += sum(score.is_edge is True for score in scores)
        self.unknown += sum(score.has_unknown for score in scores)

    @property
    def alleles(self):
        return self.statuses.total()

    @property
    def scored(self):
        return sum(self.statuses[status] for status in SCORED)

    def reasons(self):
        """Status -> alleles for those without a score, the most frequent first."""
        return {status: count for status, count in self.statuses.most_common() if status not in SCORED}


def summarise(tally, plan, model, output, start):
    scored = {status: tally.statuses[status] for status in SCORED if tally.statuses[status]}
    return Summary(
        tally.records, tally.alleles, tally.scored, {**scored, **tally.reasons()}, tally.edge, tally.unknown,
        plan.window, plan.horizon, model, output, time.monotonic() - start,
    )  # fmt: skip


# The dry run


def plan_records(records, genome, plan, config, tally, progress):
    """Lay out what would be read, without reading it; return the number of tokens."""
    tokens = 0
    for number, (_, alleles) in enumerate(records, start=1):
        scores = []
        for allele in alleles:
            status, comparisons = allele.status, []
            if allele.variant is not None:
                laid_out, comparisons = compare(allele.variant, genome, *plan)
                status = status if laid_out == "ok" else laid_out
            is_edge = bool(comparisons) and (len(comparisons) < 2 or any(c.is_short for c in comparisons))
            scores.append(Score(status, is_edge=is_edge, has_unknown=any(c.unknown_share > 0 for c in comparisons)))
            tokens += sum(len(c.prefix) + len(c.reference) + len(c.alternative) for c in comparisons)
            tokens += len(comparisons) * (config.bos_token_id is not None)
        tally.add(scores)
        if progress is not None:
            progress(number, None)
    return tokens


def estimate(summary, config, tokens, device, dtype):
    """Add tokens, memory and time to the Summary of a dry run; time is measured on two layers of random weights."""
    from hybridna_core.checkpoint import choose_device, choose_dtype
    from hybridna_core.model.hybrid import count_parameters
    from hybridna_core.model.state import bytes_per_row

    item = 4 if dtype == "float32" else torch.empty(0, dtype=choose_dtype(dtype)).element_size()
    # The prefix's state and the one that a suffix builds on it, for each place that is kept.
    memory = count_parameters(config) * item + (Scorer.KEPT + 1) * bytes_per_row(config, summary.window, item)
    seconds = tokens * seconds_per_token(config, choose_device(device), choose_dtype(dtype))
    return summary._replace(tokens=tokens, memory=f"about {spell_bytes(memory)}", time=f"about {seconds:,.0f} s")


def seconds_per_token(config, device, dtype, length=1024):
    """Time one layer of each kind that the model has; return seconds per token of all its layers."""
    import dataclasses

    from hybridna_core.model.hybrid import HybridLM

    total = 0.0
    for kind in dict.fromkeys(config.layer_types):
        small = HybridLM(dataclasses.replace(config, layer_types=(kind,)), device=device, dtype=dtype)
        tokens = torch.full((1, length), 7, device=device)
        with torch.no_grad():
            small(tokens)
            start = time.perf_counter()
            small(tokens)[0].sum().item()
        total += config.layer_types.count(kind) * (time.perf_counter() - start) / length
    return total


# Header and fields


def strip_header(header, prefix):
    """Take the fields and run lines of an earlier run under the same prefix out of a header."""
    stale = {prefix + name for name in (*FIELDS, *STRAND_FIELDS.values(), *OTHER_FIELDS)}

    def is_stale(declaration):
        name = declaration.fields.get("ID")
        if declaration.kind == "hybridna":
            return declaration.fields.get("Prefix") == prefix
        return declaration.kind == "INFO" and name in stale

    return header.without(is_stale)


def contigs_in_use(ahead, is_whole, header, genome, renames):
    """Contigs of the genome that records may refer to, so far as is known before they are all read."""
    names = [record.contig for record, _ in ahead]
    if not is_whole:
        names += header.contigs or genome.contigs
    found = {genome.resolve(name, renames) for name in dict.fromkeys(names)}
    return [name for name in genome.contigs if name in found]


def describe(header, genome, renames, model, plan, prefix, per_strand, no_version, used, options):
    """Header lines that are added: missing contigs, our fields, how the numbers came about."""
    back = {new: old for old, new in renames.items()}
    declared = header.contigs
    lines = []
    for name, length in genome.contigs.items():
        name = back.get(name, name)
        if name not in declared and CONTIG_NAME.fullmatch(name):
            lines.append(f"##contig=<ID={name},length={length}>")
    what = f"summed over up to {plan.horizon} bases from the first changed base on"
    source = 'Source="hybridna"' if no_version else f'Source="hybridna",Version="{version()}"'
    texts = {
        "LLR": ("Float", f"log P(alternative) - log P(reference), nats, {what}, mean of both reading directions"),
        "EDGE": ("Integer", "1 if a contig end shortened what was read, else 0"),
        "ST": ("String", "ok, swapped (the genome holds ALT), or why the allele has no score"),
        "FWD": ("Float", f"{prefix}LLR of the direction + alone"),
        "REV": ("Float", f"{prefix}LLR of the direction - alone"),
    }
    for name in name_fields(prefix, per_strand):
        kind, text = texts[name.removeprefix(prefix)]
        lines.append(f'##INFO=<ID={name},Number=A,Type={kind},Description="{text}",{source}>')
    if no_version:
        return lines
    taken = {d.fields.get("ID") for d in header.declarations("hybridna")}
    run = next(name for name in itertools.chain(["run"], (f"run{i}" for i in itertools.count(2))) if name not in taken)
    facts = {
        "Version": version(), "Prefix": prefix, "Model": model.name, "ModelSHA256": model.digest,
        "Tokenizer": spell_tokenizer(model), "StartToken": "no" if model.config.bos_token_id is None else "yes",
        "Window": plan.window, "Horizon": plan.horizon, "Stride": plan.stride, "Strands": "both",
        "Reduction": "sum over the horizon, mean of the strands", "Unit": "nats",
        "Precision": str(model.dtype).removeprefix("torch."), "Backend": spell_backends(model),
        "Reference": os.path.basename(genome.path),
        "ReferenceMD5": " ".join(f"{name}:{genome.digest(name)}" for name in used),
    }  # fmt: skip
    pairs = ",".join(f"{key}={value if isinstance(value, int) else quote(value)}" for key, value in facts.items())
    lines.append(f"##hybridna=<ID={run},{pairs}>")
    lines.append(f"##hybridna_score_variantsCommand={options}")
    return lines


def quote(text):
    """Quote a header value; characters that would break the line become their escapes."""
    return '"' + one_line(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def one_line(text):
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else f"\\x{ord(c):02x}" for c in str(text))


def spell_tokenizer(model):
    return f"single bases, {model.tokenizer.vocab_size} tokens, version {model.tokenizer.version}"


def spell_backends(model):
    """Name the backend of each op that the model uses."""
    from hybridna_kernels import dispatch

    rows = dispatch.report(model.device, model.dtype)
    return " ".join(f"{op}:{name}" for op, name, state in rows if state == "in use")


def spell_options(vcf, fasta_ref, model, plan, check_ref, rename_chrs, prefix, per_strand):
    """Spell the command line, of what decides the numbers: no threads, no output, no date."""
    words = ["score-variants", "--fasta-ref", fasta_ref, "--model", model.name, "--window", plan.window]
    words += ["--horizon", plan.horizon, "--stride", plan.stride, "--check-ref", check_ref]
    words += ["--rename-chrs", rename_chrs] if rename_chrs is not None else []
    words += ["--info-prefix", prefix, *(["--per-strand"] if per_strand else []), vcf]
    return one_line(shlex.join(str(word) for word in words))


def find_stale(record, prefix, replace, path):
    """Keys of ours in a record, to be taken out; raise UsageError if they must not be."""
    info = record.columns[7]
    if to_bytes(prefix) not in info:
        return ()
    names = [to_bytes(prefix + name) for name in (*FIELDS, *STRAND_FIELDS.values(), *OTHER_FIELDS)]
    present = {field.partition(b"=")[0] for field in info.split(b";")}
    found = [name for name in names if name in present]
    if found and not replace:
        what = f"INFO has {found[0].decode()} already, undeclared in the header"
        hint = "--replace overwrites it, --info-prefix gives the new ones another name"
        raise UsageError(what, where=f"{path}:{record.number}", hint=hint)
    return tuple(found)


def spell_fields(scores, prefix, per_strand):
    """Spell a record's INFO fields, one value per ALT."""
    columns = {
        "LLR": [spell_number(score.llr) for score in scores],
        "EDGE": ["." if score.is_edge is None else str(int(score.is_edge)) for score in scores],
        "ST": [score.status for score in scores],
    }
    if per_strand:
        columns["FWD"] = [spell_number(score.forward) for score in scores]
        columns["REV"] = [spell_number(score.reverse) for score in scores]
    return ";".join(f"{prefix}{name}={','.join(values)}" for name, values in columns.items())


def spell_number(value):
    """Spell a score as the shortest text that gives back the same 32-bit float, which is what BCF holds."""
    if value is None:
        return "."
    text = str(np.float32(value)).removesuffix(".0")
    return "0" if text == "-0" else text


def name_index(output, kind, genome):
    """Name of an output's index: .tbi, or .csi for BCF and for contigs beyond the reach of .tbi."""
    is_long = any(length >= TBI_LIMIT for length in genome.contigs.values())
    return f"{output}{'.csi' if kind == 'b' or is_long else '.tbi'}"
