"""score-variants in pieces: broken off and gone on with, cut into shards and merged; always the bytes of one run.

toy model -> VCF of every kind of record -> whole, broken off, sharded -> compared as bytes
"""

import os
import random
from pathlib import Path

import pysam.bcftools
import pytest
from genome_files import bgzip, put, warnings_of
from toys import random_model

from hybridna_core.commands.merge import merge
from hybridna_core.commands.saturate import saturate
from hybridna_core.commands.score_variants import score_variants
from hybridna_core.data import partial
from hybridna_core.data.shards import Shard, find_shard, measure, parse_shard, read_part
from hybridna_core.data.vcf import VcfReader
from hybridna_core.errors import DataError, UsageError
from hybridna_core.scoring import Plan, Scorer

KINDS = {"v": "vcf", "z": "vcf.gz", "b": "bcf", "u": "bcf", "t": "tsv.gz"}
SEQUENCE = "".join(random.Random(8).choices("ACGT", k=1500))
HEADER = """##fileformat=VCFv4.2
##INFO=<ID=DP,Number=1,Type=Integer,Description="x">
##INFO=<ID=END,Number=1,Type=Integer,Description="x">
##FORMAT=<ID=GT,Number=1,Type=String,Description="x">
##contig=<ID=chr1,length=1500>
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tone
"""


def lines(count=40):
    """Records in order, some at one place, some with several alleles or none to score."""
    dice = random.Random(3)
    found = []
    for pos in sorted(dice.choices(range(100, 1400), k=count)):
        ref = SEQUENCE[pos - 1]
        others = [base for base in "ACGT" if base != ref]
        alt = dice.choice([others[0], others[1], ",".join(others), ref + "ACGT", "*", ".", "<CNV>", "A" * 40])
        found.append(f"chr1\t{pos}\tr{pos}\t{ref}\t{alt}\t30\tPASS\tDP={pos}\tGT\t0/1\n")
    return found


@pytest.fixture(scope="module")
def model():
    return random_model(4)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # No test here is about a power cut.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    put(tmp_path, f">chr1\n{SEQUENCE}\n".encode(), "ref.fa")
    put(tmp_path, (HEADER + "".join(lines())).encode(), "in.vcf")


def run(model, output, vcf="in.vcf", **options):
    options = {"window": 16, "output_type": options.pop("kind", None), **options}
    return score_variants(vcf, "ref.fa", output, model=model, **options)


class Killed(BaseException):
    """Stands in for what ends a process."""


def break_off(monkeypatch, count, call, *arguments, **options):
    """Call a command and end it when so many alleles are scored; return how many were scored."""
    done = []

    def score(self, allele, original=Scorer.score):
        if len(done) == count:
            raise Killed
        done.append(allele)
        return original(self, allele)

    with monkeypatch.context() as patch:
        patch.setattr(partial, "SECONDS", 0)
        patch.setattr(partial, "PATIENCE", 0)
        patch.setattr(Scorer, "score", score)
        if count is None:
            call(*arguments, **options)
        else:
            with pytest.raises(Killed):
                call(*arguments, **options)
    return len(done)


# --- Going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_broken_off_and_gone_on_with(model, monkeypatch, caplog, kind):
    caplog.set_level("INFO", "hybridna")
    options = {"kind": kind, "skipped": "left.tsv", "write_index": kind in "zbt"}
    whole = f"whole.{KINDS[kind]}"
    summary = run(model, whole, **options)
    expected = [Path(name).read_bytes() for name in (whole, "left.tsv")]
    Path("left.tsv").unlink()
    output = f"out.{KINDS[kind]}"
    # Again and again, at the first allele, too, and the same rest is left each time.
    # BCF takes a process for each piece.
    for count in [4] if kind in "bu" else [5, 0, 1, 12]:
        assert break_off(monkeypatch, count, run, model, output, **options) == count
        assert not Path(output).exists() and Path(f"{output}.partial/data").exists()
    assert run(model, output, **options)._replace(seconds=0, output="") == summary._replace(seconds=0, output="")
    assert [Path(name).read_bytes() for name in (output, "left.tsv")] == expected
    assert not Path(f"{output}.partial").exists() and not Path("left.tsv.partial").exists()
    assert "goes on after" in caplog.text
    if options["write_index"]:
        suffix = "csi" if kind == "b" else "tbi"
        assert Path(f"{output}.{suffix}").read_bytes() == Path(f"{whole}.{suffix}").read_bytes()


def test_beyond_the_records_that_are_judged_at_once(model, monkeypatch):
    monkeypatch.setattr("hybridna_core.commands.score_variants.GUARD_RECORDS", 10)
    run(model, "whole.vcf")
    break_off(monkeypatch, 25, run, model, "out.vcf")
    assert break_off(monkeypatch, None, run, model, "out.vcf") < 30
    assert Path("out.vcf").read_bytes() == Path("whole.vcf").read_bytes()


def other_input():
    with open("in.vcf", "a") as file:
        file.write(lines()[-1])


def other_genome():
    Path("ref.fa").write_text(f">chr1\n{SEQUENCE[:-1]}A\n")
    Path("ref.fa.fai").unlink()


@pytest.mark.parametrize(
    "change, options, words",
    [
        (other_input, {}, "the input"), (other_genome, {}, "the model, the genome or the window"),
        (None, {"window": 17}, "the model, the genome or the window"), (None, {"per_strand": True}, "the options"),
        (None, {"regions": "chr1:1-700"}, "the options"), (None, {"no_version": True}, "the header"),
        (None, {"shard": "1/2"}, "the shard"),
    ],
)  # fmt: skip
def test_g23_what_another_run_left_is_refused(model, monkeypatch, change, options, words):
    break_off(monkeypatch, 9, run, model, "out.vcf")
    if change is not None:
        change()
    with pytest.raises(UsageError, match=f"unfinished run that is not this one.*{words}.*delete the folder"):
        run(model, "out.vcf", **options)
    assert Path("out.vcf.partial/journal").exists() and not Path("out.vcf").exists()


def test_g23_another_version_is_refused(model, monkeypatch):
    break_off(monkeypatch, 9, run, model, "out.vcf")
    monkeypatch.setattr("hybridna_core.score_fields.version", lambda: "99.9")
    with pytest.raises(UsageError, match="the version"):
        run(model, "out.vcf")


def test_force_keeps_the_old_output_until_the_end(model, monkeypatch):
    Path("out.vcf").write_text("old")
    run(model, "whole.vcf")
    break_off(monkeypatch, 20, run, model, "out.vcf", force=True)
    assert Path("out.vcf").read_text() == "old"
    run(model, "out.vcf", force=True)
    assert Path("out.vcf").read_bytes() == Path("whole.vcf").read_bytes()


def test_a_genome_that_changes_is_not_saved(model, monkeypatch):
    """What was scored beside another genome must not be gone on with when the first one is back."""
    text = Path("ref.fa").read_text()

    def score(self, allele, original=Scorer.score):
        Path("ref.fa").write_text(text + "\n")
        return original(self, allele)

    with monkeypatch.context() as patch, pytest.raises(DataError, match="changed since the start"):
        patch.setattr(partial, "SECONDS", 0)
        patch.setattr(Scorer, "score", score)
        run(model, "out.vcf")
    assert not Path("out.vcf.partial").exists()


@pytest.mark.parametrize("regions", ["chr1:300-330", "in.bed"])
def test_saturate_goes_on(model, monkeypatch, regions):
    Path("in.bed").write_text("chr1\t300\t310\nchrQ\t1\t2\nchr1\t400\t415\n")
    options = {"model": model, "window": 64, "deletions": True, "write_index": True}
    whole = saturate(regions, "ref.fa", "whole.tsv.gz", **options)
    for count in (7, 40):
        break_off(monkeypatch, count, saturate, regions, "ref.fa", "out.tsv.gz", **options)
    summary = saturate(regions, "ref.fa", "out.tsv.gz", **options)
    assert Path("out.tsv.gz").read_bytes() == Path("whole.tsv.gz").read_bytes()
    assert summary.tokens < whole.tokens
    assert summary._replace(seconds=0, output="", tokens=0) == whole._replace(seconds=0, output="", tokens=0)
    break_off(monkeypatch, 7, saturate, regions, "ref.fa", "new.tsv", **{**options, "write_index": False})
    with pytest.raises(UsageError, match="the options"):
        saturate(regions, "ref.fa", "new.tsv", **{**options, "deletions": False, "write_index": False})


# --- Shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, count", [*(("v", count) for count in range(1, 9)), ("z", 3), ("t", 3), ("b", 2), ("u", 1)]
)
def test_merged_shards_are_the_whole(model, kind, count):
    suffix = KINDS[kind]
    options = {"kind": kind, "no_version": count == 5}
    whole = run(model, f"whole.{suffix}", **options)
    parts = [f"part{i}.{suffix}" for i in range(1, count + 1)]
    records = [run(model, part, shard=f"{i}/{count}", **options).records for i, part in enumerate(parts, start=1)]
    assert sum(records) == whole.records == 40
    random.Random(count).shuffle(parts)
    summary = merge(parts, f"merged.{suffix}", write_index=kind in "zbt")
    assert Path(f"merged.{suffix}").read_bytes() == Path(f"whole.{suffix}").read_bytes()
    assert summary.parts == count and summary.lines == (whole.alleles if kind == "t" else 40)
    assert Path(f"merged.{suffix}.{'csi' if kind == 'b' else 'tbi'}").exists() == (kind in "zbt")


def test_shards_of_any_order_and_of_regions(model):
    shuffled = lines()
    random.Random(1).shuffle(shuffled)
    put(Path(), bgzip((HEADER + "".join(shuffled)).encode()), "in.vcf.gz")
    run(model, "whole.vcf", vcf="in.vcf.gz")
    for i in (1, 2, 3, 4):
        run(model, f"part{i}.vcf", vcf="in.vcf.gz", shard=f"{i}/4")
    merge([f"part{i}.vcf" for i in (1, 2, 3, 4)], "merged.vcf")
    assert Path("merged.vcf").read_bytes() == Path("whole.vcf").read_bytes()
    options = {"regions": "chr1:300-900"}
    assert 0 < run(model, "whole2.vcf", **options).records < 40
    for i in (1, 2):
        run(model, f"half{i}.vcf", shard=f"{i}/2", **options)
    merge(["half1.vcf", "half2.vcf"], "merged2.vcf")
    assert Path("merged2.vcf").read_bytes() == Path("whole2.vcf").read_bytes()


def test_shards_take_equally_long(model):
    """The work of each shard differs from its share by less than one record's."""
    plan = Plan(16, 8, 1)
    with VcfReader("in.vcf") as reader:
        works = [work for _, work in measure(reader.records(), plan)]
    at = 0
    for i in range(1, 6):
        count = run(model, f"part{i}.vcf", shard=f"{i}/5").records
        assert abs(sum(works[at : at + count]) - sum(works) / 5) <= max(works)
        at += count
    assert at == len(works) == 40


def test_what_a_record_costs():
    Path("in.vcf").write_text(
        HEADER + "".join(f"chr1\t{p}\t.\tA\t{alt}\t.\t.\t.\tGT\t0/1\n" for p, alt in
                         [(10, "C"), (10, "G,T"), (11, "C"), (11, "*"), (16, "."), (16, "<DEL>")])
    )  # fmt: skip
    with VcfReader("in.vcf") as reader:
        records = list(reader.records())
    # One pass of each direction for a place, the horizon twice for an allele, and one for the record itself.
    assert [w for _, w in measure(records, Plan(100, 20, 1))] == [241, 81, 241, 1, 1, 241]
    assert [w for _, w in measure(records, Plan(100, 20, 8))] == [241, 81, 41, 1, 1, 241]


def test_more_shards_than_records(model, caplog):
    Path("in.vcf").write_text(HEADER + lines()[0])
    run(model, "whole.vcf")
    assert [run(model, f"part{i}.vcf", shard=f"{i}/3").records for i in (1, 2, 3)] == [1, 0, 0]
    assert warnings_of(caplog, "empty-input") == []
    merge(["part1.vcf", "part2.vcf", "part3.vcf"], "merged.vcf")
    assert Path("merged.vcf").read_bytes() == Path("whole.vcf").read_bytes()


def test_a_shard_goes_on_too(model, monkeypatch):
    run(model, "whole.vcf", shard="2/3")
    monkeypatch.setattr("hybridna_core.commands.score_variants.GUARD_RECORDS", 25)
    break_off(monkeypatch, 8, run, model, "out.vcf", shard="2/3")
    assert break_off(monkeypatch, None, run, model, "out.vcf", shard="2/3") < 20
    assert Path("out.vcf").read_bytes() == Path("whole.vcf").read_bytes()


def test_a_part_that_is_scored_again_is_no_part(model):
    run(model, "part.vcf", shard="1/2")
    run(model, "again.vcf", vcf="part.vcf", replace=True)
    with pytest.raises(DataError, match=r"again\.vcf: is no part of a sharded run"):
        merge(["again.vcf"], "merged.vcf")


def test_a_shard_of_no_known_contig(model):
    """The whole input decides, not what a shard happens to hold."""
    Path("in.vcf").write_text(HEADER + "".join(lines(8)) + "".join(x.replace("chr1", "chrQ") for x in lines(8)))
    assert [run(model, f"part{i}.vcf", shard=f"{i}/2").scored > 0 for i in (1, 2)] == [True, False]
    Path("in.vcf").write_text(HEADER + "".join(x.replace("chr1", "chrQ") for x in lines(8)))
    with pytest.raises(DataError, match="no record has a contig"):
        run(model, "none.vcf", shard="2/2")


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", "", "1/999999999"])
def test_shards_that_are_none(model, text):
    with pytest.raises(UsageError, match="--shard: is "):
        run(model, "out.vcf", shard=text)


def test_a_stream_cannot_be_cut(model):
    with pytest.raises(UsageError, match="--shard: the parts of an input are found by reading it first"):
        run(model, "out.vcf", vcf="-", shard="1/2")


@pytest.mark.parametrize(
    "environment, shard",
    [
        ({}, None), ({"RANK": "0", "WORLD_SIZE": "1"}, None), ({"RANK": "2", "WORLD_SIZE": "8"}, "3/8"),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3"}, "3/4"),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"}, "1/4"),
        ({"SLURM_ARRAY_TASK_ID": "20", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "0",
          "SLURM_ARRAY_TASK_STEP": "10"}, "3/3"),
        ({"RANK": "x", "WORLD_SIZE": "8"}, None), ({"SLURM_ARRAY_TASK_ID": "5"}, None),
    ],
)  # fmt: skip
def test_shards_of_a_job(environment, shard, caplog):
    assert find_shard(environment) == shard
    told = warnings_of(caplog, "shard")
    assert [f"shard {shard} alone" in text for text in told] == [True] * (shard is not None)
    assert parse_shard(shard) == (None if shard is None else Shard(*map(int, shard.split("/"))))


# --- Parts that do not fit together ----------------------------------------------------------------------------------


@pytest.fixture
def parts(model):
    names = [f"part{i}.vcf" for i in (1, 2, 3)]
    for i, name in enumerate(names, start=1):
        run(model, name, shard=f"{i}/3")
    return names


def refusal(parts, output="merged.vcf", kind=DataError, **options):
    with pytest.raises(kind) as caught:
        merge(parts, output, **options)
    assert not Path("merged.vcf").exists() and not Path("merged.vcf.partial").exists()
    return str(caught.value)


def test_missing_double_and_foreign_parts(model, parts):
    one, two, three = parts
    assert refusal([three, one]) == "part3.vcf: part 2/3 is missing; give all parts of the run"
    assert "parts are missing: 1/3, 3/3" in refusal([two])
    Path("copy.vcf").write_bytes(Path(one).read_bytes())
    assert refusal([one, two, "copy.vcf", three]).startswith("copy.vcf: is part 1/3, and so is part1.vcf")
    run(model, "other.vcf", shard="3/3", window=17)
    assert refusal([one, two, "other.vcf"]).startswith("other.vcf: is a part of another run than part1.vcf")
    run(model, "other4.vcf", shard="3/4")
    assert refusal([one, two, "other4.vcf"]).startswith("other4.vcf: is a part of another run than part1.vcf")
    assert "in.vcf: is no part of a sharded run" in refusal([one, "in.vcf", three])
    assert refusal([one, two, "-"], kind=UsageError).startswith("-: standard input")
    assert "no such file" in refusal([one, two, "part4.vcf"], kind=Exception)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_that_are_cut(model, kind):
    suffix = KINDS[kind]
    names = [f"part{i}.{suffix}" for i in (1, 2)]
    for i, name in enumerate(names, start=1):
        run(model, name, shard=f"{i}/2", kind=kind)
    raw = Path(names[1]).read_bytes()
    if kind == "v":
        cuts = [raw[: raw.rindex(b"\n", 0, -1) + 1], raw[:-3]]
    else:
        whole = b"".join(partial_chunks(names[1]))
        # Cut before it was packed, at a line's or a record's end and within one, and cut as it stands.
        cuts = [bgzip(whole[:-7]), raw[:-28], raw[:-40]]
        if kind in "zt":
            cuts.append(bgzip(whole[: whole.rindex(b"\n", 0, -1) + 1]))
    for cut in cuts:
        Path(names[1]).write_bytes(cut)
        message = refusal(names, f"merged.{suffix}")
        assert message.startswith(names[1])
        assert "are due; is it whole?" in message or "end block is missing" in message or "cut inside" in message
        assert not Path(f"merged.{suffix}").exists()


def partial_chunks(path):
    from hybridna_core.data.inputs import read_chunks

    return read_chunks(path)


def test_outputs_of_merge(model, parts):
    assert refusal(parts, "part1.vcf", UsageError).startswith("part1.vcf: the output is the input part1.vcf")
    assert refusal(parts, "merged.bcf", UsageError) == "merged.bcf: the parts are VCF; name the output so"
    assert "an index is made for a bgzip" in refusal(parts, write_index=True, kind=UsageError)
    Path("old.vcf").write_text("old")
    assert refusal(parts, "old.vcf", UsageError).startswith("old.vcf: the output exists already")
    assert Path("old.vcf").read_text() == "old"
    merge(parts, "old.vcf", force=True)
    run(model, "whole.vcf")
    assert Path("old.vcf").read_bytes() == Path("whole.vcf").read_bytes()


def test_an_index_needs_sorted_records(model):
    shuffled = lines()
    random.Random(1).shuffle(shuffled)
    Path("in.vcf").write_text(HEADER + "".join(shuffled))
    for i in (1, 2):
        run(model, f"part{i}.vcf.gz", shard=f"{i}/2")
    with pytest.raises(DataError, match="cannot be indexed"):
        merge(["part1.vcf.gz", "part2.vcf.gz"], "merged.vcf.gz", write_index=True)
    assert not Path("merged.vcf.gz").exists() and not Path("merged.vcf.gz.partial").exists()


def test_parts_say_what_they_are(model, parts):
    told = [line for line in Path(parts[1]).read_text().splitlines() if line.startswith("##hybridna_shard")]
    part = read_part(told[0])
    assert len(told) == 1 and part.shard == Shard(2, 3) and part.kind == "v" and part.to_line() == told[0]
    assert part.lines == len(pysam.bcftools.view("-H", parts[1]).splitlines())
    command = [line for line in Path(parts[1]).read_text().splitlines() if "Command" in line]
    assert command and "shard" not in command[0]
