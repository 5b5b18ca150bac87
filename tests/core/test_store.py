"""Packed stores: the same bases as the file, whatever happens to either, and little of them in memory."""

import gzip
import hashlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from genome_files import bgzip, put, warnings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridna_core.data import store as module
from hybridna_core.data.corpus import Corpus, load_species
from hybridna_core.data.store import BLOCK_BYTES, HEADER_BYTES, open_store, scan_store
from hybridna_core.errors import DataError, HybriDNAError, SystemFault, UsageError
from hybridna_core.run_config import SpeciesConfig
from hybridna_core.tokenizer import decode, encode

BASES = "ACGTNacgtn"


def fasta(*texts, width=60):
    lines = []
    for i, text in enumerate(texts):
        lines += [f">c{i} words", *(text[at : at + width] for at in range(0, len(text), width))]
    return ("\n".join(lines) + "\n").encode()


def drawn(length, seed=0, letters="ACGTacgtN"):
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


def read_back(store):
    """The texts of all contigs, in the case of the file."""
    found = []
    for offset, length in zip(store.offsets.tolist(), store.lengths.tolist(), strict=True):
        upper = decode(store.ids(offset, offset + length))
        lower = store.masked(offset, offset + length)
        found.append("".join(b.lower() if m else b for b, m in zip(upper, lower, strict=True)))
    return found


@pytest.fixture
def packings(monkeypatch):
    """How often something was packed."""
    found = []
    real = module._pack
    monkeypatch.setattr(module, "_pack", lambda path, *rest: (found.append(path), real(path, *rest)))
    return found


# --- What is in it ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(BASES, min_size=1, max_size=70), min_size=1, max_size=5), piece=st.sampled_from([2, 8, 64])
)
def test_every_base_case_and_run_of_n_comes_back(tmp_path_factory, texts, piece):
    path = put(tmp_path_factory.mktemp("s"), fasta(*texts, width=13))
    before, module.PIECE = module.PIECE, piece
    try:
        store = open_store(path)
        scanned = scan_store(put(tmp_path_factory.mktemp("s"), fasta(*texts, width=13)))
    finally:
        module.PIECE = before
    assert read_back(store) == texts
    assert store.contigs == {f"c{i}": len(text) for i, text in enumerate(texts)} == scanned.contigs
    runs = []
    for offset, text in zip(store.offsets.tolist(), texts, strict=True):
        edges = np.flatnonzero(np.diff([0, *(b in "Nn" for b in text), 0])).reshape(-1, 2) + offset
        runs += edges.tolist()
    assert store.unknown.tolist() == runs == scanned.unknown.tolist()
    everything = [b for text in texts for b in text + "_" * (len(text) % 2)]
    for start in range(0, len(everything), 7):
        for end in range(start, len(everything) + 1, 11):
            assert store.count_unknown(start, end) == sum(b in "Nn" for b in everything[start:end])
    for offset, text in zip(store.offsets.tolist(), texts, strict=True):
        half = len(text) // 3
        assert np.array_equal(store.ids(offset + half, offset + len(text)), encode(text[half:]))
        assert store.ids(offset, offset).shape == (0,)
    assert [store.name(int(store.contig_at(o))) for o in store.offsets] == list(store.contigs)


def test_four_bits_a_base(tmp_path):
    store = open_store(put(tmp_path, fasta(drawn(400_000))))
    assert Path(store.file).stat().st_size == HEADER_BYTES + 200_000 + 2 + 8 + 8 + 16 * len(store.unknown) + 4 * 16 + 32
    assert store.file == store.path + ".packed"
    # A window over the edge of two blocks.
    text = drawn(400_000)
    at = 2 * BLOCK_BYTES - 50
    assert decode(store.ids(at, at + 101)) == text[at : at + 101].upper()


@pytest.mark.parametrize("kind", ["bgzip", "crlf", "one line"])
def test_kinds_of_fasta(tmp_path, kind):
    texts = [drawn(500), drawn(61, 1)]
    content = fasta(*texts, width=10**6 if kind == "one line" else 50)
    content = {"bgzip": bgzip(content), "crlf": content.replace(b"\n", b"\r\n"), "one line": content}[kind]
    assert read_back(open_store(put(tmp_path, content))) == texts


def test_other_letters_become_n(tmp_path, caplog):
    path = put(tmp_path, b">c\nACRyKNUu\n")
    with pytest.raises(DataError, match="looks like RNA"):
        open_store(path)
    assert read_back(open_store(path, rna=True)) == ["ACNnNNTt"]
    # What was read leniently is not taken by one who would have it refused.
    with pytest.raises(DataError, match="looks like RNA"):
        open_store(path)
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".tmp", ".lock")]


def flat_file(format_name, texts):
    from Bio import SeqIO
    from Bio.Seq import Seq
    from Bio.SeqFeature import FeatureLocation, SeqFeature
    from Bio.SeqRecord import SeqRecord

    records = []
    for i, text in enumerate(texts):
        record = SeqRecord(Seq(text), id=f"AB{i:06}.1", name=f"AB{i:06}", annotations={"molecule_type": "DNA"})
        record.features.append(SeqFeature(FeatureLocation(1, 5, strand=-1), type="gene", qualifiers={"gene": ["x"]}))
        records.append(record)
    handle = io.StringIO()
    SeqIO.write(records, handle, format_name)
    return handle.getvalue().encode()


@pytest.mark.parametrize("format_name", ["genbank", "embl"])
@pytest.mark.parametrize("packed", [None, "gzip", "bgzip"])
def test_genbank_and_embl(tmp_path, format_name, packed):
    texts = [drawn(203, 1, "ACGTN"), drawn(64, 2, "ACGT")]
    content = flat_file(format_name, texts)
    content = {None: content, "gzip": gzip.compress(content), "bgzip": bgzip(content)}[packed]
    path = put(tmp_path, content, "genome.gbff")
    store = open_store(path)
    # Lower case is how these files are written and says nothing.
    assert read_back(store) == texts
    assert list(store.contigs) == ["AB000000.1", "AB000001.1"]
    assert scan_store(path).contigs == store.contigs
    one = load_species(SpeciesConfig("bug", path, valid=("AB000001.1",), exclude=("AB000000.1:1-100",)))
    assert [(s.contig, s.start, s.end) for s in one.train] == [("AB000000.1", 100, 203)] and one.valid_bases == 64


def test_flat_files_that_do_not_do(tmp_path, caplog):
    whole = flat_file("genbank", ["ACGTR" * 30, "ACGT" * 20])
    assert open_store(put(tmp_path, whole, "a.gb")).count_unknown(0, 150) == 30
    assert warnings_of(caplog, "other-letters")[0].endswith("record AB000000.1 holds R; read as N")
    for name, content, words in (
        ("b.gb", flat_file("genbank", ["ACGTL" * 30]), "AB000000.1:5: the letter 'L' is no nucleotide"),
        ("c.gb", whole.replace(b"AB000001", b"AB000000"), "record 'AB000000.1' stands twice"),
        ("d.gb", gzip.compress(whole, mtime=0)[:-20], "cut"),
        ("e.gb", b"LOCUS       nothing\n", "e.gb: "),
        ("f.gb", whole[: whole.index(b"ORIGIN") + 40], "f.gb: not a whole GenBank file (Premature end"),
        ("g.gb", whole[:-3], "g.gb: not a whole GenBank file (Premature end"),
        ("h.gb", whole.replace(b"150 bp", b"151 bp"), "h.gb: not a whole GenBank file (Expected sequence length 151"),
    ):
        with pytest.raises(DataError) as caught:
            open_store(put(tmp_path, content, name))
        assert words in str(caught.value) and caught.value.exit_code == 3, name
    assert not list(tmp_path.glob("[b-h].gb.packed")) and not list(tmp_path.glob(".hybridna*"))


# --- When it is packed, and where ------------------------------------------------------------------------------------


def test_packed_once(tmp_path, packings):
    path = put(tmp_path, fasta(drawn(1000)))
    first = open_store(path)
    os.remove(path + ".fai")
    again = open_store(path)
    assert len(packings) == 1 and read_back(again) == read_back(first)
    # Nothing but the store was needed.
    assert not os.path.exists(path + ".fai")
    open_store(path, rebuild_index=True)
    assert len(packings) == 2 and os.path.exists(path + ".fai")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["genome.fa", "genome.fa.fai", "genome.fa.packed"]


def test_a_changed_file_is_packed_again(tmp_path, packings):
    path = put(tmp_path, fasta(drawn(1000)))
    digests = open_store(path).digests.copy()
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert np.array_equal(open_store(path).digests, digests) and len(packings) == 2
    text = drawn(1000).replace("A", "C", 1)
    put(tmp_path, fasta(text))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 2 * 10**9))
    store = open_store(path)
    assert read_back(store) == [text] and len(packings) == 3
    assert not np.array_equal(store.digests[0, 0], digests[0, 0]) and np.array_equal(store.digests[0, 1], digests[0, 1])


def test_digests_tell_bases_and_case_apart(tmp_path):
    plain, lower = (open_store(put(tmp_path, fasta(t), f"{i}.fa")) for i, t in enumerate(["ACGTAN", "ACgtAN"]))
    assert np.array_equal(plain.digests[0, 0], lower.digests[0, 0])
    assert not np.array_equal(plain.digests[0, 1], lower.digests[0, 1])


def test_fingerprints_of_species(tmp_path):
    def fingerprint(text, masked=False, **options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        path = put(folder, text)
        return load_species(SpeciesConfig("x", path, **options)).fingerprint(masked)

    due = fingerprint(fasta("ACGT" * 30, "GGG"))
    assert fingerprint(fasta("ACGT" * 30, "GGG", width=7)) == due
    assert fingerprint(fasta("acgt" * 30, "GGG")) == due
    assert fingerprint(fasta("acgt" * 30, "GGG"), masked=True) != fingerprint(fasta("ACGT" * 30, "GGG"), masked=True)
    others = [
        fingerprint(fasta("ACGA" + "ACGT" * 29, "GGG")), fingerprint(fasta("ACGT" * 30, "GG")),
        fingerprint(fasta("ACGT" * 30, "GGG").replace(b"c1", b"c2")),
        fingerprint(fasta("ACGT" * 30, "GGG"), valid=("c0:1-9",)),
        fingerprint(fasta("ACGT" * 30, "GGG"), exclude=("c0:1-9",)),
        fingerprint(fasta("ACGT" * 30, "GGG"), valid=("c1",)),
    ]  # fmt: skip
    assert len({due, *others}) == 7


def test_a_read_only_folder_uses_the_cache(tmp_path, monkeypatch, caplog, packings):
    folder = tmp_path / "data"
    folder.mkdir()
    path = put(folder, fasta(drawn(300)))
    folder.chmod(0o555)
    monkeypatch.setenv("HYBRIDNA_CACHE", str(tmp_path / "cache"))
    try:
        first, again = open_store(path), open_store(path)
        assert Path(first.file).parent == tmp_path / "cache" and read_back(again) == [drawn(300)]
        assert len(packings) == 1 and len(warnings_of(caplog, "store")) == 1
        assert warnings_of(caplog, "store")[0] == f"{path}: its folder is read-only; packed into {first.file}"
        (tmp_path / "file").write_text("x")
        monkeypatch.setenv("HYBRIDNA_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(SystemFault, match="is read-only and the cache folder cannot be made"):
            open_store(path)
    finally:
        folder.chmod(0o755)


def test_without_a_home_the_temporary_folder_serves(tmp_path, monkeypatch):
    for name in ("HYBRIDNA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere/at/all")
    monkeypatch.setattr(module, "_is_writable", lambda folder: not str(folder).startswith("/nowhere"))
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    assert module._cache_folder().startswith(str(tmp_path))


def open_and_tell(path, results):
    try:
        results.put(hashlib.sha256("".join(read_back(open_store(path))).encode()).hexdigest())
    except BaseException as error:
        results.put(repr(error))


def test_many_processes_at_once(tmp_path):
    text = drawn(300_000)
    path = put(tmp_path, fasta(text))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=open_and_tell, args=(path, results)) for _ in range(16)]
    for process in processes:
        process.start()
    found = {results.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
    assert found == {hashlib.sha256(text.encode()).hexdigest()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["genome.fa", "genome.fa.fai", "genome.fa.packed"]


def test_killed_while_packing(tmp_path):
    path = put(tmp_path, fasta(drawn(100_000)))
    script = (
        "import os, signal, sys\nfrom hybridna_core.data import store\n"
        "real = store._Tables.pack\n"
        "def pack(self, codes):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"store._Tables.pack = pack\nstore.open_store({path!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert not os.path.exists(path + ".packed") and len(list(tmp_path.glob(".hybridna-*.tmp"))) == 1
    assert read_back(open_store(path)) == [drawn(100_000)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["genome.fa", "genome.fa.fai", "genome.fa.packed"]


def test_a_file_that_changes_while_it_is_packed(tmp_path, monkeypatch):
    path = put(tmp_path, fasta(drawn(1000)))
    real = module._Tables.pack

    def pack(self, codes):
        os.utime(path, ns=(1, 1))
        return real(self, codes)

    monkeypatch.setattr(module._Tables, "pack", pack)
    with pytest.raises(DataError, match="changed since the start"):
        open_store(path)
    assert not os.path.exists(path + ".packed") and not list(tmp_path.glob(".hybridna*"))


# --- G9, G18 ---------------------------------------------------------------------------------------------------------


def test_g9_room_is_taken_before_anything_is_packed(tmp_path):
    path = put(tmp_path, fasta(drawn(400_000)))
    put(tmp_path, b"c0\t400000\t10\t60\t61\n", "genome.fa.fai")
    script = (
        "import resource, signal\nfrom hybridna_core.data import store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "def pack(self, codes):\n    raise SystemExit('packed')\n"
        f"store._Tables.pack = pack\nstore.open_store({path!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "SystemFault" in done.stderr and "packing needs 204,193 bytes" in done.stderr, done.stderr
    assert not os.path.exists(path + ".packed") and not list(tmp_path.glob(".hybridna*"))


def test_g9_a_disk_without_room(tmp_path, monkeypatch):
    path = put(tmp_path, flat_file("genbank", [drawn(5000, 1, "ACGT")]), "g.gb")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(SystemFault, match="1,000 are free") as caught:
        open_store(path)
    assert caught.value.exit_code == 5 and not list(tmp_path.glob("*.packed"))


def test_g18_more_genomes_than_open_files(tmp_path):
    for i in range(100):
        put(tmp_path, fasta(drawn(200, i)), f"{i}.fa")
    script = (
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from hybridna_core.data.store import open_store\nfrom hybridna_core.tokenizer import decode\n"
        f"stores = [open_store({str(tmp_path)!r} + f'/{{i}}.fa') for i in range(100)]\n"
        "for _ in range(2):\n    print(*(decode(s.ids(0, 200)) for s in stores))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    due = " ".join(drawn(200, i).upper() for i in range(100))
    assert done.stdout == f"{due}\n{due}\n", done.stderr[-2000:]


# --- Damage ----------------------------------------------------------------------------------------------------------


def flip(path, byte, bit=0):
    with open(path, "r+b") as handle:
        handle.seek(byte)
        value = handle.read(1)[0]
        handle.seek(byte)
        handle.write(bytes([value ^ (1 << bit)]))


def test_e14_a_damaged_block_is_never_trained_on(tmp_path):
    text = drawn(600_000, letters="ACGT")
    path = put(tmp_path, fasta(text))
    open_store(path)
    bad = HEADER_BYTES + 2 * BLOCK_BYTES + 17
    flip(path + ".packed", bad, 5)
    one = load_species(SpeciesConfig("bug", path))
    corpus = Corpus([one], bases=1000, tokens=100, max_passes=1e9, reverse_share=0)
    damaged = 4 * BLOCK_BYTES, 6 * BLOCK_BYTES
    refused = 0
    for i in range(200):
        place = corpus.place(i)
        if place.start < damaged[1] and place.end > damaged[0]:
            refused += 1
            with pytest.raises(DataError) as caught:
                corpus.window(i)
            assert caught.value.exit_code == 3
            assert str(caught.value) == (
                f"{path}.packed: packed bases are damaged in the block at byte {HEADER_BYTES + 2 * BLOCK_BYTES:,}; "
                "nothing of it was trained on; delete this file, and it is packed again"
            )
        else:
            assert decode(corpus.window(i).ids) == text[place.start : place.end]
    assert 10 < refused < 100
    os.remove(path + ".packed")
    assert read_back(open_store(path)) == [text]


def test_e14_any_flipped_bit_is_found(tmp_path, caplog):
    text = drawn(3000)
    path = put(tmp_path, fasta(text))
    open_store(path)
    whole = Path(path + ".packed").read_bytes()
    rng = np.random.default_rng(0)
    # Also every byte of the header that says something.
    places = [*range(0, 900, 9), *rng.integers(0, len(whole), 200).tolist()]
    rebuilt = refused = 0
    for place in places:
        Path(path + ".packed").write_bytes(whole)
        flip(path + ".packed", place, int(rng.integers(8)))
        caplog.clear()
        try:
            assert read_back(open_store(path)) == [text]
            rebuilt += len(warnings_of(caplog, "store")) == 1
        except DataError as error:
            assert place >= HEADER_BYTES and "damaged" in str(error)
            refused += 1
    assert rebuilt + refused == len(places) and refused > 20


@pytest.mark.parametrize("size", [0, 100, HEADER_BYTES, HEADER_BYTES + 700, -1])
def test_a_store_that_was_cut_is_packed_again(tmp_path, size, packings):
    path = put(tmp_path, fasta(drawn(3000)))
    open_store(path)
    whole = Path(path + ".packed").read_bytes()
    Path(path + ".packed").write_bytes(whole[:size])
    assert read_back(open_store(path)) == [drawn(3000)] and len(packings) == 2


@pytest.mark.parametrize(
    "header",
    [
        [], {}, {"version": 1}, {"version": 1, "payload": "x", "tables": {}},
        {"version": 1, "payload": 0, "tables": {"names": {"bytes": 8, "dtype": "O", "shape": [1]}}, "digest": ""},
    ],
)  # fmt: skip
def test_a_header_that_is_none_of_ours(tmp_path, header, packings):
    path = put(tmp_path, fasta(drawn(300)))
    Path(path + ".packed").write_bytes(module._write_header(header) + bytes(8))
    assert read_back(open_store(path)) == [drawn(300)] and len(packings) == 1


def test_a_store_that_is_replaced_meanwhile(tmp_path):
    path = put(tmp_path, fasta(drawn(3000)))
    store = open_store(path)
    module._MAPS.clear()
    os.rename(path + ".packed", path + ".old")
    Path(path + ".packed").write_bytes(Path(path + ".old").read_bytes())
    with pytest.raises(DataError, match="the store changed since the start"):
        store.ids(0, 10)
    os.remove(path + ".packed")
    with pytest.raises(SystemFault, match="reading failed: No such file"):
        store.ids(0, 10)


def test_faults_are_those_of_the_genome_reader(tmp_path):
    for content, kind, words in (
        (b"", DataError, "the file is empty"), (b">c\nMKL\n", DataError, "no nucleotide"),
        (gzip.compress(b">c\nACGT\n", mtime=0), DataError, "compressed by gzip"),
    ):  # fmt: skip
        with pytest.raises(kind, match=words):
            open_store(put(tmp_path, content))
    with pytest.raises(SystemFault, match="no such file"):
        open_store(tmp_path / "none.fa")
    with pytest.raises(UsageError, match="must be 'n'"):
        open_store(put(tmp_path, flat_file("embl", ["ACGT"]), "g.embl"), other_letters="x")
    assert issubclass(DataError, HybriDNAError)


# --- Size ------------------------------------------------------------------------------------------------------------


def sparse_store(path, bases):
    """Write a store of one contig of A whose packed bases take no room on disk; return the genome file it is for."""
    payload = bases // 2
    blocks = -(-payload // BLOCK_BYTES)
    full = module._block_hash(bytes(BLOCK_BYTES)) * (blocks - 1)
    last = module._block_hash(bytes(payload - (blocks - 1) * BLOCK_BYTES))
    columns = {
        "names": np.frombuffer(b"big", dtype=np.uint8), "name_ends": np.array([3]), "lengths": np.array([bases]),
        "unknown": np.array([[7 * bases // 8, 7 * bases // 8 + 10**9]]),
        "hashes": np.frombuffer(full + last, dtype=np.uint8), "digests": np.zeros((1, 2, 16), dtype=np.uint8),
    }  # fmt: skip
    put(path.parent, b">big\nA\n", path.name)
    status = os.stat(path)
    raw = b"".join(c.tobytes() for c in columns.values())
    header = {
        "version": module.VERSION, "payload": payload, "digest": hashlib.sha256(raw).hexdigest(),
        "tables": {k: {"bytes": c.nbytes, "dtype": c.dtype.str, "shape": list(c.shape)} for k, c in columns.items()},
        "source": {"size": status.st_size, "mtime_ns": status.st_mtime_ns},
        "options": {"other_letters": None, "rna": False, "allow_missing_eof": False},
    }  # fmt: skip
    with open(f"{path}.packed", "wb") as handle:
        handle.write(module._write_header(header))
        handle.seek(HEADER_BYTES + payload)
        handle.write(raw)


def test_a_genome_of_160_billion_bases(tmp_path):
    bases = 160 * 10**9
    sparse_store(tmp_path / "big.fa", bases)
    one = load_species(SpeciesConfig("big", str(tmp_path / "big.fa"), valid=("big:100000000001-100000001000",)))
    assert one.train_bases == bases - 1000 - 10**9 and one.valid_bases == 1000
    corpus = Corpus([one], bases=8191, tokens=10**9)
    windows = [corpus.window(i) for i in range(200)]
    assert max(w.end for w in windows) > 150 * 10**9 and all(decode(w.ids[:3]) in ("AAA", "TTT") for w in windows)
    assert not any(7 * bases // 8 < w.start < 7 * bases // 8 + 10**9 - 8191 for w in windows)


def test_memory_does_not_grow_with_what_is_read(tmp_path):
    sparse_store(tmp_path / "big.fa", 20 * 10**9)
    script = (
        "from hybridna_core.data.corpus import Corpus, load_species\n"
        "from hybridna_core.run_config import SpeciesConfig\n"
        "def resident():\n    return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        f"one = load_species(SpeciesConfig('big', {str(tmp_path / 'big.fa')!r}))\n"
        "corpus = Corpus([one], bases=8191, tokens=10**9)\n"
        "for i in range(2500):\n    corpus.window(i)\n    i == 300 and print(resident())\n"
        "print(resident())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, last = map(int, done.stdout.split())
    # 2,200 windows touch as many blocks of 64 KiB: 138 MiB.
    assert last - first < 12 * 2**20
