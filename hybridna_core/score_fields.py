"""How scores stand in a file: INFO fields, the header lines that declare them, and how the numbers came about.

model, Plan -> header lines; Scores of a record -> INFO text
"""

import itertools
import os

import numpy as np

from hybridna_core.checkpoint import version
from hybridna_core.data.vcf import CONTIG_NAME, to_bytes
from hybridna_core.errors import UsageError

FIELDS = ("LLR", "EDGE", "ST")
STRAND_FIELDS = {"+": "FWD", "-": "REV"}
# Further fields that an earlier run may have left, wrong beside new scores.
OTHER_FIELDS = ("DIST", "PCT", "PHRED")


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


def strip_header(header, prefix):
    """Take the fields and run lines of an earlier run under the same prefix out of a header."""
    stale = {prefix + name for name in (*FIELDS, *STRAND_FIELDS.values(), *OTHER_FIELDS)}

    def is_stale(declaration):
        name = declaration.fields.get("ID")
        if declaration.kind == "hybridna":
            return declaration.fields.get("Prefix") == prefix
        return declaration.kind == "INFO" and name in stale

    return header.without(is_stale)


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
