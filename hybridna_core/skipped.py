"""Alleles without a score: what each status means, a table of them, and which of them make a run fail.

Scores of a record -> lines of a table; text of --fail-on -> statuses
"""

from hybridna_core.data.inputs import printable
from hybridna_core.data.variants import REASONS
from hybridna_core.data.vcf import to_bytes
from hybridna_core.data.vcf_output import open_lines
from hybridna_core.errors import UsageError, nearest

MEANINGS = {
    "ref_mismatch": "REF is not what the FASTA has there",
    "bad_pos": "POS is not a position",
    "bad_ref": "REF is no sequence of bases",
    "ambiguous_ref": "REF, or the FASTA there, holds N or a code for several bases",
    "bad_alt": "ALT is neither bases nor a known kind of symbol",
    "no_alt": "the record has no alternative allele",
    "spanning": "the allele is a deletion that another record describes",
    "symbolic": "the sequence of the allele is not known",
    "breakend": "the allele joins this place to another one",
    "imprecise": "the ends or the length of the event are uncertain, or contradict each other",
    "no_change": "the allele leaves the sequence as it is",
    "unknown_contig": "the FASTA has no such contig",
    "out_of_range": "the allele lies beyond the contig's ends, or no base is left to count there",
    "too_long": "the allele inserts as many bases as the horizon, or more",
    "too_many_n": "too many of the bases that would be read are unknown",
    "excluded": "REF is not what the FASTA has there",
}


class SkippedTable:
    """Writes the alleles without a score to an open binary handle, a line each; `close` completes the table.

    genome, renames  where bases of the FASTA are shown beside a REF that differs
    is_bgzf          in bgzip blocks
    held             None for a new file; of one that is gone on with, what `settle` returned

    Columns: #chrom pos id ref alt status why; as the record spells them, why in words.
    """

    def __init__(self, handle, genome, renames=None, is_bgzf=False, held=None):
        self.genome, self.renames = genome, renames
        self.sink = open_lines(handle, is_bgzf, held)
        if held is None:
            self.sink.write(b"#chrom\tpos\tid\tref\talt\tstatus\twhy\n")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.sink.close()

    def settle(self):
        """Return the bytes that wait for their block to be full; all others are handed on."""
        return self.sink.held

    def write_record(self, record, scores):
        """Write the ALTs of a record that have no score."""
        for alt, score in zip(record.columns[4].split(b","), scores, strict=True):
            if score.llr is None:
                why = self._explain(record, score.status)
                fields = [*record.columns[:4], alt, score.status.encode(), to_bytes(why)]
                self.sink.write(b"\t".join(fields) + b"\n")

    def _explain(self, record, status):
        if status not in ("ref_mismatch", "excluded"):
            return MEANINGS[status]
        contig, start = self.genome.resolve(record.contig, self.renames), record.pos - 1
        there = self.genome.fetch(contig, start, start + len(record.ref))
        return f"REF is {printable(to_bytes(record.ref), 20)}, the FASTA has {printable(there.encode(), 20)}"


def read_statuses(text):
    """Return the statuses of `--fail-on`: comma-separated text or a list; None gives none. Raises UsageError."""
    words = text.split(",") if isinstance(text, str) else text or ()
    known = (*REASONS, "swapped")
    for word in words:
        if word not in known:
            close = nearest(word, known)
            hint = f"did you mean {close}?" if close else f"one of {', '.join(known)}"
            raise UsageError(f"{word!r} is no status of an allele", where="--fail-on", hint=hint)
    return tuple(dict.fromkeys(words))
