"""How scores stand in a file: INFO fields, the header lines that declare them, and how the numbers came about.

model, Plan -> header lines; Scores of a record -> INFO text, or lines of a table
"""

import hashlib
import itertools
import os
import re
import zlib
from typing import NamedTuple

import numpy as np

from hybridna_core.checkpoint import version
from hybridna_core.data.genotypes import SampleColumns
from hybridna_core.data.inputs import warn
from hybridna_core.data.vcf import CONTIG_NAME, to_bytes
from hybridna_core.data.vcf_output import VcfWriter, build_index, open_lines
from hybridna_core.data.writers import is_stdout
from hybridna_core.errors import DataError, UsageError

# Bases of a contig that a .tbi index can reach.
TBI_LIMIT = 2**29


class Field(NamedTuple):
    """One part of a Score as it stands in a file.

    kind       its type in VCF
    column     its name in tables
    attribute  of Score
    text       of the header line, to be filled in by describe
    """

    kind: str
    column: str
    attribute: str
    text: str

    def spell(self, score):
        """Spell a Score's part."""
        value = getattr(score, self.attribute)
        if value is None or self.kind == "Float":
            return spell_number(value)
        return str(int(value)) if self.kind == "Integer" else value


# All that a file may hold, in order; what INFO fields are called behind the prefix.
FIELDS = {
    "LLR": Field(
        "Float", "llr", "llr",
        "log P(alternative) - log P(reference), nats, summed over up to {horizon} bases from the first changed base "
        "on, mean of both reading directions",
    ),
    "EDGE": Field("Integer", "edge", "is_edge", "1 if a contig end shortened what was read, else 0"),
    "ST": Field("String", "status", "status", "ok, swapped (the genome holds ALT), or why the allele has no score"),
    "FWD": Field("Float", "fwd", "forward", "{prefix}LLR of the direction + alone"),
    "REV": Field("Float", "rev", "reverse", "{prefix}LLR of the direction - alone"),
    "DIST": Field(
        "Float", "dist", "distance",
        "{Distance} distance of the embeddings of reference and alternative, each the mean of the hidden vectors of "
        "all bases read, mean of both reading directions",
    ),
    "PCT": Field(
        "Float", "pct", "percentile",
        "percent: (r + 1) / (n + 1), where r of n matched alleles of the calibration have a {prefix}LLR as low or "
        "lower",
    ),
    "PHRED": Field("Float", "phred", "phred", "-10 log10 of {prefix}PCT / 100: high where few alleles are so low"),
}  # fmt: skip
BASIC_FIELDS = ("LLR", "EDGE", "ST")
# FORMAT fields, one value for each haplotype of a call.
HAPLOTYPE_FIELDS = {
    "HAP": "log P(haplotype) - log P(reference), nats, of all alternatives on the haplotype that are less than "
    "{horizon} bases apart, together",
    "EPI": "{prefix}HAP minus the sum of the same alternatives alone, counted over the same bases",
}


def choose_fields(per_strand=False, embedding_distance=None, calibration=None):
    """Return the keys of FIELDS that a run writes, in order."""
    optional = {"DIST": embedding_distance, "PCT": calibration, "PHRED": calibration}
    asked = (name for name, option in optional.items() if option is not None)
    return (*BASIC_FIELDS, *["FWD", "REV"] * per_strand, *asked)


def check_fields(header, prefix, fields, replace, path, haplotypes=False):
    """Raise UsageError when a field of ours is declared already. fields: keys of FIELDS"""
    there = {"INFO": set(header.ids("INFO")), "FORMAT": set(header.ids("FORMAT"))}
    wanted = [("INFO", name) for name in fields] + [("FORMAT", name) for name in HAPLOTYPE_FIELDS if haplotypes]
    for kind, name in wanted:
        name = prefix + name
        if name in there[kind] and not replace:
            hint = "--replace overwrites it, --info-prefix gives the new ones another name"
            raise UsageError(f"the header has the field {name} already", where=path, hint=hint)


def strip_header(header, prefix):
    """Take the fields and run lines of an earlier run under the same prefix out of a header."""
    stale = {("INFO", prefix + name) for name in FIELDS}
    stale |= {("FORMAT", prefix + name) for name in HAPLOTYPE_FIELDS}

    def is_stale(declaration):
        if declaration.kind == "hybridna":
            return declaration.fields.get("Prefix") == prefix
        return (declaration.kind, declaration.fields.get("ID")) in stale

    return header.without(is_stale)


def describe(header, genome, renames, model, plan, prefix, fields, facts, no_version, used, options):
    """Header lines that are added: missing contigs, our fields (keys of FIELDS), how the numbers came about."""
    back = {new: old for old, new in renames.items()}
    declared = header.contigs
    lines = []
    for name, length in genome.contigs.items():
        name = back.get(name, name)
        if name not in declared and CONTIG_NAME.fullmatch(name):
            lines.append(f"##contig=<ID={name},length={length}>")
    source = 'Source="hybridna"' if no_version else f'Source="hybridna",Version="{version()}"'
    for name in fields:
        text = FIELDS[name].text.format(horizon=plan.horizon, prefix=prefix, **facts)
        lines.append(f'##INFO=<ID={prefix}{name},Number=A,Type={FIELDS[name].kind},Description="{text}",{source}>')
    for name, text in HAPLOTYPE_FIELDS.items() if "Haplotypes" in facts else ():
        text = text.format(horizon=plan.horizon, prefix=prefix)
        lines.append(f'##FORMAT=<ID={prefix}{name},Number=.,Type=Float,Description="{text}",{source}>')
    if no_version:
        return lines
    taken = {d.fields.get("ID") for d in header.declarations("hybridna")}
    run = next(name for name in itertools.chain(["run"], (f"run{i}" for i in itertools.count(2))) if name not in taken)
    return [
        *lines,
        spell_run(genome, model, plan, used, facts, prefix, run),
        f"##hybridna_score_variantsCommand={options}",
    ]


def spell_run(genome, model, plan, used, facts=None, prefix=None, run="run"):
    """Spell the header line that says how the numbers came about.

    used    contigs whose digest is given
    facts   further ones, of what not every run does
    prefix  of the fields' names, where there are fields
    """
    facts = {
        "Version": version(), **({} if prefix is None else {"Prefix": prefix}), "Model": model.name,
        "ModelSHA256": model.digest, "Tokenizer": spell_tokenizer(model),
        "StartToken": "no" if model.config.bos_token_id is None else "yes", "Window": plan.window,
        "Horizon": plan.horizon, "Stride": plan.stride, "Strands": "both",
        "Reduction": "sum over the horizon, mean of the strands", "Unit": "nats",
        "Precision": str(model.dtype).removeprefix("torch."), "Backend": spell_backends(model),
        "Reference": os.path.basename(genome.path),
        "ReferenceMD5": " ".join(f"{name}:{genome.digest(name)}" for name in used), **(facts or {}),
    }  # fmt: skip
    pairs = ",".join(f"{key}={value if isinstance(value, int) else quote(value)}" for key, value in facts.items())
    return f"##hybridna=<ID={run},{pairs}>"


def read_runs(header):
    """Return the facts of every run line of a header, in order, as dicts of text."""
    return [
        {key: re.sub(r"\\(.)", r"\1", value) for key, value in declaration.fields.items()}
        for declaration in header.declarations("hybridna")
        if {"Window", "Horizon", "Stride"} <= set(declaration.fields)
    ]


def take_fingerprint(path, header, run, settings):
    """Return what must stay the same for a run to be gone on with, by names in words; None for a stream.

    path      of the input; None where it is among the settings
    header    Header of the output, of a table its first lines
    run       what spell_run gives
    settings  all else that decides what is written; repr tells them apart
    """
    digest = ""
    if path is not None:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {
        "the version": f"hybridna {version()}, zlib {zlib.ZLIB_RUNTIME_VERSION}", "the input": digest,
        "the model, the genome or the window": run, "the options": repr(settings),
        "the header": hashlib.sha256(header.to_bytes()).hexdigest(),
    }  # fmt: skip


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


def find_stale(record, prefix, replace, path):
    """Keys of ours in a record, to be taken out; raise UsageError if they must not be."""
    info = record.columns[7]
    if to_bytes(prefix) not in info:
        return ()
    names = [to_bytes(prefix + name) for name in FIELDS]
    present = {field.partition(b"=")[0] for field in info.split(b";")}
    found = [name for name in names if name in present]
    if found and not replace:
        what = f"INFO has {found[0].decode()} already, undeclared in the header"
        hint = "--replace overwrites it, --info-prefix gives the new ones another name"
        raise UsageError(what, where=f"{path}:{record.number}", hint=hint)
    return tuple(found)


def strip_samples(record, prefix, replace, path):
    """Return a record without the haplotype values of an earlier run; raise UsageError if they must stay."""
    layout = record.columns[8].partition(b"\t")[0].split(b":") if len(record.columns) > 8 else ()
    found = [name for name in (to_bytes(prefix + name) for name in HAPLOTYPE_FIELDS) if name in layout]
    if not found:
        return record
    if not replace:
        what = f"FORMAT has {found[0].decode()} already, undeclared in the header"
        hint = "--replace overwrites it, --info-prefix gives the new ones another name"
        raise UsageError(what, where=f"{path}:{record.number}", hint=hint)
    return record._replace(columns=[*record.columns[:8], SampleColumns(record.columns[8]).without(found)])


def spell_fields(scores, prefix, fields):
    """Spell a record's INFO fields, one value per ALT. fields: keys of FIELDS"""
    return ";".join(f"{prefix}{name}={','.join(FIELDS[name].spell(score) for score in scores)}" for name in fields)


def spell_number(value):
    """Spell a score as the shortest text that gives back the same 32-bit float, which is what BCF holds."""
    if value is None:
        return "."
    text = str(np.float32(value)).removesuffix(".0")
    return "0" if text == "-0" else text


class ScoredVcf:
    """Writes records with their scores as VCF or BCF to an open binary handle; `close` completes it.

    kind     v, z, b or u
    prefix   of the fields' names
    fields   those that are written
    replace  fields of an earlier run are taken out; else they are an error
    path     of the input, for messages
    held     of a file that is gone on with: what `settle` returned
    """

    def __init__(self, handle, kind, header, *, prefix, fields, replace, path, held=None):
        self.prefix, self.fields, self.replace, self.path = prefix, fields, replace, path
        self.writer = VcfWriter(handle, kind, header, held)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.writer.__exit__(*error)

    def settle(self):
        """Hand on what was written, as VcfWriter."""
        return self.writer.settle()

    def write_record(self, record, scores):
        """Write a record with the scores of its ALTs."""
        removed = find_stale(record, self.prefix, self.replace, self.path)
        self.writer.write_record(record, spell_fields(scores, self.prefix, self.fields), removed)


class ScoreTable:
    """Writes scores as a table to an open binary handle, one line per allele; `close` completes it.

    lines    `##` lines before the column names
    fields   keys of FIELDS
    labels   columns between alt and those of the fields, such as id
    is_bgzf  in bgzip blocks
    held     None for a new file; of one that is gone on with, whose header is there, what `settle` returned

    Columns: #chrom pos ref alt, labels, then those of the fields; pos counts from 1; `.` where there is no number. A
    bgzip one in order can be indexed: tabix -s 1 -b 2 -e 2.
    """

    def __init__(self, handle, lines, *, fields=BASIC_FIELDS, labels=(), is_bgzf=False, held=None):
        self.fields = [FIELDS[name] for name in fields]
        self.sink = open_lines(handle, is_bgzf, held)
        names = ["#chrom", "pos", "ref", "alt", *labels, *(field.column for field in self.fields)]
        if held is None:
            self.sink.write(to_bytes("".join(f"{line}\n" for line in (*lines, "\t".join(names)))))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.sink.close()

    def settle(self):
        """Return the bytes that wait for their block to be full; all others are handed on."""
        return self.sink.held

    def add(self, keys, score):
        """Write one allele. keys: contig, pos, ref, alt and the labels, as bytes"""
        self.sink.write(b"\t".join([*keys, *(to_bytes(field.spell(score)) for field in self.fields)]) + b"\n")

    def write_record(self, record, scores):
        """Write every ALT of a record."""
        contig, pos, name, ref, alts = record.columns[:5]
        for alt, score in zip(alts.split(b","), scores, strict=True):
            self.add((contig, pos, ref, alt, name), score)


def is_bgzip_name(path):
    """Tell whether a file name asks for bgzip."""
    return not is_stdout(path) and os.fspath(path).lower().endswith((".gz", ".bgz"))


def check_index(output, is_bgzf, write_index):
    """Raise UsageError when an index is asked for that cannot be."""
    if write_index and (not is_bgzf or is_stdout(output)):
        what = "an index is made for a bgzip VCF or TSV or a BCF in a file"
        raise UsageError(what, where="--write-index", hint="give -o FILE.vcf.gz, FILE.tsv.gz or FILE.bcf")


def check_old_index(output, write_index, force):
    """Deal with an index of an output that is about to be replaced: refuse, or warn that it will not fit."""
    for index in () if is_stdout(output) else (f"{output}.tbi", f"{output}.csi"):
        if os.path.exists(index) and not write_index:
            warn("old-index", f"{index} will not fit the new output; make it anew (tabix -f)")
        elif os.path.exists(index) and not force:
            raise UsageError("the index of the output exists already", where=index, hint="give --force to replace it")


def index_output(outputs, path, kind, lengths):
    """Index what the first of some Outputs holds; return what their `finish` is to rename. lengths: of contigs, bp"""
    target = name_index(path, kind, lengths)
    made = outputs.name_aside(f"index{target[-4:]}")
    outputs.handles[0].flush()
    build_index(outputs.handles[0].name, made, kind)
    return [(made, target)]


def name_index(output, kind, lengths):
    """Name of an output's index: .tbi, or .csi for BCF and for contigs beyond the reach of .tbi."""
    is_long = any(length is not None and length >= TBI_LIMIT for length in lengths)
    return f"{output}{'.csi' if kind == 'b' or is_long else '.tbi'}"


class Order:
    """Sees to it that lines are sorted by contig and position, which an index needs, and so do haplotypes."""

    def __init__(self, path, hint, option="--write-index"):
        self.path, self.hint, self.option = path, hint, option
        self.contig, self.pos, self.done = None, 0, set()

    def check(self, contig, pos, number):
        """Raise DataError for a line out of order. pos: None where it is no number; number: of the input's line"""
        if contig != self.contig:
            self.done.add(self.contig)
            self.contig, self.pos = contig, 0
        if contig in self.done or pos is None or pos < self.pos:
            what = f"records are not sorted, so {self.option} is not possible"
            raise DataError(what, where=f"{self.path}:{number}", hint=self.hint)
        self.pos = pos
