"""Where Targets come from: a BED with its genome, a FASTA by itself, a VCF with its genome.

path -> open_source -> survey (every record checked, counted) -> targets, from any record on -> check_end
"""

import contextlib
import itertools
import os
from typing import NamedTuple

from hybridna_core.data.genome import open_genome
from hybridna_core.data.inputs import warn
from hybridna_core.data.judging import GUARD_RECORDS, go_on, guard, judge, no_contig_known
from hybridna_core.data.shards import Cut
from hybridna_core.data.targets import (
    REGION_COLUMNS,
    VARIANT_COLUMNS,
    read_records,
    read_regions,
    read_sequences,
    read_variants,
)
from hybridna_core.data.vcf import VcfReader


class Survey(NamedTuple):
    """What an input holds: records, rows of the output that they make, bases, and those of the longest region."""

    records: int
    rows: int
    bases: int
    longest: int


@contextlib.contextmanager
def open_source(kind, path, fasta_ref, opening, window, renames, clip):
    """Yield the source of a bed, fasta or vcf file; all have the same methods.

    opening  further arguments of open_genome
    window   bases of each allele of a VCF
    renames  dict of contig names, old -> new; clip: as in read_bed
    """
    allow_missing_eof = opening[-1]
    with open_genome(path if kind == "fasta" else fasta_ref, *opening) as genome:
        if kind == "fasta":
            yield Sequences(path, genome)
        elif kind == "bed":
            yield Regions(path, genome, {"renames": renames, "clip": clip, "allow_missing_eof": allow_missing_eof})
        else:
            with VcfReader(path, allow_missing_eof=allow_missing_eof) as reader:
                yield Variants(reader, genome, renames, window, allow_missing_eof)


class Regions:
    """Lines of a BED file.

    columns  name -> type of the keys
    is_file  the file can be read as often as need be
    """

    columns = REGION_COLUMNS

    def __init__(self, path, genome, options):
        self.path, self.genome, self.options = path, genome, options
        self.is_file = os.path.isfile(path)
        self.warned = False

    def survey(self):
        """Read all records once, with every warning and error that they cause; return a Survey."""
        records = bases = longest = 0
        for target in self._all():
            length = target.length if target.status == "ok" else 0
            records, bases, longest = records + 1, bases + max(length, 1), max(longest, length)
        self.warned = True
        return Survey(records, records, bases, longest)

    def _all(self):
        return read_regions(self.path, self.genome, warned=self.warned, **self.options)

    def works(self):
        """Yield (rows, work) of each record, for divide."""
        for target in self._all():
            yield 1, 1 + (target.length if target.status == "ok" else 0)

    def targets(self, first=0, count=None):
        """Return the Targets of `count` records from number `first` on, all when None."""
        return itertools.islice(self._all(), first, None if count is None else first + count)

    def check_end(self, tally):
        """Raise what only the last record shows; read_bed does so by itself."""


class Sequences:
    """Records of a FASTA file, each as long as it is; as Regions."""

    columns, is_file = REGION_COLUMNS, True

    def __init__(self, path, genome):
        self.path, self.genome = path, genome

    def survey(self):
        lengths = self.genome.contigs.values()
        return Survey(len(lengths), len(lengths), sum(lengths), max(lengths))

    def works(self):
        for length in self.genome.contigs.values():
            yield 1, 1 + length

    def targets(self, first=0, count=None):
        return itertools.islice(read_sequences(self.genome), first, None if count is None else first + count)

    def check_end(self, tally):
        pass


class Variants:
    """Records of a VCF or BCF, two rows per ALT; as Regions. The first records are judged at once."""

    columns = VARIANT_COLUMNS

    def __init__(self, reader, genome, renames, window, allow_missing_eof):
        self.path, self.genome, self.renames, self.window = reader.path, genome, renames, window
        self.allow_missing_eof, self.is_file = allow_missing_eof, os.path.isfile(reader.path)
        self.arriving = reader.records()
        # An inserted stretch must leave room for what stands before it.
        self.judged = judge(self.arriving, genome, self.path, renames, "w", window - window // 2)
        self.ahead = list(itertools.islice(self.judged, GUARD_RECORDS))
        is_whole = len(self.ahead) < GUARD_RECORDS
        guard(self.ahead, is_whole, reader.header, genome, renames, self.path)

    def _again(self):
        return read_records(self.path, warned=True, allow_missing_eof=self.allow_missing_eof)

    def survey(self):
        records = rows = known = 0
        for record in self._again():
            records, rows = records + 1, rows + 2 * max(1, len(record.alts))
            known += known == 0 and self.genome.resolve(record.contig, self.renames) is not None
        if records and not known:
            raise no_contig_known(None, self.genome, self.path)
        return Survey(records, rows, rows * self.window, self.window if records else 0)

    def works(self):
        for record in self._again():
            yield 2 * max(1, len(record.alts)), 2 * max(1, len(record.alts)) * self.window

    def targets(self, first=0, count=None):
        mine = None if count is None else Cut(first, count, 0)
        done = first if mine is None else 0
        return read_variants(
            go_on(self.ahead, self.arriving, self.judged, mine, done), self.genome, self.path, self.window
        )

    def check_end(self, tally):
        if tally.records == 0:
            warn("empty-input", f"{self.path}: no records")
        elif not self.is_file and tally.statuses["unknown_contig"] == tally.statuses.total():
            raise no_contig_known(None, self.genome, self.path)
