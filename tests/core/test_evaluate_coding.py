"""`evaluate coding`: classes, scores and AUROCs on a genome with made-up genes, and a run that is stopped half-way."""

import csv
import re

import numpy as np
import pytest
from toys import markov_log_prob, markov_model, random_model

from hybridna_core.commands import evaluate_coding as evaluate
from hybridna_core.commands.score_variants import score_variants
from hybridna_core.data.markov import MarkovModel
from hybridna_core.errors import UsageError
from hybridna_core.scoring import Scorer
from hybridna_core.tokenizer import encode, reverse_complement

TABLE = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1], [0.05, 0.15, 0.5, 0.3]])
CODONS = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT" if a + b + c not in ("TAA", "TAG", "TGA")]


def one_layer(seed):
    return random_model(seed, layer_types=("mamba",))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A genome of 12 genes on both strands, its GFF3, and another genome to count."""
    folder = tmp_path_factory.mktemp("coding")
    random = np.random.default_rng(0)
    contig, lines = "", []
    for number in range(12):
        contig += "".join(random.choice(list("ACGT"), 40))
        gene = "ATG" + "".join(random.choice(CODONS, 60)) + "TAA"
        strand = "+-"[number % 2]
        lines.append(f"c\tx\tCDS\t{len(contig) + 1}\t{len(contig) + len(gene)}\t.\t{strand}\t0\tParent=g{number}\n")
        contig += gene if strand == "+" else reverse_complement(gene)
    (folder / "g.fa").write_text(f">c\n{contig}\n")
    (folder / "a.gff3").write_text("".join(lines))
    (folder / "b.fa").write_text(f">d\n{''.join(random.choice(list('ACGT'), 5000))}NN{'ACGTT' * 50}\n")
    return folder, contig


def run(folder, model, **options):
    options = {"sites": 15, "window": 64, "background": [folder / "b.fa"], **options}
    return evaluate.evaluate_coding(folder / "g.fa", folder / "a.gff3", model=model, **options)


def rows_of(path):
    with open(path) as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def test_scores_are_those_of_score_variants(files, tmp_path):
    folder, contig = files
    model = one_layer(3)
    found = run(folder, model, variants=tmp_path / "v.tsv", missense=7)
    rows = rows_of(tmp_path / "v.tsv")
    assert found.counts == {"synonymous": 15, "missense": 7, "stop_gained": 15} and len(rows) == 37
    lines = [f"c\t{r['pos']}\t.\t{r['ref']}\t{r['alt']}\t.\t.\t.\n" for r in rows]
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "v.vcf").write_text(header + "".join(lines))
    score_variants(tmp_path / "v.vcf", folder / "g.fa", tmp_path / "o.vcf", model=model, window=64)
    scored = [line.split("\t") for line in (tmp_path / "o.vcf").read_text().splitlines() if line[0] != "#"]
    for row, record in zip(rows, scored, strict=True):
        assert contig[int(row["pos"]) - 1] == row["ref"]
        fields = dict(field.split("=") for field in record[7].split(";"))
        assert float(fields["HD_LLR"]) == pytest.approx(float(row["llr"]), rel=1e-5, abs=1e-5)


def test_llr_by_hand(files, tmp_path):
    folder, contig = files
    run(folder, markov_model(TABLE), variants=tmp_path / "v.tsv", window=20, horizon=10)
    for row in rows_of(tmp_path / "v.tsv"):
        at = int(row["pos"]) - 1
        ratios = []
        for text, here, alt in (
            (contig, at, row["alt"]),
            (reverse_complement(contig), len(contig) - 1 - at, reverse_complement(row["alt"])),
        ):
            before, after = text[here - 10 : here], text[here + 1 : here + 10]
            changed, kept = (markov_log_prob(TABLE, before + base + after) for base in (alt, text[here]))
            ratios.append(changed - kept)
        assert float(row["llr"]) == pytest.approx(np.mean(ratios), abs=2e-4)


def test_markov_ratio_is_that_of_whole_windows(files, tmp_path):
    folder, contig = files
    run(folder, one_layer(1), variants=tmp_path / "v.tsv")
    markov = MarkovModel(5)
    markov.add(encode((folder / "b.fa").read_text().splitlines()[1]))
    for row in rows_of(tmp_path / "v.tsv"):
        at, ratios = int(row["pos"]) - 1, []
        changed = contig[:at] + row["alt"] + contig[at + 1 :]
        for text, other in ((contig, changed), (reverse_complement(contig), reverse_complement(changed))):
            sums = [np.nansum(markov.log2_probs(encode(t))[5]) for t in (text, other)]
            ratios.append((sums[1] - sums[0]) * np.log(2))
        assert float(row["markov_llr"]) == pytest.approx(np.mean(ratios), abs=1e-8)


def test_aurocs_are_those_of_the_table(files, tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    folder, _ = files
    found = run(folder, one_layer(2), variants=tmp_path / "v.tsv", sites=60)
    rows = rows_of(tmp_path / "v.tsv")
    positive = [row["class"] == "stop_gained" for row in rows]
    by = {(one.score, one.strata): one for one in found.aurocs}
    for name, column in {"hybridna": "llr", "markov": "markov_llr"}.items():
        values = np.array([-float(row[column]) for row in rows])
        assert by[name, "all"].auroc == pytest.approx(metrics.roc_auc_score(positive, values), abs=1e-6)
        won = total = 0
        for place in "123":
            here = np.array([row["codon_position"] == place for row in rows])
            pairs = int(sum(np.array(positive)[here])) * int(sum(~np.array(positive)[here]))
            if pairs:
                won += pairs * metrics.roc_auc_score(np.array(positive)[here], values[here])
                total += pairs
        assert by[name, "codon_position"].auroc == pytest.approx(won / total, abs=1e-6)
        one = by[name, "both"]
        assert one.low <= one.auroc <= one.high and 0 < one.compared < one.changes == 60
    # Codon position alone tells most of these; within strata of both the regression knows nothing.
    assert by["regression", "all"].auroc > 0.75 and by["regression", "both"].auroc == 0.5


def test_a_stopped_run_goes_on_and_ends_the_same(files, tmp_path, caplog):
    folder, _ = files
    model = one_layer(5)
    whole = run(folder, model, variants=tmp_path / "whole.tsv")

    def stop(done, total):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, model, variants=tmp_path / "v.tsv", progress=stop)
    part = tmp_path / "v.tsv.part"
    assert not (tmp_path / "v.tsv").exists() and len(part.read_text().splitlines()) == 21
    # A line that was cut in the middle counts for nothing.
    part.write_text(part.read_text()[:-3])
    again = run(folder, model, variants=tmp_path / "v.tsv")
    assert (tmp_path / "v.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes() and not part.exists()
    assert again.aurocs == whole.aurocs

    with pytest.raises(KeyboardInterrupt):
        run(folder, model, variants=tmp_path / "w.tsv", progress=stop)
    assert "starting anew" not in caplog.text
    run(folder, model, variants=tmp_path / "w.tsv", seed=1)
    assert "w.tsv.part is of another run; starting anew" in caplog.text


def test_scores_that_were_kept_are_not_made_again(files, tmp_path, monkeypatch):
    folder, _ = files
    model = one_layer(5)

    def stop(done, total):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, model, variants=tmp_path / "v.tsv", progress=stop)
    made, score = [], Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, allele: made.append(1) or score(self, allele))
    run(folder, model, variants=tmp_path / "v.tsv")
    assert len(made) == 10


def test_run_file_as_background_counts_its_training_bases(files, tmp_path, caplog):
    folder, _ = files
    text = (
        '[model]\npreset = "tiny"\n[[stage]]\ncontext_length = 64\nsteps = 1\nbatch_tokens = 64\n'
        f'[[species]]\nname = "b"\nfasta = "{folder / "b.fa"}"\n'
    )
    (tmp_path / "run.toml").write_text(text)
    model = one_layer(1)
    plain = run(folder, model)
    assert run(folder, model, background=[tmp_path / "run.toml"]).aurocs == plain.aurocs
    more = f'[[species]]\nname = "g"\nfasta = "{folder / "g.fa"}"\n'
    (tmp_path / "run.toml").write_text(text + more + 'valid = ["all"]\n')
    assert run(folder, model, background=[tmp_path / "run.toml"]).aurocs == plain.aurocs
    assert "no test on a genome unseen" not in caplog.text
    (tmp_path / "run.toml").write_text(text + more)
    run(folder, model, background=[tmp_path / "run.toml"])
    assert "no test on a genome unseen" in caplog.text
    with pytest.raises(UsageError, match="is the genome that is measured"):
        run(folder, model, background=[folder / "g.fa"])


def test_unknown_surroundings_leave_a_change_out(files, tmp_path):
    folder, contig = files
    known = set(re.findall("CDS\t(\\d+)\t(\\d+)", (folder / "a.gff3").read_text()))
    spaced = np.full(len(contig), "N")
    for start, end in known:
        spaced[int(start) - 1 : int(end)] = list(contig[int(start) - 1 : int(end)])
    (tmp_path / "g.fa").write_text(f">c\n{''.join(spaced)}\n")
    found = evaluate.evaluate_coding(
        tmp_path / "g.fa", folder / "a.gff3", model=one_layer(1), sites=15, window=64, contigs=["c"]
    )
    assert found.left_out["too_many_n"] > 0 and {one.score for one in found.aurocs} == {"hybridna", "regression"}
    assert found.horizon == 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sites": 0}, "--sites: is 0"),
        ({"missense": -1}, "--missense: is -1"),
        ({"codon_table": 7}, "--codon-table: is 7"),
        ({"window": 5000}, "--window"),
        ({"output": "x.csv"}, "end it in .tsv or .md"),
        ({"contigs": ["d"]}, "no contig 'd'"),
    ],
)
def test_options_that_do_not_do(files, options, words):
    with pytest.raises(UsageError) as caught:
        run(files[0], one_layer(1), **options)
    assert words in str(caught.value)
