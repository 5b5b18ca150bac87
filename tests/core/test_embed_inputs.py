"""What can be embedded, and runs in parts: FASTA, both alleles of a VCF, long regions, kills, shards, dry runs."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from genome_files import put, warnings_of
from toys import random_model

from hybridna_core.commands import embed as command
from hybridna_core.commands.embed import embed, embed_sequences
from hybridna_core.commands.merge import merge
from hybridna_core.data import partial
from hybridna_core.errors import DataError, GuardError, OutOfMemory, Stopped, SystemFault, UsageError
from hybridna_core.tokenizer import reverse_complement

MODEL = random_model()
BASES = "".join(np.random.default_rng(0).choice(list("ACGT"), 6000))
FASTA = f">chr1\n{BASES}\n>chr2\n{BASES[:40]}\n"
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture
def fasta(tmp_path):
    return put(tmp_path, FASTA.encode(), "genome.fa")


def run(path, fasta, output, **options):
    """Embed a file; return the arrays of the npz and the Summary."""
    summary = embed(path, fasta, output, **{"model": MODEL, "force": True, **options})
    with np.load(output, allow_pickle=False) as table:
        return {key: table[key] for key in table.files}, summary


def bed(tmp_path, count=40, name="r.bed"):
    lines = [f"chr1\t{i * 29}\t{i * 29 + 20 + i}\tr{i}\t{i}\t{'+-'[i % 2]}\n" for i in range(count)]
    return put(tmp_path, "".join(lines).encode(), name)


# --- FASTA ------------------------------------------------------------------------------------------------------------


def test_sequences_of_a_fasta(tmp_path):
    path = put(tmp_path, f">a x\n{BASES[:100]}\n>b\n{BASES[100:150].lower()}\n>n\n{'N' * 9}\n".encode(), "s.fa")
    table, summary = run(path, None, tmp_path / "o.npz")
    assert table["contig"].tolist() == ["a", "b", "n"] and table["end"].tolist() == [100, 50, 9]
    assert table["status"].tolist() == ["ok", "ok", "too_many_n"] and table["strand"].tolist() == ["+"] * 3
    assert np.array_equal(table["embedding"][:2], embed_sequences(MODEL, [BASES[:100], BASES[100:150]]))
    assert (summary.regions, summary.embedded) == (3, 2)


def test_kind_of_input(tmp_path, fasta):
    with pytest.raises(UsageError, match=r"a BED file needs its genome; give -f FASTA"):
        embed(bed(tmp_path), None, tmp_path / "o.npz", model=MODEL)
    with pytest.raises(UsageError, match=r"--input-type: is 'gff'"):
        embed(bed(tmp_path), fasta, tmp_path / "o.npz", model=MODEL, input_type="gff")
    odd = put(tmp_path, b"@r\nA\n+\nI\n", "x.fq")
    with pytest.raises(DataError, match="FASTQ"):
        embed(odd, None, tmp_path / "o.npz", model=MODEL)


# --- VCF --------------------------------------------------------------------------------------------------------------


def vcf(tmp_path, records, name="v.vcf"):
    lines = ["\t".join([contig, str(pos), name, ref, alt, ".", ".", "."]) for contig, pos, name, ref, alt in records]
    return put(tmp_path, (HEADER + "\n".join(lines) + "\n" * bool(lines)).encode(), name)


def test_both_alleles_of_variants(tmp_path, fasta):
    ref = BASES[999]
    other = "ACGT".replace(ref, "")
    records = [
        ("chr1", 1000, "snv", ref, f"{other[0]},{other[1]}"),
        ("chr1", 1000, "ins", ref, ref + "ACG"),
        ("chr1", 2001, "del", BASES[2000:2010], BASES[2000]),
        ("chr1", 11, "edge", BASES[10], "N"),
        ("chr1", 11, "near", BASES[10], "A" if BASES[10] != "A" else "C"),
        ("chr7", 5, ".", "A", "C"),
    ]
    table, summary = run(vcf(tmp_path, records), fasta, tmp_path / "o.npz", window=100, pool="max")
    expected = {
        ("snv", other[0]): BASES[949:999] + other[0] + BASES[1000:1049],
        ("snv", other[1]): BASES[949:999] + other[1] + BASES[1000:1049],
        ("ins", ref + "ACG"): BASES[949:999] + ref + "ACG" + BASES[1000:1046],
        ("del", BASES[2000]): BASES[1950:2001] + BASES[2010:2059],
        ("near", records[4][4]): BASES[:10] + records[4][4] + BASES[11:100],
    }
    starts = {"snv": 949, "ins": 949, "del": 1950, "near": 0}
    assert table["allele"].tolist() == ["ref", "alt"] * 7 and summary.regions == 14
    assert table["pos"].tolist()[:2] == [1000, 1000] and table["ref"][0] == ref
    for i in range(0, 14, 2):
        key = (table["id"][i], table["alt"][i])
        if key not in expected:
            assert table["status"][i] == table["status"][i + 1] in ("bad_alt", "unknown_contig")
            assert np.isnan(table["embedding"][i : i + 2]).all()
            continue
        start = starts[key[0]]
        pair = embed_sequences(MODEL, [BASES[start : start + 100], expected[key]], pool="max")
        assert np.array_equal(table["embedding"][i : i + 2], pair)
    assert summary.statuses == {"ok": 10, "bad_alt": 2, "unknown_contig": 2}
    assert json.loads(str(table["meta"]))["window"] == 100


def test_vcf_that_does_not_belong_to_the_genome(tmp_path, fasta, monkeypatch):
    monkeypatch.setattr(command, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    wrong = [("chr1", i + 1, ".", "ACGT".replace(BASES[i], "")[0], BASES[i]) for i in range(30)]
    with pytest.raises(DataError, match="30 of the first 30 records"):
        embed(vcf(tmp_path, wrong), fasta, tmp_path / "o.npz", model="base")
    with pytest.raises(DataError, match=r"no record has a contig"):
        embed(vcf(tmp_path, [("2", 1, ".", "A", "C")]), fasta, tmp_path / "o.npz", model="base")
    assert not os.path.exists(tmp_path / "o.npz")


def test_vcf_without_records(tmp_path, fasta, caplog):
    table, _ = run(vcf(tmp_path, []), fasta, tmp_path / "o.npz")
    assert table["embedding"].shape == (0, 32) and len(warnings_of(caplog, "empty-input")) == 1


# --- Options ----------------------------------------------------------------------------------------------------------


def test_several_layers_in_float16(tmp_path, fasta):
    path = bed(tmp_path, 3)
    table, _ = run(path, fasta, tmp_path / "o.npz", layer="2,-1", numbers="float16")
    for name, layer in (("layer_2", 2), ("layer_4", -1)):
        alone, _ = run(path, fasta, tmp_path / "p.npz", layer=layer)
        assert table[name].dtype == np.float16
        assert np.array_equal(table[name], alone["embedding"].astype(np.float16))
    model = random_model()
    model.model.final_layernorm.weight.mul_(1e6)
    with pytest.raises(GuardError, match=r"chr1:1-20: .* is too large for float16"):
        run(path, fasta, tmp_path / "q.npz", model=model, numbers="float16")
    assert not os.path.exists(tmp_path / "q.npz")


def test_per_base_gives_a_row_per_base(tmp_path, fasta):
    path = put(tmp_path, b"chr1\t5\t9\ta\nchr1\t7\t7\nchr1\t5\t8\tb\t0\t-\n", "r.bed")
    table, summary = run(path, fasta, tmp_path / "o.npz", pool="per-base")
    assert table["base"].tolist() == [0, 1, 2, 3, -1, 0, 1, 2] and summary.rows == 8 and summary.regions == 3
    # The last vector that is pooled of each prefix is the vector of its last base.
    for rows, sequence in (((0, 4), BASES[5:9]), ((5, 8), reverse_complement(BASES[5:8]))):
        prefixes = [sequence[: i + 1] for i in range(len(sequence))]
        expected = embed_sequences(MODEL, prefixes, pool="last")
        assert np.allclose(table["embedding"][slice(*rows)], expected, atol=1e-6)
    with pytest.raises(UsageError, match="gives no single vector"):
        embed_sequences(MODEL, ["A"], pool="per-base")


def test_average_strands_and_minus(tmp_path, fasta):
    path = put(tmp_path, b"chr1\t5\t95\na\n".replace(b"\na\n", b"\ta\t0\t+\nchr1\t5\t95\tb\t0\t-\n"), "r.bed")
    table, _ = run(path, fasta, tmp_path / "o.npz", average_strands=True, echo="rc")
    assert np.array_equal(table["embedding"][0], table["embedding"][1])
    single, _ = run(path, fasta, tmp_path / "p.npz", echo="rc")
    assert np.array_equal(table["embedding"][0], single["embedding"].mean(0, dtype=np.float32))


def test_batch_size_changes_no_byte(tmp_path, fasta):
    path = bed(tmp_path)
    whole = (tmp_path / "o.npz", *(tmp_path / f"{size}.npz" for size in (1, 3, 64)))
    for output, size in zip(whole, ("auto", 1, 3, 64), strict=True):
        embed(path, fasta, output, model=MODEL, batch_size=size)
    assert len({output.read_bytes() for output in whole}) == 1


@pytest.mark.parametrize("long", ["windows", "stream"])
def test_long_regions(tmp_path, fasta, long, caplog):
    model = random_model(max_position_embeddings=101)
    path = put(tmp_path, b"chr1\t0\t250\nchr1\t0\t100\n", "r.bed")
    table, _ = run(path, fasta, tmp_path / "o.npz", model=model, long=long)
    parts = [BASES[:83], BASES[83:166], BASES[166:250]]
    if long == "windows":
        expected = np.average(embed_sequences(MODEL, parts), axis=0, weights=[len(part) for part in parts])
    else:
        expected = embed_sequences(MODEL, [BASES[:250]])[0]
    assert np.allclose(table["embedding"][0], expected, atol=1e-5)
    assert np.array_equal(table["embedding"][1:], embed_sequences(MODEL, [BASES[:100]]))
    assert len(warnings_of(caplog, "beyond-context")) == (long == "stream")


def test_streaming_has_a_limit_and_needs_memory(tmp_path, fasta, monkeypatch):
    model = random_model(max_position_embeddings=101)
    path = put(tmp_path, b"chr1\t0\t250\n", "r.bed")
    monkeypatch.setattr(command, "STREAM_LIMIT", 249)
    table, _ = run(path, fasta, tmp_path / "o.npz", model=model, long="stream")
    assert table["status"].tolist() == ["too_long"]
    monkeypatch.setattr(command, "free_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemory, match=r"--long stream: streaming 249 bases needs about .* --long windows"):
        run(path, fasta, tmp_path / "o.npz", model=model, long="stream")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"long": "stram"}, "--long: is 'stram', must be mark, windows, stream; did you mean stream?"),
        ({"numbers": "float64"}, "--numbers: is 'float64', must be float32, float16"),
        ({"layer": "9"}, "--layer: '9' is no layer"),
        ({"window": 1}, "--window: is 1, must be 2 to 4,095"),
        ({"shard": "0/2"}, "--shard: is '0/2'"),
        ({"pool": "center:0"}, "--pool"),
    ],
)
def test_options_out_of_range(tmp_path, fasta, options, words):
    with pytest.raises(UsageError) as caught:
        run(bed(tmp_path), fasta, tmp_path / "o.npz", **options)
    assert words in str(caught.value) and not (tmp_path / "o.npz").exists()


def test_dry_run(tmp_path, fasta, monkeypatch):
    monkeypatch.setattr(command, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    path = put(tmp_path, b"chr1\t0\t64\nchr1\t0\t63\nchr1\t5\t5\n", "r.bed")
    summary = embed(path, fasta, tmp_path / "o.npz", dry_run=True, average_strands=True)
    assert summary.to_dict()["windows"] == 4 and summary.tokens == 2 * (128 + 64)
    assert (summary.regions, summary.embedded, summary.output) == (3, 2, None)
    assert summary.memory.startswith("about ") and summary.time.endswith(" s")
    assert sorted(os.listdir(tmp_path)) == ["genome.fa", "genome.fa.fai", "r.bed"]


# --- Kills, disks, parts ----------------------------------------------------------------------------------------------


def interrupt(at, error):
    def progress(done, total):
        if done == at:
            raise error

    return progress


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".tsv", ".parquet", ".h5", ".h5ad"])
def test_run_that_was_stopped_goes_on(tmp_path, fasta, suffix, monkeypatch):
    path = bed(tmp_path)
    embed(path, fasta, tmp_path / f"whole{suffix}", model=MODEL)
    monkeypatch.setattr(partial, "SECONDS", 0.0)
    monkeypatch.setattr(partial, "PATIENCE", 0)
    output = tmp_path / f"o{suffix}"
    for at, error in (
        (17, KeyboardInterrupt()),
        (31, OSError(28, "No space left on device")),
        (40, KeyboardInterrupt()),
    ):
        with pytest.raises((Stopped, SystemFault)) as caught:
            embed(path, fasta, output, model=MODEL, progress=interrupt(at, error))
        assert caught.value.exit_code in (130, 5) and not output.exists()
    seen = []
    embed(path, fasta, output, model=MODEL, progress=lambda done, total: seen.append(done))
    assert seen == [] and output.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    if suffix == ".npy":
        assert (tmp_path / "o.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_another_run_does_not_go_on(tmp_path, fasta, monkeypatch):
    monkeypatch.setattr(partial, "SECONDS", 0.0)
    monkeypatch.setattr(partial, "PATIENCE", 0)
    with pytest.raises(Stopped):
        embed(bed(tmp_path), fasta, tmp_path / "o.npz", model=MODEL, progress=interrupt(9, KeyboardInterrupt()))
    for options, words in (({"pool": "max"}, "the options"), ({"model": random_model(1)}, "the model")):
        with pytest.raises(UsageError, match=f"an unfinished run that is not this one: other are {words}"):
            embed(bed(tmp_path), fasta, tmp_path / "o.npz", **{"model": MODEL, **options})
    embed(bed(tmp_path), fasta, tmp_path / "o.npz", model=MODEL)


def test_killed_process_goes_on(tmp_path, fasta, toy_model_folder):
    code = (
        "import sys, os, signal\nfrom hybridna_core.data import partial\n"
        "partial.SECONDS, partial.PATIENCE = 0.0, 0\nfrom hybridna_core.commands.embed import embed\n"
        "kill = lambda done, total: done == 25 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "embed(*sys.argv[1:4], model=sys.argv[4], device='cpu', progress=kill)"
    )
    path, output = bed(tmp_path), tmp_path / "o.h5ad"
    arguments = [path, fasta, str(output), str(toy_model_folder)]
    assert subprocess.run([sys.executable, "-c", code, *arguments], check=False).returncode == -signal.SIGKILL
    assert not output.exists() and (tmp_path / "o.h5ad.partial").is_dir()
    seen = []
    embed(*arguments[:3], model=arguments[3], device="cpu", progress=lambda done, total: seen.append(done))
    assert seen == list(range(26, 41))
    embed(*arguments[:2], tmp_path / "whole.h5ad", model=arguments[3], device="cpu")
    assert output.read_bytes() == (tmp_path / "whole.h5ad").read_bytes()


def test_disk_too_small_is_told_of_at_the_start(tmp_path, fasta, monkeypatch):
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(command.os, "statvfs", lambda path: Full)
    with pytest.raises(SystemFault, match=r"10.0 KiB are needed, 4.0 KiB are free"):
        embed(bed(tmp_path), fasta, tmp_path / "o.npz", model=MODEL, progress=lambda *_: pytest.fail("began"))
    assert sorted(os.listdir(tmp_path)) == ["genome.fa", "genome.fa.fai", "r.bed"]


def test_disk_is_taken_at_the_start(tmp_path, fasta):
    sizes = []

    def progress(done, total):
        sizes.append(os.stat(tmp_path / "o.npz.partial" / "data").st_blocks * 512)

    embed(bed(tmp_path), fasta, tmp_path / "o.npz", model=MODEL, progress=progress)
    assert sizes[0] >= 40 * 32 * 4


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".tsv", ".parquet", ".h5", ".h5ad"])
def test_merged_parts_are_the_whole(tmp_path, fasta, suffix):
    path = bed(tmp_path, 11)
    options = {"model": MODEL, "layer": "1,-1" if suffix in (".npy", ".h5ad") else "-1", "numbers": "float16"}
    embed(path, fasta, tmp_path / f"whole{suffix}", **options)
    parts = [str(tmp_path / f"{i}{suffix}") for i in (3, 1, 2)]
    for part in parts:
        embed(path, fasta, part, shard=f"{os.path.basename(part)[0]}/3", **options)
    with pytest.raises(DataError, match="part 2/3 is missing"):
        merge(parts[:2], tmp_path / f"o{suffix}")
    summary = merge(parts, tmp_path / f"o{suffix}")
    assert (summary.parts, summary.lines) == (3, 11)
    for name in (f"o{suffix}", "o.tsv") if suffix == ".npy" else (f"o{suffix}",):
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("o", "whole", 1)).read_bytes()
    embed(path, fasta, parts[2], shard="2/3", force=True, **{**options, "pool": "max"})
    with pytest.raises(DataError, match="is a part of another run"):
        merge(parts, tmp_path / f"p{suffix}")
    with pytest.raises(DataError, match=r"is no part of a sharded run|no such|cannot be read"):
        merge([tmp_path / f"whole{suffix}"], tmp_path / f"p{suffix}")
    with pytest.raises(UsageError, match=r"like the output|no table format|no type"):
        merge(parts, tmp_path / ("p.npz" if suffix != ".npz" else "p.h5"))


@pytest.mark.parametrize("suffix", [".npy", ".tsv"])
def test_a_part_whose_last_row_is_cut_is_refused(tmp_path, fasta, suffix):
    path, parts = bed(tmp_path, 6), [str(tmp_path / f"{i}{suffix}") for i in (1, 2)]
    for i, part in enumerate(parts, start=1):
        embed(path, fasta, part, model=MODEL, shard=f"{i}/2")
    text = tmp_path / "1.tsv"
    whole = text.read_bytes()
    lines = whole.splitlines(keepends=True)
    for left in (whole[:-1], whole[:-8], b"".join(lines[:-1]), whole + lines[-1]):
        text.write_bytes(left)
        with pytest.raises(DataError, match=r"holds \d rows, \d are due|1\.tsv (is cut|has more lines)"):
            merge(parts, tmp_path / f"o{suffix}")
        assert not (tmp_path / f"o{suffix}").exists()
    text.write_bytes(whole)
    assert merge(parts, tmp_path / f"o{suffix}").lines == 6


@pytest.mark.parametrize("kind", ["bed", "fasta", "vcf"])
def test_shards_hold_the_rows_of_the_whole(tmp_path, fasta, kind):
    paths = {
        "bed": bed(tmp_path),
        "fasta": put(tmp_path, "".join(f">s{i}\n{BASES[i : 3 * i + 9]}\n" for i in range(23)).encode(), "s.fa"),
        "vcf": vcf(tmp_path, [("chr1", 50 * i + 100, ".", BASES[50 * i + 99], "ACGT"[i % 4]) for i in range(20)]),
    }
    whole, _ = run(paths[kind], fasta, tmp_path / "whole.npz")
    parts = [run(paths[kind], fasta, tmp_path / f"{i}.npz", shard=f"{i}/3")[0] for i in (1, 2, 3)]
    assert min(len(part["status"]) for part in parts) > len(whole["status"]) // 6
    for key in whole:
        if key != "meta":
            joined = np.concatenate([part[key] for part in parts])
            assert np.array_equal(joined, whole[key], equal_nan=joined.dtype.kind == "f"), key
