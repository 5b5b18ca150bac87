"""Parts of an input for several processes: runs of records that take about equally long, told apart in the header.

i/n, or the environment of a job -> Shard -> first pass over the records -> Cut (first record, number of records)
"""

import hashlib
import json
import re
from typing import NamedTuple

from hybridna_core.data.inputs import warn
from hybridna_core.data.vcf import Header
from hybridna_core.errors import UsageError

LIMIT = 100_000
KEY = "##hybridna_shard="
_LINE = re.compile(r"##hybridna_shard=(\d+)/(\d+) kind=(\w+) lines=(\d+) run=([0-9a-f]{64})")


class Shard(NamedTuple):
    """Part `index` of `count`, counted from 1."""

    index: int
    count: int

    def __str__(self):
        return f"{self.index}/{self.count}"


class Cut(NamedTuple):
    """The records of a shard: the number of those before, their own number, and that of their alleles as lines."""

    first: int
    records: int
    lines: int


class Part(NamedTuple):
    """What a part of a sharded output says of itself.

    kind   v, z, b, u or t
    lines  records, of a table lines, behind the header
    run    digest of all that makes the parts of one run alike
    """

    shard: Shard
    kind: str
    lines: int
    run: str

    def to_line(self):
        """Spell the header line that says so."""
        return f"{KEY}{self.shard} kind={self.kind} lines={self.lines} run={self.run}"


def read_part(line):
    """Return the Part that a header line tells of, or None."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    index, count, kind, lines, run = found.groups()
    return Part(Shard(int(index), int(count)), kind, int(lines), run)


def drop_part(header):
    """Return a copy of a Header without what it says of the part that another file was."""
    return Header([line for line in header.lines if not line.startswith(KEY)], header.newline)


def mark_part(header, shard, mine, kind, fingerprint):
    """Write into a Header which part of which run its file is; return it and the fingerprint of the part.

    mine         Cut
    fingerprint  of the run, dict of text
    """
    line = spell_part(shard, kind, mine.lines if kind == "t" else mine.records, fingerprint)
    header = Header([*header.lines, line], header.newline) if kind == "t" else header.extended([line])
    return header, {**fingerprint, "the shard": str(shard)}


def spell_part(shard, kind, lines, fingerprint):
    """Return the line that says which part of the run with this fingerprint a file is."""
    run = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    return Part(shard, kind, lines, run).to_line()


def parse_shard(text):
    """Return the Shard that `i/n` names, i from 1 to n; None for None. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(text))
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= LIMIT:
        raise UsageError(f"is {str(text)!r}", where="--shard", hint=f"give i/n, i from 1 to n, n up to {LIMIT:,}")
    return Shard(int(found[1]), int(found[2]))


def find_shard(environment):
    """Return `i/n` as the environment of a job tells it, with a warning, or None outside of one.

    RANK (from 0) and WORLD_SIZE, else SLURM_ARRAY_TASK_ID and _COUNT with _MIN and _STEP
    """

    def number(name, default=None):
        text = environment.get(name, "")
        return int(text) if re.fullmatch(r"\d{1,9}", text) else default

    index, count, source = number("RANK"), number("WORLD_SIZE"), "RANK and WORLD_SIZE"
    if index is None or count is None:
        index, count, source = number("SLURM_ARRAY_TASK_ID"), number("SLURM_ARRAY_TASK_COUNT"), "SLURM_ARRAY_TASK_ID"
        if index is not None:
            index = (index - number("SLURM_ARRAY_TASK_MIN", 0)) // max(number("SLURM_ARRAY_TASK_STEP", 1), 1)
    if index is None or count is None or count < 2 or index >= count:
        return None
    text = f"{index + 1}/{count}"
    warn("shard", f"does shard {text} alone, as {source} tells; --shard none does all")
    return text


def measure(records, plan):
    """Yield each record and the bases that are about to be read for it, by its contig, POS and ALT alone.

    plan  window, horizon, stride

    A place costs a reference pass in both directions, each allele the horizon in both; neighbours within a stride
    share the passes. Judging by the genome would take far longer.
    """
    last = None
    for record in records:
        place = record.columns[0], (record.pos or 0) // plan.stride
        alleles = sum(alt not in (b".", b"*", b"") for alt in record.columns[4].split(b","))
        passes = 2 * plan.window if alleles and place != last else 0
        last = place if alleles else last
        yield record, 1 + passes + 2 * plan.horizon * alleles


def cut(shard, read, plan):
    """Find the records of a shard, so that all shards read about equally many bases; return its Cut.

    read  gives an iterator over the Records, each time anew
    """

    def works():
        for record, work in measure(read(), plan):
            yield record.columns[4].count(b",") + 1, work

    return divide(shard, works)


def divide(shard, works):
    """Return the Cut of a shard, so that all have about equal work.

    works  gives an iterator over (lines, work) of each record, each time anew
    """
    total, before = sum(work for _, work in works()), 0
    first = count = lines = 0
    for own, work in works():
        index = before * shard.count // total + 1
        before += work
        if index > shard.index:
            break
        if index < shard.index:
            first += 1
        else:
            count, lines = count + 1, lines + own
    return Cut(first, count, lines)
