"""FASTA access: what is read is right, the index is never stale, and each fault of group A has its outcome."""

import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tracemalloc

import numpy as np
import pyfaidx
import pysam
import pytest
from genome_files import bgzip, block, put, warnings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridna_core.data import fasta_index, fasta_scan
from hybridna_core.data.fasta_index import read_fai
from hybridna_core.data.fasta_scan import scan_fasta
from hybridna_core.data.genome import open_genome, read_renames
from hybridna_core.data.inputs import BGZF_EOF
from hybridna_core.errors import DataError, HybriDNAError, SystemFault, UsageError
from hybridna_core.tokenizer import encode

SEQUENCE = "ACGTTGCAAC" * 13 + "GATTACA"
PLAIN = f">one first contig\n{SEQUENCE[:60]}\n{SEQUENCE[60:120]}\n{SEQUENCE[120:]}\n>two\nACGTN\n".encode()


def refuse(kind, path, *words, **options):
    """Open the file, expect an error of that kind, and find the words in its message."""
    with pytest.raises(kind) as caught:
        open_genome(path, **options)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# --- What is right -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_fetch_returns_the_bases(tmp_path, compress):
    path = put(tmp_path, bgzip(PLAIN) if compress else PLAIN, "g.fa.gz" if compress else "g.fa")
    for _ in range(2):  # index built, then found
        with open_genome(path) as genome:
            assert genome.contigs == {"one": 137, "two": 5}
            assert genome.path == path
            for start, end in ((0, 137), (0, 1), (59, 61), (60, 60), (119, 137), (136, 137)):
                assert genome.fetch("one", start, end) == SEQUENCE[start:end]
            assert genome.fetch("two", 0, 5) == "ACGTN"
            assert np.array_equal(genome.ids("one", 5, 90), encode(SEQUENCE[5:90]))
            assert genome.digest("one") == hashlib.md5(SEQUENCE.encode()).hexdigest()


def test_fetch_outside_the_contig_is_refused(tmp_path):
    with open_genome(put(tmp_path, PLAIN)) as genome:
        for start, end in ((-1, 5), (0, 138), (5, 4), (137, 138)):
            with pytest.raises(DataError, match="outside the contig of 137 bp"):
                genome.fetch("one", start, end)
        with pytest.raises(DataError, match=r"no contig 'ones'.*did you mean one"):
            genome.fetch("ones", 0, 1)


def test_digest_counts_the_letters_as_they_stand(tmp_path):
    with open_genome(put(tmp_path, b">a\nacgtRYn\n")) as genome:
        assert genome.digest("a") == hashlib.md5(b"ACGTRYN").hexdigest()


def test_contig_names_are_never_guessed(tmp_path):
    with open_genome(put(tmp_path, b">chr1\nA\n>MT\nA\n>scaffold_12\nA\n")) as genome:
        assert genome.resolve("chr1") == "chr1"
        assert genome.resolve("1") is None
        assert genome.resolve("1", {"1": "chr1"}) == "chr1"
        assert genome.resolve("1", {"1": "chr7"}) is None
        assert (genome.alias("1"), genome.alias("chrM"), genome.alias("scaffold_21")) == ("chr1", "MT", None)
        assert genome.suggest("scafold_12") == "scaffold_12"
        assert genome.suggest("1") == "chr1"


def test_renames_are_pairs(tmp_path):
    assert read_renames(put(tmp_path, b"#old new\n1\tchr1\n\n MT  chrM\r\n")) == {"1": "chr1", "MT": "chrM"}
    with pytest.raises(DataError, match=r"genome.fa:2: 1 words, not two"):
        read_renames(put(tmp_path, b"1 chr1\n2\n"))
    with pytest.raises(DataError, match=r"'1' is given two new names"):
        read_renames(put(tmp_path, b"1 chr1\n1 chr2\n"))


letters = st.text("ACGTNacgtn", min_size=1, max_size=200)
contigs = st.lists(st.tuples(letters, st.integers(1, 70)), min_size=1, max_size=5)


def write_fasta(parts, end, last_newline, blank_tails):
    text = ""
    for i, (sequence, width) in enumerate(parts):
        lines = [sequence[k : k + width] for k in range(0, len(sequence), width)]
        text += f">c{i} number {i}{end}" + end.join(lines) + end + end * (blank_tails and i % 2)
    return (text if last_newline else text.rstrip(end)).encode()


@settings(max_examples=60, deadline=None)
@given(contigs, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(), st.integers(1, 300))
def test_index_is_that_of_samtools_and_pyfaidx(tmp_path_factory, parts, end, last_newline, blank_tails, piece):
    folder = tmp_path_factory.mktemp("fasta")
    content = write_fasta(parts, end, last_newline, blank_tails)
    path = put(folder, content)
    with open_genome(path) as genome:
        assert genome.contigs == {f"c{i}": len(s) for i, (s, _) in enumerate(parts)}
        for i, (sequence, _) in enumerate(parts):
            assert genome.fetch(f"c{i}", 0, len(sequence)) == sequence.upper()
            assert genome.fetch(f"c{i}", len(sequence) // 3, len(sequence)) == sequence[len(sequence) // 3 :].upper()
    ours = (folder / "genome.fa.fai").read_text()
    other = put(folder, content, "samtools.fa")
    pysam.faidx(other)
    theirs = (folder / "samtools.fa.fai").read_text()
    if end == "\n" or last_newline:
        assert ours == theirs
    # pyfaidx refuses blank lines after a contig.
    if not blank_tails:
        with pyfaidx.Fasta(put(folder, content, "pyfaidx.fa")) as oracle:
            assert {n: str(r).upper() for n, r in oracle.items()} == {
                f"c{i}": s.upper() for i, (s, _) in enumerate(parts)
            }
    scanner = fasta_scan._Scanner(path, None, False)
    for i in range(0, len(content), piece):
        scanner.feed(content[i : i + piece])
    assert fasta_index._index_bytes(scanner.finish())[0].decode() == ours


@settings(max_examples=30, deadline=None)
@given(contigs, st.integers(1, 80))
def test_bgzip_gives_the_same_as_plain(tmp_path_factory, parts, size):
    folder = tmp_path_factory.mktemp("fasta")
    content = write_fasta(parts, "\n", True, False)
    path = put(folder, bgzip(content, size), "g.fa.gz")
    for _ in range(2):
        with open_genome(path) as genome, open_genome(put(folder, content)) as plain:
            assert genome.contigs == plain.contigs
            for name, length in plain.contigs.items():
                assert genome.fetch(name, length // 2, length) == plain.fetch(name, length // 2, length)
    copy = put(folder, bgzip(content, size), "samtools.fa.gz")
    pysam.faidx(copy)
    assert (folder / "g.fa.gz.fai").read_bytes() == (folder / "samtools.fa.gz.fai").read_bytes()
    assert (folder / "g.fa.gz.gzi").read_bytes() == (folder / "samtools.fa.gz.gzi").read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.text("ACGTN", min_size=1, max_size=300), st.randoms())
def test_soft_masking_changes_nothing(tmp_path_factory, sequence, random):
    folder = tmp_path_factory.mktemp("fasta")
    masked = "".join(c.lower() if random.random() < 0.5 else c for c in sequence)
    with open_genome(put(folder, f">a\n{masked}\n".encode())) as genome:
        assert genome.fetch("a", 0, len(sequence)) == sequence
        assert np.array_equal(genome.ids("a", 0, len(sequence)), encode(sequence))


def test_shared_genomes_index_as_samtools_did(shared_data, tmp_path):
    files = sorted((shared_data / "genomes").glob("*/*.fa.gz"))
    assert len(files) > 40
    for file in files:
        copy = str(tmp_path / file.name)
        shutil.copy(file, copy)
        with open_genome(copy) as genome:
            assert genome.contigs
        for suffix in (".fai", ".gzi"):
            assert (tmp_path / (file.name + suffix)).read_bytes() == file.with_name(file.name + suffix).read_bytes()


def test_every_shared_edge_case_ends_well(shared_data, tmp_path):
    files = [p for p in sorted((shared_data / "edge_fasta").rglob("*")) if p.is_file() and p.suffix != ".fai"]
    opened = refused = 0
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(file, folder / file.name)
        try:
            with open_genome(folder / file.name) as genome:
                for contig, length in genome.contigs.items():
                    assert len(genome.fetch(contig, 0, length)) == length
            opened += 1
        except HybriDNAError as error:
            assert error.exit_code in (3, 5)
            refused += 1
    assert opened > 10 and refused > 10


# --- Group A, by row ------------------------------------------------------------------------------------------------


def test_a1_missing_file_names_the_nearest(tmp_path):
    put(tmp_path, PLAIN, "genome.fa")
    path = str(tmp_path / "genom.fa")
    message = refuse(SystemFault, path, path, "no such file", f"did you mean {tmp_path}/genome.fa?")
    assert "\n" not in message
    refuse(SystemFault, str(tmp_path / "no" / "x.fa"), "folder", "is not there either")


def test_a2_folder_pipe_and_socket(tmp_path):
    refuse(SystemFault, str(tmp_path), "is a folder")
    os.mkfifo(tmp_path / "pipe")
    refuse(SystemFault, str(tmp_path / "pipe"), "not a regular file", "write it to disk first")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(tmp_path / "s"))
        refuse(SystemFault, str(tmp_path / "s"), "not a regular file")


@pytest.mark.parametrize("content", [b"", b"\n\n", bgzip(b""), bgzip(b"\n")])
def test_a3_empty_file(tmp_path, content):
    refuse(DataError, put(tmp_path, content), "no sequence found", "download complete?")


def test_a4_contig_without_bases(tmp_path, caplog):
    path = put(tmp_path, b">a\n>b\nACGT\n>c\n\n>d\n")
    for _ in range(2):
        with open_genome(path) as genome:
            assert list(genome.contigs) == ["b"]
    assert [m.split(": ")[-1] for m in warnings_of(caplog, "empty-contig")] == [
        f"contig {name} has no bases; skipped" for name in "acd"
    ]
    refuse(DataError, put(tmp_path, b">a\n>b\n\n", "none.fa"), "no contig has any bases")


def test_a4_empty_contig_of_a_foreign_index(tmp_path, caplog):
    path = put(tmp_path, b">a\n>b\nACGT\n")
    put(tmp_path, b"a\t0\t3\t0\t0\nb\t4\t6\t4\t5\n", "genome.fa.fai")
    with open_genome(path) as genome:
        assert genome.contigs == {"b": 4}
    assert warnings_of(caplog, "empty-contig") == [f"{path}: contig a has no bases; skipped"]


def test_a5_text_before_the_first_header(tmp_path):
    refuse(DataError, put(tmp_path, b"\nhello, \x07this\n>a\nACGT\n"), "genome.fa:2: text before", "'hello, this'")


def test_a6_fastq(tmp_path):
    refuse(DataError, put(tmp_path, b"@r1\nACGT\n+\nIIII\n"), "looks like FASTQ", "seqtk")


@pytest.mark.parametrize("letter", "EFILPQZJOXe")
def test_a7_protein_letters(tmp_path, letter):
    path = put(tmp_path, f">a\nACGT\nAC{letter}T\n>b\nAC\n".encode())
    refuse(DataError, path, "genome.fa:3:3", repr(letter), "--other-letters n")
    with open_genome(path, other_letters="n") as genome:
        assert genome.fetch("a", 0, 8) == "ACGTACNT"
    with open_genome(path) as genome, pytest.raises(DataError, match=f"a:7: the letter {letter.upper()!r}"):
        genome.fetch("a", 0, 8)


def test_a8_nucleotide_codes_become_n(tmp_path, caplog):
    path = put(tmp_path, b">a\nACGTRYKM\nSWBDHVry\nA\n>b\nACGT\n>c\nAR\n")
    with open_genome(path) as genome:
        assert genome.fetch("a", 0, 17) == "ACGT" + "N" * 12 + "A"
    messages = warnings_of(caplog, "other-letters")
    assert len(messages) == 2
    assert "contig a: 12 letters" in messages[0] and "R 2" in messages[0] and "contig c: 1 letters" in messages[1]
    caplog.clear()
    with open_genome(path) as genome:
        assert genome.fetch("a", 4, 6) + genome.fetch("a", 4, 6) == "NNNN"
    assert warnings_of(caplog, "other-letters") == [f"{path}: contig a holds RY; read as N"]


@pytest.mark.parametrize("letter", "*-.5 \t")
def test_a9_signs_inside_a_sequence(tmp_path, letter):
    path = put(tmp_path, f">a\nACGT\nA{letter}GT\n".encode())
    for options in ({}, {"other_letters": "n"}):
        refuse(DataError, path, "genome.fa:3:2", f"{letter!r} inside a sequence", **options)


def test_a9_signs_under_a_foreign_index(tmp_path):
    path = put(tmp_path, b">a\nAC GT\nAC GT\n")
    pysam.faidx(path)
    refuse(DataError, path, "genome.fa:2:3")
    path = put(tmp_path, b">a\nAC-GT\nAC-GT\n", "gaps.fa")
    pysam.faidx(path)
    with open_genome(path) as genome, pytest.raises(DataError, match="a:3: '-' inside a sequence"):
        genome.fetch("a", 0, 4)


def test_a10_rna(tmp_path):
    path = put(tmp_path, b">a\nACGU\nacgu\n")
    refuse(DataError, path, "genome.fa:2:4", "RNA", "--rna")
    refuse(DataError, path, "--rna", other_letters="n")
    with open_genome(path, rna=True) as genome:
        assert genome.fetch("a", 0, 8) == "ACGTACGT"
    with open_genome(path) as genome, pytest.raises(DataError, match="--rna"):
        genome.fetch("a", 0, 8)


@pytest.mark.parametrize("byte", [0, 1, 27, 127])
@pytest.mark.parametrize("content", [b">a\nACGT\nA%cGT\n", b">a %c\nACGT\nACGT\n"])
def test_a12_control_bytes(tmp_path, byte, content):
    raw = content.replace(b"%c", bytes([byte]))
    refuse(DataError, put(tmp_path, raw), f"binary content at byte offset {raw.index(byte)}")


def test_a12_binary_from_the_start(tmp_path):
    refuse(DataError, put(tmp_path, bytes(range(256))), "binary content at byte offset 0")
    refuse(DataError, put(tmp_path, b"PK\x03\x04" + bytes(100)), "zip archive")
    refuse(DataError, put(tmp_path, bgzip(b"BAM\x01" + bytes(100))), "looks like BAM")


def test_a13_crlf_is_the_same_as_lf(tmp_path):
    other = put(tmp_path, PLAIN.replace(b"\n", b"\r\n"), "crlf.fa")
    with open_genome(put(tmp_path, PLAIN)) as lf, open_genome(other) as crlf:
        assert crlf.contigs == lf.contigs
        assert crlf.fetch("one", 50, 137) == lf.fetch("one", 50, 137)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b">a\nACGT\nACGT\r\nACGT\n", 3),
        (b">a\r\nACGT\r\nACGT\nACGT\n", 3),
        (b">a\nACGT\n>b\r\nACGT\r\n", 3),
        (b">a\nACGT\r\n", 2),
    ],
)
def test_a14_mixed_line_ends(tmp_path, content, line):
    refuse(DataError, put(tmp_path, content), f"genome.fa:{line}: line ends change", "dos2unix")


def test_a14_carriage_returns_alone(tmp_path):
    refuse(DataError, put(tmp_path, b">a\nACGT\rACGT\nAC\n"), "carriage return inside a line, at byte offset 7")
    refuse(DataError, put(tmp_path, b">a\rACGT\rACGT\r", "mac.fa"), "binary content at byte offset 2")


@pytest.mark.parametrize(
    ("content", "line", "contig"),
    [
        (b">a\nACGT\n>b\nACGT\nACG\nACGT\n", 6, "b"),
        (b">a\nACGT\nACGTA\n", 3, "a"),
        (b">a\nACGT\nACG\nA", 4, "a"),
        (b">a\nACGT\nACGTA", 3, "a"),
        (b">a\nACGT\nACG\nACGTAC\n>b\nA\n", 4, "a"),
    ],
)
def test_a15_unequal_lines(tmp_path, content, line, contig):
    for compress in (False, True):
        raw = bgzip(content, 3) if compress else content
        path = put(tmp_path, raw, f"u{compress}.fa")
        refuse(DataError, path, f"u{compress}.fa:{line}: contig {contig}", "unequal length", "rewrap")


@pytest.mark.parametrize(
    ("content", "line"), [(b">a\nACGT\n\nACGT\n", 4), (b">a\n\nACGT\n", 3), (b">a\nAC\n\n\nAC\n>b\nA\n", 5)]
)
def test_a16_blank_line_inside(tmp_path, content, line):
    refuse(DataError, put(tmp_path, content), f"genome.fa:{line}", "contig a has a blank line inside", "rewrap")


def test_a16_blank_lines_at_the_end_are_fine(tmp_path):
    with open_genome(put(tmp_path, b"\n>a\nACGT\n\n\n>b\nACGT\nAC\n\n")) as genome:
        assert genome.contigs == {"a": 4, "b": 6}


def test_a17_duplicate_names(tmp_path):
    refuse(DataError, put(tmp_path, b">a\nACGT\n>b\nAC\n>a\nACGT\n"), "genome.fa:5", "'a' was in line 1 already")


def test_a17_duplicate_names_under_a_foreign_index(tmp_path):
    path = put(tmp_path, b">a\nACGT\n>b\nAC\n>a\nTTTTT\n>c\nACGT\n")
    put(tmp_path, b"a\t4\t3\t4\t5\nb\t2\t11\t2\t3\nc\t4\t26\t4\t5\n", "genome.fa.fai")
    refuse(DataError, path, "'a' was in line 1 already")


@pytest.mark.parametrize("content", [b">a\nACGT\n>\nACGT\n", b">a\nACGT\n> b\nACGT\n"])
def test_a18_no_name(tmp_path, content):
    refuse(DataError, put(tmp_path, content), "genome.fa:3", "without a name")


def test_a19_names_equal_up_to_the_first_blank(tmp_path):
    path = put(tmp_path, b">a first\nACGT\n>b\nAC\n>a\tsecond\nACGT\n")
    refuse(DataError, path, "genome.fa:5", "'a first'", r"'a\tsecond'", "line 1")
    path = put(tmp_path, bgzip(b">a first\nACGT\n>b\nAC\n>a second\nACGT\n", 4), "z.fa")
    refuse(DataError, path, "'a first'", "'a second'")


def test_a20_not_utf8(tmp_path):
    refuse(DataError, put(tmp_path, b">a caf\xe9\nACGT\n"), "not UTF-8 at byte offset 6")
    refuse(DataError, put(tmp_path, b">a\nAC\xe9T\n"), "byte offset 5", "genome.fa:2:3")
    with open_genome(put(tmp_path, ">é caf\xe9\nACGT\n".encode(), "utf8.fa")) as genome:
        assert genome.fetch("é", 1, 3) == "CG"


def test_a21_byte_order_mark(tmp_path, caplog):
    path = put(tmp_path, b"\xef\xbb\xbf" + PLAIN)
    for _ in range(2):
        with open_genome(path) as genome:
            assert genome.fetch("one", 55, 65) == SEQUENCE[55:65]
    assert len(warnings_of(caplog, "byte-order-mark")) == 1
    assert len(warnings_of(caplog, "index")) == 1


def test_a22_gzip(tmp_path):
    path = put(tmp_path, gzip.compress(PLAIN), "g.fa.gz")
    refuse(DataError, path, "gzip", f"gunzip -c {path} | bgzip >")


def test_a23_no_end_block(tmp_path):
    whole = bgzip(PLAIN)
    path = put(tmp_path, whole[: -len(BGZF_EOF)])
    refuse(DataError, path, "may be truncated", "--allow-missing-eof")
    with open_genome(path, allow_missing_eof=True) as genome:
        assert genome.fetch("one", 0, 137) == SEQUENCE
    blocks = [bgzip(PLAIN[i : i + 50])[: -len(BGZF_EOF)] for i in range(0, len(PLAIN), 50)]
    refuse(DataError, put(tmp_path, b"".join(blocks[:2]), "cut.fa"), "may be truncated")


def test_a24_cut_or_damaged_block(tmp_path):
    whole = bgzip(PLAIN)
    second = len(block(PLAIN[:50]))
    refuse(DataError, put(tmp_path, whole[: second + 40], "cut.fa"), f"cut inside the block at byte {second}")
    flipped = bytearray(whole)
    flipped[second + 25] ^= 4
    refuse(DataError, put(tmp_path, bytes(flipped), "crc.fa"), f"the block at byte {second} is damaged")


def test_a24_damage_under_a_good_index(tmp_path):
    content = b">a\n" + b"ACGT" * 200 + b"\n"
    path = put(tmp_path, bgzip(content))
    open_genome(path).close()
    flipped = bytearray(bgzip(content))
    flipped[len(flipped) // 2] ^= 4
    for suffix in (".fai", ".gzi"):
        os.utime(path + suffix, (2**32, 2**32))
    put(tmp_path, bytes(flipped))
    with open_genome(path) as genome, pytest.raises(DataError, match="damaged"):
        for start in range(0, 800, 50):
            genome.fetch("a", start, start + 50)


def test_a25_empty_block_inside(tmp_path):
    content = bgzip(PLAIN[:80]) + bgzip(PLAIN[80:])
    for _ in range(2):
        with open_genome(put(tmp_path, content)) as genome:
            assert genome.fetch("one", 0, 137) == SEQUENCE
            assert genome.fetch("two", 0, 5) == "ACGTN"


def test_a26_index_is_built_and_renamed(tmp_path, caplog):
    path = put(tmp_path, PLAIN)
    open_genome(path).close()
    assert warnings_of(caplog, "index") == [f"{path}: no index (.fai); building it"]
    assert sorted(os.listdir(tmp_path)) == ["genome.fa", "genome.fa.fai"]
    caplog.clear()
    open_genome(path).close()
    assert not caplog.records


def test_a27_folder_that_cannot_be_written(tmp_path, caplog, monkeypatch):
    for content in (PLAIN, bgzip(PLAIN)):
        path = put(tmp_path, content)
        os.chmod(tmp_path, 0o555)
        try:
            with open_genome(path) as genome:
                assert genome.fetch("one", 0, 137) == SEQUENCE
                assert sorted(os.listdir(tmp_path)) == ["genome.fa"]
        finally:
            os.chmod(tmp_path, 0o755)
    assert any("read-only; the index is kept for this run only" in m for m in warnings_of(caplog, "index"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with open_genome(path) as genome:
        assert genome.fetch("two", 0, 5) == "ACGTN"
    assert sorted(os.listdir(tmp_path)) == ["genome.fa"]
    assert any("cannot be written (No space left" in m for m in warnings_of(caplog, "index"))


def test_a28_sixteen_processes_start_at_once(tmp_path):
    path = put(tmp_path, bgzip(b">a\n" + b"ACGTACGTAC\n" * 20000 + b">b\nACGT\n", 60000))
    code = (
        "import sys, time; from hybridna_core.data.genome import open_genome;"
        "sys.stdin.readline(); g = open_genome(sys.argv[1]); print(g.fetch('a', 199990, 200000), g.fetch('b', 0, 4))"
    )
    command = [sys.executable, "-W", "error", "-c", code, path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, **pipes) for _ in range(16)]
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    answers = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0] * 16, answers
    assert {out for out, _ in answers} == {"ACGTACGTAC ACGT\n"}
    assert sorted(os.listdir(tmp_path)) == ["genome.fa", "genome.fa.fai", "genome.fa.gzi"]


@pytest.mark.parametrize("compress", [False, True])
def test_a29_older_index_is_built_again(tmp_path, caplog, compress):
    squeeze = bgzip if compress else bytes
    path = put(tmp_path, squeeze(b">a\nACGT\nACGT\n"))
    open_genome(path).close()
    put(tmp_path, squeeze(b">a\nTTTTTTTT\nGGGGG\n"))
    for suffix in (".fai", ".gzi") if compress else (".fai",):
        os.utime(path + suffix, (1000, 1000))
    caplog.clear()
    for _ in range(2):
        with open_genome(path) as genome:
            assert genome.fetch("a", 0, 13) == "TTTTTTTTGGGGG"
    assert len(warnings_of(caplog, "index")) == 1 and "older" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b">a\nACGTACGT\nACGT\n>b\nAC\n",  # another line length
        b">a\nACGT\nACGT\n>c\nAC\n",  # another name
        b">a\nACGT\nACGT\n>b\nAC\n>c\nACGT\n",  # one contig more
        b">a\nACGT\nACGT\n>b\nACGT\nA\n",  # last contig longer
        b">aa\nACGT\nACGT\n>b\nAC\n",  # shifted by one
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_a29_index_that_does_not_fit_is_built_again(tmp_path, caplog, content, compress):
    squeeze = bgzip if compress else bytes
    path = put(tmp_path, squeeze(b">a\nACGT\nACGT\n>b\nAC\n"))
    open_genome(path).close()
    put(tmp_path, squeeze(content))
    for suffix in (".fai", ".gzi") if compress else (".fai",):
        os.utime(path + suffix, (2**32, 2**32))
    caplog.clear()
    with open_genome(path) as genome:
        expected = {
            p.split(b"\n")[0].decode(): p.split(b"\n", 1)[1].replace(b"\n", b"") for p in content.split(b">")[1:]
        }
        assert {n: genome.fetch(n, 0, k).encode() for n, k in genome.contigs.items()} == expected
    assert "does not fit" in caplog.text or "building it again" in caplog.text


def test_a29_fasta_dated_in_the_future(tmp_path, caplog):
    path = put(tmp_path, PLAIN)
    os.utime(path, (2**32, 2**32))
    open_genome(path).close()
    caplog.clear()
    open_genome(path).close()
    assert not caplog.records


def test_a29_rebuild_on_demand(tmp_path):
    path = put(tmp_path, PLAIN)
    put(tmp_path, b"rubbish", "genome.fa.fai")
    refuse(DataError, path, "genome.fa.fai:1", "--rebuild-index")
    with open_genome(path, rebuild_index=True) as genome:
        assert genome.contigs == {"one": 137, "two": 5}
    open_genome(path).close()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"rubbish\n", 1),
        (b"one\t137\t18\t60\t61\ntwo\t5\t-3\t5\t6\n", 2),
        (b"one\t99999999999999999999\t18\t60\t61\n", 1),
        (b"one\t1.5\t18\t60\t61\n", 1),
        (b"one\t137\t18\t0\t61\n", 1),
        (b"one\t137\t18\t61\t60\n", 1),
        (b"one\t137\t18\t60\t61\none\t5\t164\t5\t6\n", 2),
        (b"\xff\t137\t18\t60\t61\n", 1),
        (b"\x00" * 500, 1),
    ],
)
def test_a30_index_that_is_none(tmp_path, content, line):
    path = put(tmp_path, PLAIN)
    put(tmp_path, content, "genome.fa.fai")
    refuse(DataError, path, f"genome.fa.fai:{line}: ", "delete it")


def test_a30_empty_index(tmp_path):
    path = put(tmp_path, PLAIN)
    put(tmp_path, b"", "genome.fa.fai")
    refuse(DataError, path, "genome.fa.fai: the index is empty", "delete it")


@pytest.mark.parametrize("compress", [False, True])
def test_a31_file_shorter_than_its_index(tmp_path, compress):
    squeeze = bgzip if compress else bytes
    path = put(tmp_path, squeeze(PLAIN))
    open_genome(path).close()
    put(tmp_path, squeeze(PLAIN[:100]))
    for suffix in (".fai", ".gzi") if compress else (".fai",):
        os.utime(path + suffix, (2**32, 2**32))
    if compress:
        shutil.copy(path, tmp_path / "short.fa.gz")
        open_genome(str(tmp_path / "short.fa.gz")).close()
        shutil.copy(tmp_path / "short.fa.gz.gzi", path + ".gzi")
    refuse(DataError, path, "shorter than its index says (100 bytes", "--rebuild-index")


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\x01", (2**63).to_bytes(8, "little"), (9).to_bytes(8, "little") + bytes(16), b"\xff" * 8 + bytes(64)],
)
def test_a32_gzi_that_cannot_be_right(tmp_path, caplog, content):
    path = put(tmp_path, bgzip(PLAIN))
    open_genome(path).close()
    right = (tmp_path / "genome.fa.gzi").read_bytes()
    os.unlink(path + ".gzi")
    if content is not None:
        put(tmp_path, content, "genome.fa.gzi")
    caplog.clear()
    with open_genome(path) as genome:
        assert genome.fetch("one", 100, 137) == SEQUENCE[100:]
    assert len(warnings_of(caplog, "index")) == 1
    assert (tmp_path / "genome.fa.gzi").read_bytes() == right


@pytest.mark.parametrize("place", range(12))
def test_a32_gzi_with_a_wrong_offset(tmp_path, caplog, place):
    path = put(tmp_path, bgzip(PLAIN, 25))
    open_genome(path).close()
    right = (tmp_path / "genome.fa.gzi").read_bytes()
    wrong = np.frombuffer(right[8:], dtype="<u8").copy()
    assert len(wrong) == 12
    wrong[place] += 7
    put(tmp_path, right[:8] + wrong.tobytes(), "genome.fa.gzi")
    try:
        with open_genome(path) as genome:
            assert genome.fetch("one", 0, 137) == SEQUENCE
    except DataError as error:
        assert error.exit_code == 3
    with open_genome(path, rebuild_index=True) as genome:
        assert genome.fetch("one", 0, 137) == SEQUENCE


def test_a33_file_changed_while_running(tmp_path):
    path = put(tmp_path, PLAIN)
    with open_genome(path) as genome:
        genome.check_unchanged()
        put(tmp_path, PLAIN + b">three\nA\n")
        with pytest.raises(DataError, match="changed since the start"):
            genome.check_unchanged()
        os.unlink(path)
        with pytest.raises(DataError, match="changed since the start"):
            genome.check_unchanged()


def test_a36_memory_is_flat(tmp_path):
    # One line of 64 MiB in a file of 65 kB; no contig is ever held whole.
    path = str(tmp_path / "bomb.fa.gz")
    with open(path, "wb") as handle:
        handle.write(block(b">a\n"))
        handle.write(block(b"A" * 65280) * 1028)
        handle.write(block(b"C\n") + BGZF_EOF)
    tracemalloc.start()
    try:
        with open_genome(path) as genome:
            length = 65280 * 1028 + 1
            assert genome.contigs == {"a": length}
            assert genome.fetch("a", length - 3, length) == "AAC"
            genome.digest("a")
        assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a37_contig_over_two_to_the_31(tmp_path):
    path = str(tmp_path / "huge.fa.gz")
    count = 2**31 // 65280 + 10
    with open(path, "wb") as handle:
        handle.write(block(b">a\n") + block(b"A" * 65280) * count + block(b"CGT\n>b\nACGT\n") + BGZF_EOF)
    for _ in range(2):
        with open_genome(path) as genome:
            length = genome.contigs["a"]
            assert length == 65280 * count + 3 > 2**31
            assert genome.fetch("a", length - 5, length) == "AACGT"
            assert genome.fetch("b", 0, 4) == "ACGT"


def test_a37_many_contigs(tmp_path):
    names = [f"contig_{i}" for i in range(50000)]
    path = put(tmp_path, "".join(f">{name}\nACGT\nAC\n" for name in names).encode())
    for _ in range(2):
        with open_genome(path) as genome:
            assert list(genome.contigs) == names
            assert genome.fetch("contig_49999", 2, 6) == "GTAC"


def test_a38_standard_input(tmp_path):
    refuse(UsageError, "-", "give a file")


def test_faults_have_their_exit_codes(tmp_path):
    for path, code in (("-", 2), (put(tmp_path, b"@r\n"), 3), (str(tmp_path / "none"), 5)):
        with pytest.raises(HybriDNAError) as caught:
            open_genome(path)
        assert caught.value.exit_code == code


def test_nothing_is_printed(tmp_path, capfd):
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 400000)
    path = put(tmp_path, bgzip(b">a\n" + bases.tobytes() + b"\n", 60000))
    with open_genome(path) as genome:
        put(tmp_path, b"x" * 40)
        with pytest.raises(DataError, match="changed since the start"):
            genome.fetch("a", 399990, 400000)
    assert capfd.readouterr() == ("", "")


def test_scan_and_read_fai_agree(tmp_path):
    path = put(tmp_path, PLAIN)
    index = scan_fasta(path)
    open_genome(path).close()
    again = read_fai(path + ".fai")
    assert index.names == again.names and index.lengths == again.lengths and index.offsets == again.offsets
