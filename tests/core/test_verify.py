"""verify and explain: sound files pass, every kind of drift fails, and the words are those of the header."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from genome_files import put, warnings_of
from toys import random_model

import hybridna_core
from hybridna_core.checkpoint import save_model
from hybridna_core.commands.explain import explain
from hybridna_core.commands.saturate import saturate
from hybridna_core.commands.score_variants import score_variants
from hybridna_core.commands.verify import draw, verify
from hybridna_core.data.vcf import VcfReader
from hybridna_core.errors import DataError, ModelError, UsageError

SEQUENCE = "".join(random.Random(9).choices("ACGT", k=500))
HEADER = '##fileformat=VCFv4.2\n##INFO=<ID=END,Number=1,Type=Integer,Description="End">\n'
HEADER += "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture(scope="module")
def model():
    return random_model(4)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, f">chr1\n{SEQUENCE}\n>chr2\n{SEQUENCE[::-1]}\n".encode(), "ref.fa")
    lines = [f"chr1\t{pos}\t.\t{SEQUENCE[pos - 1]}\tA,C,G,T\t.\t.\t." for pos in range(105, 115)]
    lines += [
        f"chr1\t200\t.\t{SEQUENCE[199]}\t<DEL>\t.\t.\tEND=230",
        f"chr2\t50\t.\t{SEQUENCE[450]}\t*,GATTACA\t.\t.\t.",
    ]
    # REF and ALT exchanged.
    lines.append(f"chr1\t300\t.\t{other(SEQUENCE[299])}\t{SEQUENCE[299]}\t.\t.\t.")
    Path("in.vcf").write_text(HEADER + "".join(f"{line}\n" for line in lines))


def other(base):
    return "ACGT"["ACGT".index(base) - 1]


def score(model, output="out.vcf", **options):
    return score_variants("in.vcf", "ref.fa", output, model=model, **{"window": 64, "check_ref": "s", **options})


@pytest.mark.parametrize("output", ["out.vcf", "out.vcf.gz", "out.bcf"])
def test_sound_files_pass(model, output):
    due = score(model, output, stride=8, horizon=20, per_strand=True)
    summary = verify(output, "ref.fa", model=model, sample=1000)
    assert (summary.records, summary.scored, summary.checked) == (13, due.scored, due.scored) == (13, 33, 33)
    # htslib spells the floats of a BCF with six digits.
    assert summary.difference < (1e-4 if output.endswith(".bcf") else 1e-6) and summary.model == "toy"


def test_a_sample(model):
    score(model)
    assert verify("out.vcf", "ref.fa", model=model, sample=7).checked == 7

    def drawn(seed):
        with VcfReader("out.vcf") as reader:
            found, records, scored = draw(reader, "HD_", 7, seed)
        assert len(found) == 7 and (records, scored) == (13, 33)
        return [(record.number, index) for record, index in found]

    draws = [drawn(seed) for seed in range(200)]
    assert draws[3] == drawn(3) and all(one == sorted(set(one)) for one in draws)
    # 200 draws of 7 out of 33: each allele 42 times on average, with a standard deviation of 6.
    times = Counter(one for draw in draws for one in draw)
    assert len(times) == 33 and min(times.values()) > 15 and max(times.values()) < 75


def change(old, new, count=0, path="out.vcf"):
    text, times = re.subn(old, new, Path(path).read_text(), count=count)
    assert times
    Path(path).write_text(text)


def message(model, **options):
    with pytest.raises(DataError) as caught:
        verify("out.vcf", "ref.fa", model=model, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_one_changed_number_is_found(model):
    score(model)
    text = re.search(r"HD_LLR=([^;,]+),", Path("out.vcf").read_text().split("chr1\t110\t")[1])[1]
    wrong = f"{float(text) * 1.001 + 0.001:.6g}" if text != "." else "0.5"
    lines = Path("out.vcf").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("chr1\t110\t"))
    lines[at] = lines[at].replace("HD_LLR=" + text, "HD_LLR=" + wrong)
    Path("out.vcf").write_text("\n".join(lines) + "\n")
    found = message(model, sample=1000)
    assert "1 of 33 scores" in found and f"chr1:110 {SEQUENCE[109]}>A HD_LLR is {wrong}, now " in found


@pytest.mark.parametrize(
    "old, new, words",
    [
        (r"HD_ST=swapped", "HD_ST=ok", "chr1:300 .* HD_ST is ok, now ref_mismatch"),
        (r"(chr2.*HD_LLR=\.,)[^;]*", r"\g<1>nan", "chr2:50 .*>GATTACA HD_LLR is nan, now"),
        (r"(chr2.*HD_LLR=\.,)[^;]*", r"\g<1>high", "chr2:50 .*>GATTACA HD_LLR is high"),
        (r"Horizon=32", "Horizon=31", " of 33 scores are not what they were"),
    ],
)
def test_other_changes(model, old, new, words):
    score(model)
    change(old, new)
    assert re.search(words, message(model, sample=1000))


def test_another_reference_or_model(model):
    score(model)
    with pytest.raises(ModelError, match=r"made with model toy \(SHA-256 0+4\), this one has 0+5; give --model"):
        verify("out.vcf", "ref.fa", model=random_model(5))
    with pytest.raises(ModelError, match="made with model toy, which is not found here; give its folder as --model"):
        verify("out.vcf", "ref.fa")
    Path("other.fa").write_text(f">chr1\n{SEQUENCE[:-1]}{other(SEQUENCE[-1])}\n>chr2\n{SEQUENCE[::-1]}\n")
    with pytest.raises(
        DataError, match=r"chr1 of other\.fa is not the sequence that was scored \(MD5 .*scored with ref"
    ):
        verify("out.vcf", "other.fa", model=model)


def test_the_model_of_the_header_is_loaded(tmp_path):
    folder = save_model(tmp_path / "named", random_model(6))
    score(str(folder))
    assert verify("out.vcf", "ref.fa", model=str(folder)).model == "named"
    assert hybridna_core.verify is verify and hybridna_core.explain is explain


def test_files_that_do_not_say_how_they_were_made(model, caplog):
    score(model, no_version=True)
    with pytest.raises(DataError, match="the header does not say how HD_LLR was made"):
        verify("out.vcf", "ref.fa", model=model)
    with pytest.raises(DataError, match="the header does not say that hybridna scored this file"):
        explain("out.vcf")
    score(model, "second.vcf", info_prefix="X_")
    with pytest.raises(DataError, match="the header does not say how HD_LLR was made"):
        verify("second.vcf", "ref.fa", model=model)
    assert verify("second.vcf", "ref.fa", model=model, info_prefix="X_", sample=3).checked == 3
    change("Window=64", "Window=x", path="second.vcf")
    with pytest.raises(DataError, match="the line ##hybridna is damaged"):
        verify("second.vcf", "ref.fa", model=model, info_prefix="X_")
    Path("in.vcf").write_text(HEADER)
    score(model, "empty.vcf")
    assert verify("empty.vcf", "ref.fa", model=model).checked == 0
    assert "empty.vcf: no scores" in warnings_of(caplog, "empty-input")


def test_numbers_that_mean_nothing(model):
    score(model)
    for options, option in (({"sample": 0}, "sample"), ({"seed": -1}, "seed"), ({"tolerance": -1}, "tolerance")):
        with pytest.raises(UsageError, match=f"--{option}: is "):
            verify("out.vcf", "ref.fa", model=model, **options)


def test_words(model):
    score(model, "out.bcf", per_strand=True, stride=8, horizon=20)
    score(model, "table.tsv.gz")
    saturate("chr1:5-6", "ref.fa", "all.tsv", model=model, window=64)
    text = "\n".join(explain("out.bcf"))
    for words in (
        "scored by hybridna", "with the model toy", "HD_LLR = log P(alternative) - log P(reference), natural logarithm",
        "up to 20 known bases", "given the 44 before", "multiples of 8 bases", "HD_EDGE: 1:", "HD_ST: ok; swapped",
        "HD_FWD: the direction", "HD_REV: the direction", f"{4:064x}", "computed in float32", "Reference: ref.fa",
    ):  # fmt: skip
        assert words in text
    for path in ("table.tsv.gz", "all.tsv"):
        text = "\n".join(explain(path))
        assert "\nllr = log P(alternative)" in text and "edge: 1:" in text and "HD_" not in text and "fwd" not in text
    assert "multiples of 8 bases" in text
    # Two runs under two prefixes are both told.
    score_variants("out.bcf", "ref.fa", "two.vcf", model=model, window=64, info_prefix="X_", check_ref="s")
    text = "\n".join(explain("two.vcf"))
    assert text.index("HD_LLR = ") < text.index("X_LLR = ")
    with pytest.raises(DataError, match="not VCF"):
        explain("ref.fa")
