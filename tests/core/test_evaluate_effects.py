"""`evaluate effects`: scores that equal what was measured, shuffled ones, and what has no value, on made-up bases."""

import collections
import csv
import re

import numpy as np
import pytest
from toys import random_model, uniform_model

from hybridna_core.commands import evaluate_effects as core
from hybridna_core.commands.score_variants import score_variants
from hybridna_core.data.markov import MarkovModel
from hybridna_core.data.variants import Allele
from hybridna_core.errors import DataError, GuardError, UsageError
from hybridna_core.metrics import auroc, spearman, spearman_interval
from hybridna_core.scoring import Scorer
from hybridna_core.tokenizer import encode

HEADER = '##fileformat=VCFv4.2\n##INFO=<ID=EFFECT,Number=A,Type=Float,Description="x">\n'
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def one_layer(seed, **changes):
    return random_model(seed, layer_types=("mamba",), **changes)


def write_vcf(path, rows):
    """Write (pos, ref, alt, info) as records of contig c."""
    lines = [f"c\t{pos}\t.\t{ref}\t{alt}\t.\t.\t{info}\n" for pos, ref, alt, info in rows]
    path.write_text(HEADER + COLUMNS + "".join(lines))
    return path


def rows_of(path):
    with open(path) as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def pick(found, score, statistic="spearman", scope="all", group=""):
    wanted = (score, statistic, scope, group)
    (one,) = [m for m in found.measures if (m.score, m.statistic, m.scope, m.group) == wanted]
    return one


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A contig, a model, and a VCF whose EFFECT is the model's own HD_LLR, in three groups of neighbours."""
    folder, random = tmp_path_factory.mktemp("effects"), np.random.default_rng(0)
    contig = "".join(random.choice(list("ACGT"), 400))
    (folder / "g.fa").write_text(f">c\n{contig}\n")
    model, places = one_layer(3), range(40, 370, 16)
    alts = [[b for b in "ACGT" if b != contig[at]][: 1 + at // 16 % 3] for at in places]
    plain = [(at + 1, contig[at], ",".join(found), ".") for at, found in zip(places, alts, strict=True)]
    plain.append((381, contig[380:383], contig[380], "."))
    write_vcf(folder / "plain.vcf", plain)
    score_variants(folder / "plain.vcf", folder / "g.fa", folder / "scored.vcf", model=model, window=64)
    records = [line.split("\t") for line in (folder / "scored.vcf").read_text().splitlines() if line[0] != "#"]
    rows = []
    for number, record in enumerate(records):
        llr = re.search("HD_LLR=([^;]+)", record[7])[1]
        kind = ",".join("low" if float(value) < -1 else "high" for value in llr.split(","))
        rows.append((record[1], record[3], record[4], f"EFFECT={llr};GROUP=g{number // 8};CLASS={kind};{record[7]}"))
    write_vcf(folder / "v.vcf", rows)
    return folder, contig, model, rows


def run(made, path="v.vcf", **options):
    folder, _, model, _ = made
    options = {"model": model, "window": 64, "effect": "EFFECT", "draws": 25, **options}
    return core.evaluate_effects(folder / path if isinstance(path, str) else path, folder / "g.fa", **options)


def test_scores_that_equal_what_was_measured_correlate_fully(made):
    found = run(made, positive="EFFECT<-1", negative="EFFECT>=-1", group="GROUP")
    alleles = sum(len(row[2].split(",")) for row in made[3])
    assert (found.records, found.alleles, found.measured, found.left_out) == (len(made[3]), alleles, alleles, {})
    for scope in ("all", "within"):
        for name, statistic in (("HD_LLR", "spearman"), ("|HD_LLR|", "spearman"), ("-HD_LLR", "auroc")):
            one = pick(found, name, statistic, scope)
            assert (one.value, one.low, one.high) == pytest.approx((1, 1, 1), abs=1e-12) and one.clusters == 3
            assert one.alleles == alleles and one.reason == ""
    assert 0 < pick(found, "-HD_LLR", "auroc").positives < alleles
    assert pick(found, "HD_FWD").value < 0.999 and pick(found, "gc_change").value < 0.9


def test_turned_round_effects_give_minus_one(made, tmp_path):
    def turn(match):
        return "EFFECT=" + ",".join(str(-float(value)) for value in match[1].split(","))

    turned = [(*row[:3], re.sub("EFFECT=([^;]+)", turn, row[3])) for row in made[3]]
    found = run(made, write_vcf(tmp_path / "t.vcf", turned), positive="EFFECT>1")
    assert pick(found, "HD_LLR").value == pytest.approx(-1, abs=1e-12)
    assert pick(found, "|HD_LLR|").value == pytest.approx(1, abs=1e-12)
    assert pick(found, "-HD_LLR", "auroc").value == 1


def make_rows(effects, groups=None, positive=None):
    count = len(effects)
    groups, positive = groups or [None] * count, positive if positive is not None else [None] * count
    return [core.Row("c", i // 2, "A", "C", groups[i], effects[i], positive[i], (), Allele("ok")) for i in range(count)]


def test_shuffled_effects_tell_nothing(made):
    """The negative control: of 20 shuffled sets about one in twenty has an interval beside 0."""
    random, beside, values = np.random.default_rng(5), 0, []
    scores = random.normal(size=150)
    asked = core.Question("EFFECT", core.read_condition("EFFECT<0", "--positive"), None, (), None, ())
    for seed in range(20):
        effects = random.permutation(scores)
        rows = make_rows(effects.tolist(), positive=(effects < 0).tolist())
        measures = list(core.measure_all(rows, {"s": scores}, asked, False, 100, seed))
        rho, area = measures[0], next(m for m in measures if m.score == "-s")
        values.append(rho.value)
        beside += not rho.low <= 0 <= rho.high
        beside += not area.low <= 0.5 <= area.high
    assert abs(np.mean(values)) < 0.07 and beside <= 8


def test_numbers_are_those_of_the_table(made, tmp_path):
    stats = pytest.importorskip("scipy.stats")
    _, contig, _, rows = made
    markov = MarkovModel(5)
    markov.add(encode(contig[::-1]))
    found = run(made, variants=tmp_path / "v.tsv", model=one_layer(8), background=markov, group="GROUP",
                positive="CLASS=low", each_group=True)  # fmt: skip
    table = rows_of(tmp_path / "v.tsv")
    assert len(table) == found.measured and not (tmp_path / "v.tsv.part").exists()
    effects = np.array([float(row["effect"]) for row in table])
    positive = np.array([row["positive"] == "1" for row in table])
    groups = np.array([row["group"] for row in table])
    spelt = {(row[0], row[1], alt) for row in rows for alt in row[2].split(",")}
    assert {(row["pos"], row["ref"], row["alt"]) for row in table} == spelt
    for name in ("HD_LLR", "HD_FWD", "HD_REV", "markov", "gc_change", "transition"):
        values = np.array([float(row[name]) for row in table])
        assert pick(found, name).value == pytest.approx(stats.spearmanr(values, effects).statistic, abs=1e-7)
        due = stats.spearmanr(abs(values), abs(effects)).statistic
        assert pick(found, f"|{name}|").value == pytest.approx(due, abs=1e-7)
        assert pick(found, f"-{name}", "auroc").value == pytest.approx(auroc(-values, positive), abs=1e-7)
        one = pick(found, name, scope="within")
        assert one.value == pytest.approx(spearman(values, effects, strata=groups), abs=1e-7)
        bounds = spearman_interval(values, effects, groups, strata=groups, draws=25)
        assert (one.low, one.high) == pytest.approx(bounds, abs=1e-7)
        here = groups == "g1"
        one = pick(found, name, scope="group", group="g1")
        assert one.value == pytest.approx(stats.spearmanr(values[here], effects[here]).statistic, abs=1e-7)
        assert (one.alleles, one.clusters) == (here.sum(), len({row["pos"] for row in table if row["group"] == "g1"}))
    # Both directions make up the score; one without bases to count, beside the contig's end, counts for nothing.
    mean = [(float(row["HD_FWD"]) + float(row["HD_REV"])) / 2 for row in table]
    np.testing.assert_allclose([float(row["HD_LLR"]) for row in table], mean, rtol=1e-5, atol=1e-6)


def test_scores_in_the_file_need_no_model(made, monkeypatch):
    due = run(made, positive="CLASS=low", model=made[2])
    monkeypatch.setattr(Scorer, "score", None)
    found = run(made, positive="CLASS=low", model="base", score=["HD_LLR", "EFFECT"])
    assert (found.model, found.seconds_per_allele) == (None, None)
    for name, statistic in (("HD_LLR", "spearman"), ("|HD_LLR|", "spearman"), ("-HD_LLR", "auroc")):
        one, other = pick(found, name, statistic), pick(due, name, statistic)
        assert one[5:] == pytest.approx(other[5:])
    assert pick(found, "EFFECT").value == pytest.approx(1, abs=1e-12)


def test_every_allele_is_counted(made, tmp_path):
    contig = made[1]
    at = [row[0] for row in made[3]]
    ref = {pos: contig[int(pos) - 1] for pos in at}
    other = {pos: "ACGT"[("ACGT".index(ref[pos]) + 1) % 4] for pos in at}
    third = {pos: "ACGT"[("ACGT".index(ref[pos]) + 2) % 4] for pos in at}
    rows = [
        *((pos, ref[pos], other[pos], f"EFFECT={i};GROUP=a;USE=1") for i, pos in enumerate(at[:5])),
        (at[5], ref[at[5]], f"{other[at[5]]},*", "EFFECT=7,8;GROUP=a;USE=1"),
        (at[6], ref[at[6]], other[at[6]], "EFFECT=.;GROUP=a;USE=1"),
        (at[7], ref[at[7]], f"{other[at[7]]},{third[at[7]]}", "EFFECT=.,3;GROUP=a;USE=1"),
        (at[8], ref[at[8]], other[at[8]], "EFFECT=1;USE=1"),
        (at[9], ref[at[9]], other[at[9]], "EFFECT=1;GROUP=a;USE=0"),
        (at[10], ref[at[10]], other[at[10]], "EFFECT=1;GROUP=a"),
        (at[11], other[at[11]], ref[at[11]], "EFFECT=1;GROUP=a;USE=1"),
        (9999, "A", "C", "EFFECT=1;GROUP=a;USE=1"),
    ]
    found = run(made, write_vcf(tmp_path / "v.vcf", rows), group="GROUP", where=["USE=1"])
    due = {"spanning": 1, "not_measured": 2, "no_group": 1, "not_wanted": 2, "ref_mismatch": 1, "out_of_range": 1}
    assert found.left_out == due and found.measured == 7 and found.alleles == 15 and found.records == len(rows)
    assert pick(found, "HD_LLR").alleles == 7


def test_statistics_use_the_alleles_that_they_can(made):
    found = run(made, positive="CLASS=low", negative="EFFECT>2")
    low = sum(float(v) < -1 for row in made[3] for v in re.search("EFFECT=([^;]+)", row[3])[1].split(","))
    up = sum(float(v) > 2 for row in made[3] for v in re.search("EFFECT=([^;]+)", row[3])[1].split(","))
    one = pick(found, "-HD_LLR", "auroc")
    assert (one.alleles, one.positives, one.against) == (low + up, low, "CLASS=low / EFFECT>2")
    assert pick(found, "HD_LLR").alleles == found.measured > low + up > 0


@pytest.mark.parametrize(
    ("effects", "scores", "statistic", "reason"),
    [
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "spearman", "constant effect"),
        ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], "spearman", "constant score"),
        ([1.0, 2.0], [1.0, 2.0], "spearman", "fewer than 3 alleles"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "auroc", "no positives"),
        ([-1.0, -2.0, -3.0], [1.0, 2.0, 3.0], "auroc", "no negatives"),
        ([-1.0, 2.0, 3.0], [1.0, 1.0, 1.0], "auroc", "constant score"),
    ],
)
def test_e28_what_has_no_value_has_a_reason(effects, scores, statistic, reason):
    asked = core.Question("EFFECT", core.read_condition("EFFECT<0", "--positive"), None, (), None, ())
    rows = make_rows(effects, positive=[value < 0 for value in effects])
    measures = list(core.measure_all(rows, {"s": np.array(scores)}, asked, False, 20, 0))
    found = [m for m in measures if m.statistic == statistic]
    assert found and all((m.value, m.low, m.high, m.reason) == (None, None, None, reason) for m in found)


def test_e28_within_groups_and_of_one_cluster():
    asked = core.Question("EFFECT", core.read_condition("EFFECT<0", "--positive"), None, (), "GROUP", ())
    effects = [-1.0, -2.0, 3.0, 4.0]
    rows = make_rows(effects, ["a", "a", "b", "b"], [True, True, False, False])
    measures = list(core.measure_all(rows, {"s": np.arange(4.0)}, asked, False, 20, 0))
    within = [m for m in measures if m.scope == "within"]
    assert len(within) == 4 and {m.reason for m in within} == {"no group in which both vary"}
    assert {m.reason for m in measures if m.scope == "all"} == {""}
    # A value without an interval: nothing can be drawn anew from one group.
    rows = make_rows(effects, ["a"] * 4, [True, True, False, False])
    for one in core.measure_all(rows, {"s": np.arange(4.0)}, asked, False, 20, 0):
        assert one.value is not None and (one.low, one.high, one.clusters) == (None, None, 1)


def test_e28_a_model_that_tells_nothing_is_constant(made):
    found = run(made, model=uniform_model(layer_types=("mamba",)), positive="CLASS=low")
    for name, statistic in (("HD_LLR", "spearman"), ("-HD_LLR", "auroc")):
        assert pick(found, name, statistic).reason == "constant score"
    assert dict(zip(*(found.table()[0], next(r for r in found.table()[1])), strict=True))["value"] == "NA"


@pytest.mark.parametrize("value", ["nan", "inf", "much"])
def test_e28_numbers_that_are_none_stop(made, tmp_path, value):
    row = made[3][0]
    broken = [*made[3][1:], (*row[:2], row[2].split(",")[0], f"EFFECT={value};S=1")]
    with pytest.raises(DataError, match=f"v.vcf:{len(broken) + 3}: EFFECT is '{value}', not a finite number"):
        run(made, write_vcf(tmp_path / "v.vcf", broken), output=tmp_path / "t.tsv")
    broken[-1] = (*broken[-1][:3], f"EFFECT=1;HD_LLR={value}")
    with pytest.raises(DataError, match=f"HD_LLR is '{value}', not a finite number"):
        run(made, write_vcf(tmp_path / "v.vcf", broken), score=["HD_LLR"])
    assert not (tmp_path / "t.tsv").exists()


def test_a_model_without_finite_numbers_stops(made, tmp_path):
    model = one_layer(1)
    model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(GuardError, match="no finite number"):
        run(made, model=model, output=tmp_path / "t.tsv")
    assert not (tmp_path / "t.tsv").exists()


def test_places_are_drawn_whole(made):
    alleles = {row[0]: len(row[2].split(",")) for row in made[3]}
    tables = [run(made, sites=5, seed=seed) for seed in (1, 1, 2)]
    assert all(t.places == 5 and t.measured + t.left_out["not_drawn"] == sum(alleles.values()) for t in tables)
    assert tables[0].measures == tables[1].measures != tables[2].measures
    rows, left_out = make_rows([1.0] * 40), collections.Counter()
    drawn = core.draw_places(rows, 7, 0, left_out)
    assert len(drawn) == 14 and left_out == {"not_drawn": 26} and drawn == sorted(drawn, key=lambda row: row.pos)
    assert run(made, sites=1000).left_out == {}


def test_alleles_that_stand_twice_are_scored_once(made, tmp_path, monkeypatch):
    scored, score = [], Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda self, allele: scored.append(1) or score(self, allele))
    found = run(made, write_vcf(tmp_path / "v.vcf", [*made[3], *made[3]]), variants=tmp_path / "v.tsv")
    table = rows_of(tmp_path / "v.tsv")
    half = len(table) // 2
    assert found.measured == len(table) == 2 * len(scored) and found.places == len(made[3])
    assert [row["HD_LLR"] for row in table[:half]] == [row["HD_LLR"] for row in table[half:]]


def test_a_stopped_run_goes_on_and_ends_the_same(made, tmp_path, caplog):
    whole = run(made, variants=tmp_path / "whole.tsv", output=tmp_path / "whole.md")

    def stop(done, total):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(made, variants=tmp_path / "v.tsv", progress=stop)
    part = tmp_path / "v.tsv.part"
    assert not (tmp_path / "v.tsv").exists() and len(part.read_text().splitlines()) == 21
    part.write_text(part.read_text()[:-3])
    again = run(made, variants=tmp_path / "v.tsv", output=tmp_path / "v.md")
    for suffix in ("tsv", "md"):
        assert (tmp_path / f"v.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert again.measures == whole.measures and not part.exists()
    with pytest.raises(KeyboardInterrupt):
        run(made, variants=tmp_path / "w.tsv", progress=stop)
    run(made, variants=tmp_path / "w.tsv", model=one_layer(4))
    assert "w.tsv.part is of another run; starting anew" in caplog.text


def test_a_genome_that_does_not_fit_stops_before_the_model(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Scorer, "score", None)
    rows = [(row[0], "ACGT"[("ACGT".index(row[1][0]) + 1) % 4], row[1][0], "EFFECT=1") for row in made[3]]
    with pytest.raises(DataError, match="have another REF than"):
        run(made, write_vcf(tmp_path / "v.vcf", rows))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"effect": None}, UsageError, "--effect: nothing to compare the scores with; give --effect KEY"),
        ({"negative": "CLASS=low"}, UsageError, "--negative: needs --positive"),
        ({"each_group": True}, UsageError, "--each-group: needs --group"),
        ({"effect": "A=1"}, UsageError, "--effect: 'A=1' is no key of INFO"),
        ({"positive": "CLASS"}, UsageError, "--positive: is 'CLASS'"),
        ({"sites": 0}, UsageError, "--sites: is 0"),
        ({"draws": 0}, UsageError, "--draws: is 0"),
        ({"window": 5000}, UsageError, "--window"),
        ({"output": "x.csv"}, UsageError, "end it in .tsv or .md"),
        ({"effect": "EFECT"}, DataError, "no INFO EFECT; did you mean EFFECT?"),
        ({"where": ["EFFECT>1e9"]}, DataError, "no allele is left to measure (not_wanted"),
    ],
)
def test_what_is_asked_wrongly(made, options, kind, words):
    with pytest.raises(kind) as caught:
        run(made, **options)
    assert words in str(caught.value)
