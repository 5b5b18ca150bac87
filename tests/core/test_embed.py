"""Embedding: the vector is the one of the definition, whatever the batch, the strand's spelling or the file format."""

import json
import os

import numpy as np
import pyarrow.parquet
import pytest
import torch
from genome_files import put, warnings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import random_model

from hybridna_core.commands.embed import embed, embed_sequences
from hybridna_core.data.genome import open_genome
from hybridna_core.errors import DataError, GuardError, SystemFault, UsageError
from hybridna_core.model.heads import echo_tokens, longest_input, parse_pool, pool_hidden
from hybridna_core.tokenizer import BOS, A, C, T, encode, reverse_complement

MODEL = random_model()
BASES = "".join(np.random.default_rng(0).choice(list("ACGT"), 6000))
FASTA = f">chr1\n{BASES}\n>chr2\n{'N' * 40}{BASES[:40]}{'N' * 2}\n>MT\nACGT\n"


@pytest.fixture
def fasta(tmp_path):
    return put(tmp_path, FASTA.encode(), "genome.fa")


def run(tmp_path, bed, fasta, name="out.npz", model=MODEL, **options):
    """Embed the lines of a BED text; return the arrays of the output and the Summary."""
    path = put(tmp_path, bed.encode(), "r.bed")
    summary = embed(path, fasta, tmp_path / name, model=model, force=True, **options)
    with np.load(tmp_path / name, allow_pickle=False) as table:
        return {key: table[key] for key in table.files}, summary


def states(tokens, model=MODEL):
    """Hidden vectors of one pass over a list of tokens: (n, hidden) float64."""
    hidden, _ = model(torch.tensor([tokens]))
    return hidden[0].double().numpy()


# --- The vector -----------------------------------------------------------------------------------------------------


def test_pools_are_the_mean_and_the_last_of_the_hidden_vectors():
    sequence = BASES[:137]
    hidden = states([BOS, *encode(sequence).tolist()])
    assert np.allclose(embed_sequences(MODEL, [sequence])[0], hidden[1:].mean(0), atol=1e-6)
    assert np.array_equal(embed_sequences(MODEL, [sequence], pool="last")[0], hidden[-1].astype(np.float32))


def test_model_without_a_start_token():
    model = random_model(bos_token_id=None)
    hidden = states(encode("ACGTA").tolist(), model)
    assert np.allclose(embed_sequences(model, ["ACGTA"])[0], hidden.mean(0), atol=1e-6)
    assert echo_tokens(model.config, np.array([A, C]), "same")[0].tolist() == [[A, C, A, C]]
    assert (longest_input(model.config), longest_input(model.config, "rc")) == (4096, 2048)


@pytest.mark.parametrize("echo", ["same", "rc"])
def test_echo_is_one_pass_over_both_copies(echo):
    sequence = BASES[:90]
    second = sequence if echo == "same" else reverse_complement(sequence)
    hidden = states([BOS, *encode(sequence).tolist(), *encode(second).tolist()])
    assert np.allclose(embed_sequences(MODEL, [sequence], echo=echo)[0], hidden[91:].mean(0), atol=1e-6)
    last = embed_sequences(MODEL, [sequence], pool="last", echo=echo)[0]
    assert np.array_equal(last, hidden[-1].astype(np.float32))
    # Knowing the first copy changes the reading of the second.
    assert not np.allclose(embed_sequences(MODEL, [sequence], echo=echo), embed_sequences(MODEL, [second]), atol=1e-3)


def test_echo_tokens():
    ids = np.array([A, A, C], dtype=np.uint8)
    config = MODEL.config
    assert echo_tokens(config, ids)[0].tolist() == [[BOS, A, A, C]] and echo_tokens(config, ids)[1] == 1
    tokens, first = echo_tokens(config, ids, "same")
    assert (tokens.tolist(), first, tokens.dtype) == ([[BOS, A, A, C, A, A, C]], 4, torch.int64)
    assert echo_tokens(config, ids, "rc")[0].tolist() == [[BOS, A, A, C, C + 1, T, T]]
    assert (longest_input(config), longest_input(config, "same")) == (4095, 2047)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(0, 59), st.integers(1, 61))
def test_segments_do_not_matter(length, first, segment):
    first = min(first, length - 1)
    tokens = torch.from_numpy(encode(BASES[:length]).astype(np.int64))[None]
    for pool in map(parse_pool, ("mean", "last", "max", "center:7", "per-base")):
        (whole,) = pool_hidden(MODEL, tokens, [(first, length)], pool, (1, 4))
        (parts,) = pool_hidden(MODEL, tokens, [(first, length)], pool, (1, 4), segment=segment)
        assert torch.allclose(parts, whole, atol=1e-5)


def test_rows_do_not_know_each_other():
    sequences = [BASES[i : i + 20 + 7 * i] for i in range(12)]
    together = embed_sequences(MODEL, sequences)
    assert together.shape == (12, 32) and together.dtype == np.float32
    alone = np.concatenate([embed_sequences(MODEL, [s]) for s in sequences])
    assert np.array_equal(together, alone)
    assert np.array_equal(embed_sequences(MODEL, sequences[::-1])[::-1], together)


def test_letters_of_sequences():
    one = embed_sequences(MODEL, ["ACGTNA", "acgtna", "ACGUNA", "ACGTRA"])
    assert (one == one[0]).all()
    assert not np.array_equal(one[0], embed_sequences(MODEL, ["ACGTAA"])[0])
    assert embed_sequences(MODEL, []).shape == (0, 32)
    for bad, words in (("AC-T", "sequence 2: '-' at position 3 is no base"), ("", "is empty"), ("ACE", "'E'")):
        with pytest.raises(UsageError) as caught:
            embed_sequences(MODEL, ["A", bad])
        assert words in str(caught.value)
    with pytest.raises(UsageError, match=r"4,096 bases, too long for this model; at most 4,095"):
        embed_sequences(MODEL, [BASES[:4096]])
    with pytest.raises(UsageError, match="give a list"):
        embed_sequences(MODEL, "ACGT")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": "min"}, "--pool: is 'min', must be mean, last, max, center:N or per-base"),
        ({"pool": "lst"}, "did you mean last?"),
        ({"echo": "twice"}, "--echo: is 'twice', must be same or rc"),
        ({"max_n_share": 1.5}, "--max-n-share: is 1.5, must be 0 to 1"),
        ({"max_n_share": float("nan")}, "--max-n-share"),
    ],
)
def test_options_out_of_range(tmp_path, fasta, options, words):
    with pytest.raises(UsageError) as caught:
        run(tmp_path, "chr1\t0\t10\n", fasta, **options)
    assert words in str(caught.value)
    assert not os.path.exists(tmp_path / "out.npz")


def test_numbers_that_are_not_finite(tmp_path, fasta):
    model = random_model()
    model.model.final_layernorm.weight[3] = float("nan")
    with pytest.raises(GuardError, match=r"chr1:3-10: the model's output is not finite"):
        run(tmp_path, "chr1\t2\t10\n", fasta, model=model)
    assert not os.path.exists(tmp_path / "out.npz")


# --- Regions --------------------------------------------------------------------------------------------------------

BED = "chr1\t0\t100\tfirst\t7\t+\nchr1\t50\t90\nchr1\t0\t100\tlast\t0\t-\nchr1\t5\t6\tx\t1\t.\n"


def test_rows_are_regions_with_their_keys(tmp_path, fasta):
    table, summary = run(tmp_path, BED, fasta)
    assert table["contig"].tolist() == ["chr1"] * 4 and table["start"].tolist() == [0, 50, 0, 5]
    assert table["end"].tolist() == [100, 90, 100, 6] and table["name"].tolist() == ["first", ".", "last", "x"]
    assert table["score"].tolist() == ["7", ".", "0", "1"] and table["strand"].tolist() == ["+", "+", "-", "+"]
    assert table["status"].tolist() == ["ok"] * 4 and table["unknown"].tolist() == [0] * 4
    expected = embed_sequences(MODEL, [BASES[:100], BASES[50:90], reverse_complement(BASES[:100]), BASES[5:6]])
    assert np.array_equal(table["embedding"], expected)
    meta = json.loads(str(table["meta"]))
    assert meta["model"] == "toy" and meta["sha256"] == MODEL.digest and (meta["pool"], meta["echo"]) == ("mean", None)
    assert (summary.regions, summary.embedded, summary.statuses, summary.hidden) == (4, 4, {"ok": 4}, 32)


@pytest.mark.parametrize("echo", [None, "same", "rc"])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_minus_strand_is_the_reverse_complement(tmp_path, fasta, pool, echo):
    table, _ = run(tmp_path, "chr1\t10\t70\tn\t0\t-\n", fasta, pool=pool, echo=echo)
    expected = embed_sequences(MODEL, [reverse_complement(BASES[10:70])], pool, echo)
    assert np.array_equal(table["embedding"], expected)


def test_order_and_neighbours_do_not_matter(tmp_path, fasta):
    lines = [f"chr1\t{i * 31}\t{i * 31 + 20 + i}\tr{i}\t0\t{'+-'[i % 2]}\n" for i in range(20)]
    whole = run(tmp_path, "".join(lines), fasta)[0]["embedding"]
    assert np.array_equal(run(tmp_path, "".join(lines[::-1]), fasta)[0]["embedding"][::-1], whole)
    for i in (0, 7, 19):
        assert np.array_equal(run(tmp_path, lines[i], fasta)[0]["embedding"][0], whole[i])


def test_formats_hold_the_same(tmp_path, fasta):
    path = put(tmp_path, (BED + "chr9\t1\t2\n").encode(), "r.bed")
    for suffix in ("npz", "tsv", "parquet"):
        embed(path, fasta, tmp_path / f"o.{suffix}", model=MODEL)
    with np.load(tmp_path / "o.npz") as table:
        expected, status = table["embedding"], table["status"].tolist()
    assert status == ["ok"] * 4 + ["unknown_contig"] and np.isnan(expected[4]).all()
    table = pyarrow.parquet.read_table(tmp_path / "o.parquet")
    assert np.array_equal(np.float32(table.column("embedding").to_pylist()), expected, equal_nan=True)
    assert table.column("status").to_pylist() == status
    rows = [line.split("\t") for line in (tmp_path / "o.tsv").read_text().splitlines()]
    assert rows[0][:9] == ["contig", "start", "end", "name", "score", "strand", "status", "unknown", "embedding_0"]
    assert np.array_equal(np.float32([row[8:] for row in rows[1:5]]), expected[:4])
    assert rows[5] == ["chr9", "1", "2", ".", ".", "+", "unknown_contig", "0"] + [""] * 32


def test_equal_runs_give_equal_bytes(tmp_path, fasta):
    path = put(tmp_path, BED.encode(), "r.bed")
    for suffix in ("npz", "tsv", "parquet"):
        for name in "ab":
            embed(path, fasta, tmp_path / f"{name}.{suffix}", model=MODEL)
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_marked_regions_keep_their_row(tmp_path, fasta):
    bed = "chr1\t5\t5\nchr1\t5990\t6001\nchr7\t0\t5\nchr1\t0\t4096\nchr2\t0\t40\nchr2\t0\t82\nchr1\t0\t9\n"
    table, summary = run(tmp_path, bed, fasta)
    statuses = ["empty_region", "out_of_range", "unknown_contig", "too_long", "too_many_n", "too_many_n", "ok"]
    assert table["status"].tolist() == statuses
    assert np.isnan(table["embedding"][:-1]).all() and np.isfinite(table["embedding"][-1]).all()
    assert (summary.regions, summary.embedded) == (7, 1)
    assert summary.to_dict()["statuses"]["too_many_n"] == 2


def test_clip(tmp_path, fasta):
    table, _ = run(tmp_path, "chr1\t5990\t6001\nchr1\t6000\t6001\n", fasta, clip=True)
    assert table["status"].tolist() == ["ok", "out_of_range"]
    assert (table["end"][0], table["start"][0]) == (6000, 5990)
    assert np.array_equal(table["embedding"][:1], embed_sequences(MODEL, [BASES[5990:]]))


def test_unknown_bases_are_counted(tmp_path, fasta):
    bed = "chr2\t39\t80\nchr2\t36\t80\nchr2\t0\t80\nchr2\t0\t40\n"
    table, summary = run(tmp_path, bed, fasta)
    assert table["status"].tolist() == ["ok", "too_many_n", "too_many_n", "too_many_n"]
    assert table["unknown"].tolist() == [1, 4, 40, 40] and summary.unknown == 1
    assert np.array_equal(table["embedding"][:1], embed_sequences(MODEL, ["N" + BASES[:40]]))
    table, summary = run(tmp_path, bed, fasta, max_n_share=1.0)
    assert table["status"].tolist() == ["ok", "ok", "ok", "too_many_n"] and summary.unknown == 45


@pytest.mark.parametrize(("echo", "longest"), [(None, 63), ("same", 31), ("rc", 31)])
def test_too_long_for_the_context(tmp_path, fasta, echo, longest):
    model = random_model(max_position_embeddings=64)
    bed = f"chr1\t0\t{longest}\nchr1\t0\t{longest + 1}\n"
    table, _ = run(tmp_path, bed, fasta, model=model, echo=echo)
    assert table["status"].tolist() == ["ok", "too_long"]


def test_renamed_contigs(tmp_path, fasta):
    renames = put(tmp_path, b"1 chr1\n", "names.txt")
    table, _ = run(tmp_path, "1\t0\t10\nchr1\t0\t10\n2\t0\t5\n", fasta, rename_chrs=renames)
    assert table["contig"].tolist() == ["chr1", "chr1", "2"] and table["status"][2] == "unknown_contig"
    assert np.array_equal(table["embedding"][0], table["embedding"][1])
    with pytest.raises(DataError, match="--rename-chrs"):
        run(tmp_path, "1\t0\t10\n2\t0\t5\n", fasta)


def test_strict_keeps_the_output(tmp_path, fasta):
    bed = "chr1\t0\t10\nchr1\t5\t5\n"
    with pytest.raises(DataError, match=r"1 of 2 regions have no vector \(empty_region 1\)"):
        run(tmp_path, bed, fasta, strict=True)
    with np.load(tmp_path / "out.npz") as table:
        assert table["status"].tolist() == ["ok", "empty_region"]
    run(tmp_path, "chr1\t0\t10\n", fasta, strict=True)


def test_no_regions(tmp_path, fasta, caplog):
    table, summary = run(tmp_path, "# nothing\n", fasta)
    assert table["embedding"].shape == (0, 32) and summary.regions == 0
    assert len(warnings_of(caplog, "empty-input")) == 1


def test_warned_once_though_read_twice(tmp_path, fasta, caplog):
    run(tmp_path, "chr1\t0\t10", fasta)
    assert len(warnings_of(caplog, "no-newline")) == 1


def test_bad_line_stops_before_the_model_loads(tmp_path, fasta, toy_model_folder, monkeypatch):
    monkeypatch.setattr("hybridna_core.commands.embed.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(DataError, match=r"r.bed:3: start 9 is after end 5"):
        run(tmp_path, "chr1\t0\t10\nchr1\t0\t10\nchr1\t9\t5\n", fasta, model=str(toy_model_folder))
    assert not os.path.exists(tmp_path / "out.npz")


def test_standard_input(tmp_path, fasta, monkeypatch):
    with open(put(tmp_path, BED.encode(), "r.bed")) as handle:
        monkeypatch.setattr("sys.stdin", handle)
        seen = []
        summary = embed("-", fasta, tmp_path / "o.npz", model=MODEL, progress=lambda *a: seen.append(a))
    assert summary.embedded == 4 and seen == [(1, None), (2, None), (3, None), (4, None)]


def test_progress_knows_the_total(tmp_path, fasta):
    seen = []
    run(tmp_path, BED, fasta, progress=lambda *a: seen.append(a))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_genome_that_changes_while_running(tmp_path, fasta):
    def change(done, total):
        put(tmp_path, FASTA.encode() + b">new\nA\n", "genome.fa")

    with pytest.raises(DataError, match="changed since the start"):
        run(tmp_path, BED, fasta, progress=change)
    assert not os.path.exists(tmp_path / "out.npz")


def test_outputs_that_must_not_be(tmp_path, fasta):
    bed = put(tmp_path, BED.encode(), "r.tsv")
    for output, words, kind in (
        (bed, "the output is the input", UsageError),
        (tmp_path / "x.csv", ".tsv, .npz, .npy, .parquet", UsageError),
        (tmp_path / "no" / "x.tsv", "does not exist", SystemFault),
        (tmp_path, "is a folder", UsageError),
    ):
        with pytest.raises(kind) as caught:
            embed(bed, fasta, output, model=MODEL, force=True)
        assert words in str(caught.value)


def test_soft_masked_genome_gives_the_same(tmp_path, fasta):
    lower = put(tmp_path, FASTA.lower().replace("chr", "chr").replace(">mt", ">MT").encode(), "lower.fa")
    with open_genome(lower) as genome:
        assert genome.fetch("chr1", 0, 10) == BASES[:10]
    upper, _ = run(tmp_path, BED, fasta)
    assert np.array_equal(run(tmp_path, BED, lower)[0]["embedding"], upper["embedding"])
