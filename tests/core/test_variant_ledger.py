"""What becomes of the VCF and BCF files of many projects: each ends cleanly, and no allele is lost.

file -> genome of its own contigs and REF alleles, random bases elsewhere -> score_variants -> variant_ledger.tsv

The files lie outside the repository; the table of what became of each is ours. After a change that is meant, write it
anew: python tests/core/test_variant_ledger.py ../shared/data
"""

import bisect
import collections
import contextlib
import math
import os
import random
import re
import sys
import tempfile
from pathlib import Path

import pysam
import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from toys import random_model  # noqa: E402

from hybridna_core import scoring  # noqa: E402
from hybridna_core.commands import score_variants as module  # noqa: E402
from hybridna_core.data import judging  # noqa: E402
from hybridna_core.data.genome import ContigNames, open_genome  # noqa: E402
from hybridna_core.data.inputs import read_chunks  # noqa: E402
from hybridna_core.data.variants import REASONS, SCORED, Allele  # noqa: E402
from hybridna_core.errors import DataError, HybriDNAError  # noqa: E402
from hybridna_core.tokenizer import encode  # noqa: E402

LEDGER = TESTS / "data" / "variant_ledger.tsv"
FOLDERS = ("edge_vcf", "formats", "variants")
WINDOW, HORIZON = 48, 24
# Records of one file that are looked at.
RECORDS = 300
FASTA_LIMIT = 10**6
FILLER = "".join(random.Random(1).choices("ACGT", k=65521))
LITERAL = re.compile("[ACGT]+")


class OwnGenome(ContigNames):
    """A genome with given stretches, and filler elsewhere, of contigs of any length and name.

    stretches  contig -> {start: bases}; of two that overlap the one further left holds
    ends       contig -> how far it goes at least
    """

    path = "own.fa"

    def __init__(self, stretches, ends):
        self.stretches, self.contigs, self.starts = {}, {}, {}
        for contig, found in stretches.items():
            kept, end = {}, 0
            for start, bases in sorted(found.items()):
                if start + len(bases) > end:
                    cut = max(end - start, 0)
                    kept[start + cut], end = bases[cut:], start + len(bases)
            self.stretches[contig], self.starts[contig] = kept, sorted(kept)
            self.contigs[contig] = max(end, ends.get(contig, 0)) + 60

    def fetch(self, contig, start, end):
        assert 0 <= start <= end <= self.contigs[contig]
        first = start % len(FILLER)
        bases = list((FILLER[first:] + FILLER * (1 + (end - start) // len(FILLER)))[: end - start])
        starts = self.starts[contig]
        for at in starts[max(bisect.bisect(starts, start) - 1, 0) : bisect.bisect_left(starts, end)]:
            given = self.stretches[contig][at]
            low, high = max(at, start), min(at + len(given), end)
            if low < high:
                bases[low - start : high - start] = given[low - at : high - at]
        return "".join(bases)

    def ids(self, contig, start, end):
        return encode(self.fetch(contig, start, end))

    def digest(self, contig):
        return "0" * 32

    def check_unchanged(self):
        pass

    def write(self, path):
        """Write the genome as FASTA."""
        Path(path).write_text("".join(f">{name}\n{self.fetch(name, 0, n)}\n" for name, n in self.contigs.items()))
        Path(f"{path}.fai").unlink(missing_ok=True)

    @property
    def is_small(self):
        """Whether a FASTA can hold it, and is quickly made."""
        fits = all(re.fullmatch(r"[\w.:*-]+", name, re.ASCII) for name in self.contigs)
        return fits and 0 < sum(self.contigs.values()) <= FASTA_LIMIT


def find_files(data):
    """Yield the VCF and BCF files below the development data: name, path."""
    for folder in FOLDERS:
        for path in sorted((data / folder).rglob("*")):
            if path.is_file() and re.search(r"\.(vcf|bcf)(\.b?gz)?$", path.name):
                yield path.relative_to(data).as_posix(), path


def read_lines(path):
    """Columns of each record, as text; of a broken file those before the break. None of ours but the decompression."""
    if re.search(r"\.bcf(\.b?gz)?$", path.name):
        with contextlib.suppress(OSError, ValueError), pysam.VariantFile(str(path)) as file:
            return [str(record).rstrip("\n").split("\t") for record in file]
        return []
    raw = b""
    with contextlib.suppress(HybriDNAError):
        for chunk in read_chunks(str(path), allow_missing_eof=True):
            raw += chunk
    lines = raw.decode("latin-1").splitlines()
    return [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]


def make_own_genome(lines):
    """Return the OwnGenome of records' contigs and REF alleles, and how many alleles of theirs can surely be scored."""
    stretches, ends = collections.defaultdict(dict), collections.Counter()
    for columns in lines:
        stretches[columns[0]].setdefault(0, "A")
        if len(columns) >= 8 and re.fullmatch("[1-9][0-9]{0,14}", columns[1]):
            far = [int(end) for end in re.findall(r"(?:^|;)END=([0-9]{1,15})(?=;|$)", columns[7])]
            far += [int(columns[1]) + int(n) for n in re.findall(r"(?:^|;)SVLEN=-?([0-9]{1,15})(?=;|$)", columns[7])]
            ends[columns[0]] = max(ends[columns[0]], *far, 0)
            bases = columns[3].upper() if re.fullmatch("[ACGTN]+", columns[3].upper()) else "A"
            held = stretches[columns[0]].get(int(columns[1]) - 1, "")
            stretches[columns[0]][int(columns[1]) - 1] = bases if len(bases) >= len(held) else held
    genome, scorable = OwnGenome(stretches, ends), 0
    for contig, pos, _, ref, alts in (columns[:5] for columns in lines if len(columns) >= 8):
        start, ref = int(pos) - 1 if pos.isdigit() and len(pos) < 16 else -1, ref.upper()
        if contig not in genome.contigs or start < 0 or not LITERAL.fullmatch(ref):
            continue
        low, high = max(start - HORIZON, 0), min(start + len(ref) + HORIZON, genome.contigs[contig])
        if "N" in genome.fetch(contig, low, high) or genome.fetch(contig, start, start + len(ref)) != ref:
            continue
        texts = [alt.upper() for alt in alts.split(",") if LITERAL.fullmatch(alt.upper())]
        scorable += sum(alt != ref and len(alt) - len(ref) < HORIZON for alt in texts)
    return genome, scorable


def shorten(path, lines, folder):
    """Return a path to the file's header and first records, where there are too many."""
    if len(lines) <= RECORDS:
        return path, lines
    header = [x for x in b"".join(read_chunks(str(path))).splitlines() if x.startswith(b"#")]
    target = Path(folder) / "short.vcf"
    text = "".join("\t".join(columns) + "\n" for columns in lines[:RECORDS])
    target.write_bytes(b"\n".join(header) + b"\n" + text.encode("latin-1"))
    return target, lines[:RECORDS]


def judge_file(path, folder, model):
    """Score a file against a genome of its own; return exit code, records, alleles, scored and the rest in words.

    Raises AssertionError where an allele is lost, or none is scored though one could be.
    """
    path, lines = shorten(path, read_lines(path), folder)
    genome, scorable = make_own_genome(lines)
    fasta, output = os.path.join(folder, "own.fa"), os.path.join(folder, "out.vcf")
    (genome if genome.is_small else OwnGenome({"x": {0: "ACGT"}}, {})).write(fasta)
    opened = open_genome if genome.is_small else lambda *_: contextlib.nullcontext(genome)
    options = {"model": model, "window": WINDOW, "horizon": HORIZON, "force": True, "replace": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_genome", opened)
        try:
            summary = module.score_variants(str(path), fasta, output, **options)
        except HybriDNAError as error:
            assert error.exit_code in (2, 3, 5) and not os.path.exists(output)
            # What the file holds is not ours to keep.
            return str(error.exit_code), "", "", "", re.split(r"[:(]|(?: at)? '", error.what)[0].strip()
    os.unlink(output)
    alleles = sum(len(columns[4].split(",")) for columns in lines)
    assert summary.records == len(lines) and summary.alleles == alleles == sum(summary.statuses.values())
    assert set(summary.statuses) <= {*SCORED, *REASONS}
    assert summary.scored >= scorable
    rest = " ".join(f"{status}:{count}" for status, count in sorted(summary.statuses.items()) if status not in SCORED)
    return "0", str(summary.records), str(summary.alleles), str(summary.scored), rest


@contextlib.contextmanager
def stubbed_model():
    """Yield a model that is never asked: what the network says is of no matter here, and would take an hour."""
    quarter = math.log(1 / 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "read", lambda model, tokens, _, **options: (tokens.double().fill_(quarter), None))
        yield random_model()


def read_ledger():
    header, *lines = LEDGER.read_text("utf-8").splitlines()
    assert header == "file\texit\trecords\talleles\tscored\trest"
    return {line.split("\t")[0]: tuple(line.split("\t")[1:]) for line in lines}


def write_ledger(data):
    with stubbed_model() as model, tempfile.TemporaryDirectory() as folder:
        rows = [(name, *judge_file(path, folder, model)) for name, path in find_files(data)]
    lines = ["\t".join(row) for row in (("file", "exit", "records", "alleles", "scored", "rest"), *rows)]
    LEDGER.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def test_every_file_ends_as_the_ledger_says(shared_data, tmp_path):
    due, files = read_ledger(), dict(find_files(shared_data))
    assert files.keys() == due.keys()
    with stubbed_model() as model:
        found = {name: judge_file(path, str(tmp_path), model) for name, path in files.items()}
    assert {name: row for name, row in found.items() if row != due[name]} == {}


def test_the_ledger_holds_what_was_asked():
    rows = read_ledger()
    assert len([name for name in rows if name.startswith("edge_vcf/")]) == 877
    assert {row[0] for row in rows.values()} <= {"0", "2", "3", "5"}
    scored = [row for row in rows.values() if row[0] == "0" and int(row[3])]
    assert len(scored) > 600 and sum(int(row[3]) for row in scored) > 13_000
    for code, _, alleles, count, rest in rows.values():
        if code == "0":
            assert int(alleles) == int(count) + sum(int(word.split(":")[1]) for word in rest.split())


def test_a_genome_of_ones_own_is_that_of_its_fasta(tmp_path, monkeypatch):
    """Files of long contigs are scored against the same text without a FASTA."""
    monkeypatch.chdir(tmp_path)
    lines = [["1", "70000", ".", "ACGT", "A,<DEL>"], ["1", "70002", ".", "TTTTG", "A"], ["2", "3", ".", "NN", "C"]]
    genome, scorable = make_own_genome([[*columns, ".", ".", "."] for columns in lines])
    assert scorable == 1 and genome.contigs == {"1": 70066, "2": 64}
    assert genome.fetch("1", 69998, 70008) == f"{FILLER[69998 % 65521]}ACGTTTG" + FILLER[70006 % 65521 :][:2]
    genome.write("own.fa")
    with open_genome("own.fa") as written:
        assert written.contigs == genome.contigs
        for start, end in ((0, 70066), (69990, 70001), (70003, 70004), (65500, 65600), (5, 5)):
            assert written.fetch("1", start, end) == genome.fetch("1", start, end)


def test_a_lost_allele_is_noticed(tmp_path, monkeypatch):
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    path = tmp_path / "in.vcf"
    path.write_text(header + "1\t50\t.\tA\tC,*\t.\t.\t.\n")
    with stubbed_model() as model:
        assert judge_file(path, str(tmp_path), model) == ("0", "1", "2", "1", "spanning:1")
        kept = judging.read_alleles
        barred = Allele("symbolic")
        for faulty in (lambda *a, **k: kept(*a, **k)[:-1], lambda *a, **k: [barred for _ in kept(*a, **k)]):
            monkeypatch.setattr(judging, "read_alleles", faulty)
            with pytest.raises(AssertionError):
                judge_file(path, str(tmp_path), model)
        monkeypatch.setattr(judging, "read_alleles", kept)
        path.write_text("broken")
        assert judge_file(path, str(tmp_path), model)[0] == str(DataError.exit_code)


if __name__ == "__main__":
    write_ledger(Path(sys.argv[1]))
