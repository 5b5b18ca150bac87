"""HD_DIST: the distance that a script of plain passes finds, whatever was read before, at contig ends and beside N."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from genome_files import put
from toys import random_model, uniform_model

from hybridna_core.commands.explain import explain
from hybridna_core.commands.score_variants import score_variants
from hybridna_core.commands.verify import verify
from hybridna_core.data.inputs import read_chunks
from hybridna_core.errors import DataError, GuardError, UsageError
from hybridna_core.scoring import measure
from hybridna_core.tokenizer import encode, reverse_complement

SEQUENCE = "".join(random.Random(8).choices("ACGT", k=400))
SEQUENCE = SEQUENCE[:200] + "NN" + SEQUENCE[202:]
WINDOW, HORIZON = 48, 20
# Start, end (0-based), what takes the place: SNV, insertion, deletion, complex, both contig ends, beside N.
CHANGES = [
    (100, 101, "other"), (120, 120, "GATTACA"), (140, 149, ""), (160, 163, "CCGTA"), (0, 1, "other"), (3, 4, "other"),
    (397, 398, "other"), (399, 400, "other"), (0, 5, ""), (395, 400, ""), (190, 191, "other"), (210, 211, "other"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return random_model(4)


@pytest.fixture(autouse=True)
def genome(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return put(tmp_path, f">chr1\n{SEQUENCE}\n".encode(), "ref.fa")


def spell(start, end, text):
    """POS, REF and ALT of a change, spelt with a base beside it where one is needed."""
    if text == "other":
        text = "ACGT"["ACGT".index(SEQUENCE[start]) - 1]
    if end - start != len(text) and start > 0:
        return start, SEQUENCE[start - 1 : end], SEQUENCE[start - 1] + text
    if end - start != len(text):
        return 1, SEQUENCE[: end + 1], text + SEQUENCE[end]
    return start + 1, SEQUENCE[start:end], text


def write(changes, name="in.vcf"):
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for change in changes:
        pos, ref, alt = spell(*change)
        lines.append(f"chr1\t{pos}\t.\t{ref}\t{alt}\t.\t.\t.")
    Path(name).write_text("\n".join(lines) + "\n")
    return name


def run(changes, model, output="out.tsv", **options):
    """Score changes into a table; return a dict of columns."""
    options = {"window": WINDOW, "horizon": HORIZON, "force": True, "embedding_distance": "l2", **options}
    score_variants(write(changes), "ref.fa", output, model=model, **options)
    lines = b"".join(read_chunks(output)).decode().splitlines()
    names, *rows = (line.split("\t") for line in lines if not line.startswith("##"))
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def pooled(model, bases):
    """Mean of the hidden vectors of the bases, read in one pass after the start token, float64."""
    tokens = torch.tensor([[2, *encode(bases)]])
    with torch.no_grad():
        hidden, _ = model(tokens)
    return hidden[0, 1:].double().mean(0).numpy()


def plain(model, change, distance):
    """The distance of a change by two passes per direction over windows cut from whole strings."""
    pos, ref, alt = spell(*change)
    changed = SEQUENCE[: pos - 1] + alt + SEQUENCE[pos - 1 + len(ref) :]
    found = []
    for r, a in ((SEQUENCE, changed), (reverse_complement(SEQUENCE), reverse_complement(changed))):
        c = next((i for i in range(min(len(r), len(a))) if r[i] != a[i]), min(len(r), len(a)))
        known = min(HORIZON, *(len(text) - c - text[c:].count("N") for text in (r, a)))
        if known == 0:
            continue
        windows = []
        for text in (r, a):
            end = c
            while end - c - text[c:end].count("N") < known:
                end += 1
            windows.append(pooled(model, text[max(0, c - (WINDOW - HORIZON)) : end]))
        x, y = windows
        found.append(np.linalg.norm(x - y) if distance == "l2" else 1 - x @ y / np.sqrt((x @ x) * (y @ y)))
    return np.mean(found)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_two_plain_passes(model, distance):
    found = run(CHANGES, model, embedding_distance=distance)
    assert set(found["status"]) == {"ok"} and found["edge"].count("1") >= 6
    due = [plain(model, change, distance) for change in CHANGES]
    assert np.array(found["dist"], dtype=float) == pytest.approx(due, rel=1e-4)
    assert min(due) > 1e-3


def test_the_same_whatever_order_and_neighbours(model):
    """Shuffled, alone, with other strands and neighbours that share what is read: the same text."""
    snvs = [(start, start + 1, "other") for start in range(90, 130, 3)]
    due = dict(zip(snvs, run(snvs, model, stride=8)["dist"], strict=True))
    assert len(set(due.values())) == len(snvs)
    mixed = snvs * 2
    random.Random(1).shuffle(mixed)
    assert list(run(mixed, model, stride=8)["dist"]) == [due[change] for change in mixed]
    for change in snvs[:3]:
        assert run([change], model, stride=8)["dist"] == (due[change],)
    plainly = run(snvs, model, stride=8, embedding_distance=None)
    assert "dist" not in plainly and plainly["llr"] == run(snvs, model, stride=8)["llr"]


def test_both_strands_count_alike(model):
    due = run(CHANGES[:4], model)["dist"]
    turned = reverse_complement(SEQUENCE)
    Path("ref.fa").write_text(f">chr1\n{turned}\n")
    Path("ref.fa.fai").unlink()
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for change in CHANGES[:4]:
        pos, ref, alt = spell(*change)
        start = 400 - (pos - 1 + len(ref)) + 1
        lines.append(f"chr1\t{start}\t.\t{reverse_complement(ref)}\t{reverse_complement(alt)}\t.\t.\t.")
    Path("turned.vcf").write_text("\n".join(lines) + "\n")
    options = {"window": WINDOW, "horizon": HORIZON, "embedding_distance": "l2"}
    score_variants("turned.vcf", "ref.fa", "turned.tsv", model=model, **options)
    rows = [line.split("\t") for line in Path("turned.tsv").read_text().splitlines() if not line.startswith("##")]
    assert [row[rows[0].index("dist")] for row in rows[1:]] == list(due)


def test_small_angles_keep_their_digits():
    """Vectors that differ in the ninth digit, where 1 - cosine in float64 has lost all but the first."""
    prefix = np.tile(np.array([3.0, 4.0], dtype=np.float32), (10, 1))
    a, b = np.array([[3.0, 4.0]], dtype=np.float32), np.array([[3.0, 4.0000005]], dtype=np.float32)
    step = float(b[0, 1] - 4) / 11
    assert measure(prefix, a, b, "l2") == pytest.approx(step, rel=1e-6)
    assert measure(prefix, a, b, "cosine") == pytest.approx((step * 3 / 25) ** 2 / 2, rel=1e-6)
    assert measure(prefix, a, a, "cosine") == measure(prefix, a, a, "l2") == 0


def test_in_a_header(model):
    write([*CHANGES[:3], (200, 201, "A")])
    options = {"model": model, "window": WINDOW, "horizon": HORIZON, "embedding_distance": "cosine"}
    score_variants("in.vcf", "ref.fa", "out.vcf", **options)
    text = Path("out.vcf").read_text()
    assert '##INFO=<ID=HD_DIST,Number=A,Type=Float,Description="cosine distance' in text
    assert ',Distance="cosine">' in text
    assert "--horizon 20 --stride 1 --check-ref w --embedding-distance cosine --info-prefix HD_ in.vcf" in text
    assert text.splitlines()[-1].endswith("HD_LLR=.;HD_EDGE=.;HD_ST=ambiguous_ref;HD_DIST=.")
    assert "HD_DIST: cosine distance" in "\n".join(explain("out.vcf"))
    assert verify("out.vcf", "ref.fa", model=model).checked == 3
    values = [line.rpartition("HD_DIST=")[2] for line in text.splitlines() if line.startswith("chr1\t1")]
    Path("out.vcf").write_text(text.replace(values[1], f"{float(values[1]) * 1.01:.6g}"))
    with pytest.raises(DataError, match=r"1 of 3 scores are not what they were: chr1:120 .* HD_DIST is "):
        verify("out.vcf", "ref.fa", model=model)
    # What an earlier run left goes with --replace.
    score_variants("out.vcf", "ref.fa", "again.vcf", model=model, window=WINDOW, replace=True)
    assert "HD_DIST" not in Path("again.vcf").read_text()


def test_what_cannot_be(model):
    with pytest.raises(UsageError, match="--embedding-distance: is 'cosin', must be cosine or l2; did you mean cosine"):
        run(CHANGES[:1], model, embedding_distance="cosin")
    zero = uniform_model()
    zero.model.final_layernorm.weight.zero_()
    with pytest.raises(GuardError, match="chr1:101: the model gives no finite number"):
        run(CHANGES[:1], zero, embedding_distance="cosine")
