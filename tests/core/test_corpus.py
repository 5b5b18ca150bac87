"""Training windows: where they may lie, how species share them, and that a number says all about a window."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from genome_files import bgzip, put, warnings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridna_core.data.corpus import (
    Corpus,
    Stretches,
    check_exclusions,
    find_starts,
    load_species,
    mixture_weights,
    read_exclusions,
    validation_windows,
)
from hybridna_core.errors import DataError, HybriDNAError, UsageError
from hybridna_core.run_config import SpeciesConfig
from hybridna_core.tokenizer import N, decode, encode, reverse_complement, reverse_complement_ids


def random_bases(length, seed=0):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A new folder to be in, which `species` puts its genomes into."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def species(*sequences, name="one", valid=()):
    """A Species whose contigs are the given texts; those of `valid` are held out."""
    contigs = {f"c{i}": text for i, text in enumerate(sequences)} | {f"v{i}": text for i, text in enumerate(valid)}
    path = Path(f"{name}-{len(list(Path().iterdir()))}.fa")
    path.write_text("".join(f">{contig}\n{text}\n" for contig, text in contigs.items()))
    held = tuple(contig for contig in contigs if contig[0] == "v")
    return load_species(SpeciesConfig(name, str(path), valid=held))


def make(*all_species, bases=10, tokens=100, **options):
    return Corpus(list(all_species), bases=bases, tokens=tokens, **{"max_passes": 1e9, **options})


def texts(corpus, count):
    return [(corpus.names.index(w.species), decode(w.ids)) for w in map(corpus.window, range(count))]


# --- Shares ----------------------------------------------------------------------------------------------------------


def test_shares_by_size_to_a_power():
    # sqrt(1) : sqrt(4) : sqrt(9) = 1 : 2 : 3
    assert mixture_weights([1, 4, 9], 1, power=0.5, max_passes=15) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert mixture_weights([1, 4, 9], 1, power=0.0, max_passes=15) == pytest.approx([1 / 3] * 3)
    assert mixture_weights([7], 100, power=0.7, max_passes=15) == pytest.approx([1])


def test_shares_that_are_given():
    assert mixture_weights([100, 100], 10, power=1, max_passes=15, given=[3.0, 1.0]) == pytest.approx([0.75, 0.25])
    # A species without a weight takes its bases to the power: 100 ** 0.5 = 10 beside 30.
    assert mixture_weights([100, 5], 10, power=0.5, max_passes=15, given=[None, 30.0]) == pytest.approx([0.25, 0.75])


def test_no_species_is_read_too_often():
    # Equal wishes of 500 tokens; 10 bases at 15 passes are worth 150, and the rest goes to the other.
    assert mixture_weights([10, 1000], 1000, power=0, max_passes=15) == pytest.approx([0.15, 0.85])
    # The second may have 30 x 15 / 1000 = 0.45, which half of what the first leaves does not reach.
    assert mixture_weights([10, 30, 900], 1000, power=0, max_passes=15) == pytest.approx([0.15, 0.425, 0.425])
    # Here it may have 0.3, less than that half.
    assert mixture_weights([10, 20, 900], 1000, power=0, max_passes=15) == pytest.approx([0.15, 0.3, 0.55])
    # A given weight is capped too.
    shares = mixture_weights([10, 1000], 1000, power=0.7, max_passes=15, given=[1e9, None])
    assert shares == pytest.approx([0.15, 0.85])


def test_passes_count_what_windows_can_reach():
    # The second species has 1,000 bases, but only 10 of them in contigs that are long enough.
    shares = mixture_weights([1000, 1000, 1000], 1000, power=1, max_passes=15, usable=[1000, 10, 0])
    assert shares == pytest.approx([0.85, 0.15, 0])


@settings(max_examples=200, deadline=None)
@given(
    bases=st.lists(st.integers(0, 10**9), min_size=1, max_size=8),
    tokens=st.integers(1, 10**10),
    power=st.floats(0, 2),
    max_passes=st.floats(0.1, 100),
)
def test_shares_sum_to_one_and_keep_the_limit(bases, tokens, power, max_passes):
    limit = np.array(bases) * max_passes / tokens
    if limit.sum() < 1:
        with pytest.raises(UsageError, match=r"mixture\.max_passes: is "):
            mixture_weights(bases, tokens, power=power, max_passes=max_passes)
        return
    shares = mixture_weights(bases, tokens, power=power, max_passes=max_passes)
    assert shares.sum() == pytest.approx(1)
    assert (shares <= limit * (1 + 1e-9)).all() and (shares >= 0).all()
    # What is below its limit keeps the ratio of the wishes.
    free = [i for i in range(len(bases)) if 0 < shares[i] < limit[i] * (1 - 1e-9)]
    for i in free:
        assert shares[i] / shares[free[0]] == pytest.approx((bases[i] / bases[free[0]]) ** power)


def test_genomes_too_small_for_the_run():
    with pytest.raises(UsageError) as caught:
        mixture_weights([100, 200], 9000, power=1, max_passes=15)
    assert str(caught.value) == (
        "mixture.max_passes: is 15, but 9,000 tokens read the 300 bases 30.0 times; "
        "allow more passes, take fewer steps or more data"
    )
    assert mixture_weights([100, 200], 9000, power=1, max_passes=30).sum() == pytest.approx(1)


# --- Where windows start ---------------------------------------------------------------------------------------------


class Runs:
    """As much of a store as find_starts looks at: where the N of a text are."""

    def __init__(self, text):
        padded = np.array([0, *(letter == "N" for letter in text), 0])
        self.unknown = np.flatnonzero(np.diff(padded)).reshape(-1, 2)


@settings(max_examples=400, deadline=None)
@given(
    text=st.text("ACGTNNN", max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    bases=st.integers(1, 20),
    most=st.integers(0, 6),
)
def test_starts_are_those_counted_one_by_one(text, cuts, bases, most):
    # Stretches may begin and end inside a run of N.
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    stretches = Stretches(Runs(text), range(len(ends) - 1), ends[:-1], ends[1:])
    due = [
        (i, at)
        for i, (begin, end) in enumerate(itertools.pairwise(ends))
        for at in range(begin, end - bases + 1)
        if text[at : at + bases].count("N") <= most
    ]
    found = [column.tolist() for column in find_starts(stretches, bases, most)]
    assert [(i, at) for i, start, end in zip(*found, strict=True) for at in range(start, end)] == due


def test_every_fitting_window_is_drawn_and_no_other():
    # Contigs of 12, 9 and 10 bases: starts 0-2 in the first, none in the second, 0 in the third.
    corpus = make(species("AACCGGTTAACC", "A" * 9, "ACGTACGTAC"), reverse_share=0)
    windows = [text for _, text in texts(corpus, 4000)]
    due = ["AACCGGTTAA", "ACCGGTTAAC", "CCGGTTAACC", "ACGTACGTAC"]
    assert sorted(set(windows)) == sorted(due)
    for window in due:
        assert windows.count(window) == pytest.approx(1000, abs=120)


def test_unknown_bases_are_limited():
    sequence = random_bases(300) + "N" * 40 + random_bases(300, 1) + "N" * 3 + random_bases(300, 2)
    corpus = make(species(sequence), bases=50, max_unknown=0.05)
    windows = [text for _, text in texts(corpus, 3000)]
    # 5 % of 50 is 2.5: two unknown bases are allowed, three are not.
    assert max(window.count("N") for window in windows) == 2
    assert all(len(window) == 50 for window in windows)


def test_nearly_all_unknown():
    sequence = "N" * 500_000 + random_bases(60) + "N" * 500_000
    corpus = make(species(sequence), bases=50, max_unknown=0.0, reverse_share=0)
    known = sequence.strip("N")
    assert all(window in known for _, window in texts(corpus, 50))
    assert corpus.usable == [60]


def test_half_are_reverse_complements():
    sequence = random_bases(400)
    for share, low, high in ((0.0, 0, 0), (0.5, 430, 570), (1.0, 1000, 1000)):
        corpus = make(species(sequence), bases=30, reverse_share=share)
        windows = [text for _, text in texts(corpus, 1000)]
        flipped = [window not in sequence for window in windows]
        assert all(reverse_complement(w) in sequence for w, f in zip(windows, flipped, strict=True) if f)
        assert low <= sum(flipped) <= high


def test_species_are_drawn_by_share():
    bare = species("A" * 9, name="short")
    corpus = make(bare, species("A" * 400), species("C" * 100, name="two"), power=1.0, tokens=100)
    assert corpus.names == ["short", "one", "two"]
    assert corpus.shares == pytest.approx([0, 0.8, 0.2])
    kinds = [corpus.names.index(corpus.place(i).species) for i in range(3000)]
    assert kinds.count(0) == 0 and kinds.count(2) == pytest.approx(600, abs=75)
    given = make(species("A" * 400), species("C" * 100, name="two"), weights=[1.0, 1.0])
    assert given.shares == pytest.approx([0.5, 0.5])


def test_unknown_bases_count_for_nothing():
    corpus = make(species("A" * 100 + "N" * 900), species("C" * 100, name="two"), power=1.0)
    assert corpus.shares == pytest.approx([0.5, 0.5])


# --- A pure function of (seed, stage, i) -----------------------------------------------------------------------------


def test_a_window_depends_on_its_number_alone():
    parts = [species(random_bases(3000, k), name=f"s{k}") for k in range(3)]
    first, second = make(*parts, seed=5, stage=1), make(*parts, seed=5, stage=1)
    order = np.random.default_rng(1).permutation(200)
    forward = texts(first, 200)
    found = [second.window(int(i)) for i in order]
    assert [(second.names.index(w.species), decode(w.ids)) for w in found] == [forward[i] for i in order]
    for changed in (make(*parts, seed=6, stage=1), make(*parts, seed=5, stage=2)):
        assert sum(a == b for a, b in zip(texts(changed, 200), forward, strict=True)) < 20
    assert len({text for _, text in forward}) > 190


GOLDEN = [(1, "CAGTTGTTTATG"), (1, "TTGCGACGGTAC"), (0, "GTATTCTGATAA"), (1, "CTAAAATTGGAT")]


def test_windows_stay_as_published():
    # Runs that were begun must go on with the same windows: change this only with a reason to tell their owners.
    parts = [species(random_bases(500, 3)), species(random_bases(800, 4), name="two")]
    corpus = make(*parts, bases=12, seed=2**63 - 1, stage=3)
    assert texts(corpus, 4) == GOLDEN


def test_a_window_may_be_changed_by_its_owner():
    corpus = make(species(random_bases(100)), reverse_share=0)
    ids = corpus.window(0).ids
    kept = ids.copy()
    ids[:] = N
    assert np.array_equal(corpus.window(0).ids, kept)


def test_reverse_complement_of_ids_is_that_of_text():
    assert decode(reverse_complement_ids(encode("AACGTN"))) == "NACGTT"


# --- What is held out ------------------------------------------------------------------------------------------------


def load(tmp_path, content, **options):
    path = put(tmp_path, content, "g.fa")
    return load_species(SpeciesConfig("bug", path, **options))


def test_held_out_and_excluded_are_never_trained_on(tmp_path):
    # Each base says what it is for.
    chr1 = "A" * 300 + "C" * 200 + "A" * 150 + "G" * 50 + "A" * 300
    chr2 = "C" * 100
    fasta = f">chr1 first\n{chr1}\n>chr2\n{chr2}\n>chr3\n{'A' * 40}\n".encode()
    one = load(tmp_path, fasta, valid=("chr1:301-500", "chr2"), exclude=("chr1:651-700",))
    assert [(s.contig, s.start, s.end) for s in one.train] == [
        ("chr1", 0, 300), ("chr1", 500, 650), ("chr1", 700, 1000), ("chr3", 0, 40)
    ]  # fmt: skip
    assert [(s.contig, s.start, s.end) for s in one.valid] == [("chr1", 300, 500), ("chr2", 0, 100)]
    assert (one.train_bases, one.valid_bases) == (790, 300)
    corpus = make(one, bases=100, reverse_share=0)
    assert {text for _, text in texts(corpus, 500)} == {"A" * 100}
    assert (validation_windows(one, 50, 100) == encode("C")[0]).all()


def test_excluded_bases_are_not_held_out_either_and_overlaps_count_once(tmp_path):
    fasta = f">c\n{'A' * 100}{'C' * 100}{'G' * 20}{'C' * 80}\n".encode()
    one = load(tmp_path, fasta, valid=("c:101-220", "c:151-300"), exclude=("c:201-220",))
    assert [(s.start, s.end) for s in one.valid] == [(100, 200), (220, 300)]
    assert [(s.start, s.end) for s in one.train] == [(0, 100)]
    everything = load(tmp_path, fasta, valid=("all",), exclude=("c:1-250",))
    assert [(s.start, s.end) for s in everything.valid] == [(250, 300)] and not len(everything.train)


def test_a_name_with_a_colon_and_bgzip(tmp_path):
    one = load(tmp_path, bgzip(b">HLA:01:02\n" + b"ACGT" * 20 + b"\n>c\n" + b"ACGT" * 10 + b"\n"), valid=("HLA:01:02",))
    assert [s.contig for s in one.valid] == ["HLA:01:02"] and one.train_bases == 40


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ("chr1:1-2000", "passes the end of chr1 (1,000 bp)"),
        ("chr9", "no contig 'chr9'"),
        ("chr1:x-9", "'x' is not a whole number"),
        ("chr1:9-5", "ends before it begins"),
    ],
)
@pytest.mark.parametrize("key", ["valid", "exclude"])
def test_regions_that_do_not_fit(tmp_path, region, words, key):
    with pytest.raises(HybriDNAError) as caught:
        load(tmp_path, b">chr1\n" + b"A" * 1000 + b"\n", **{key: (region,)})
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("species bug: ") and words in str(caught.value)


# --- A34, A35 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((["A" * 99], ["C" * 70]), "is shorter than the window: longest 99 bases, window 100"),
        (([],), "there is nothing to train on"),
        ((["AN" * 300],), "every window of 100 bases has over 5 % unknown bases"),
    ],
)  # fmt: skip
def test_a34_nothing_fits(parts, words):
    with pytest.raises(DataError) as caught:
        make(*(species(*texts, valid=["A" * 500]) for texts in parts), bases=100, stage=1)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith("stage 1: ") and words in str(caught.value)


def test_a35_some_do_not_fit(caplog):
    parts = (
        species("A" * 100, "C" * 99, "G" * 50, "N" * 40 + "A" * 100, "N" * 300),
        species("A" * 20, name="tiny"),
        species("A" * 1000, name="good"),
    )
    corpus = make(*parts, bases=100)
    assert warnings_of(caplog, "contigs-left-out") == [
        "one: 2 contigs left out (149 bases): shorter than the window of 100 bases",
        "one: 1 contig left out (300 bases): over 5 % unknown bases in every window of 100",
        "tiny: 1 contig left out (20 bases): shorter than the window of 100 bases",
    ]
    assert corpus.shares[1] == 0 and corpus.usable == [200, 0, 1000]


# --- Validation windows ----------------------------------------------------------------------------------------------


def test_validation_windows_spread_evenly_and_never_overlap():
    one = species(valid=["".join("ACGT"[i % 4] * 10 for i in range(20)), "A" * 5, "C" * 10])
    windows = validation_windows(one, 10, 1000)
    assert [decode(w) for w in windows] == ["ACGT"[i % 4] * 10 for i in range(20)] + ["C" * 10]
    # Places 0, 5, 10, 15 of 21.
    assert [decode(w)[0] for w in validation_windows(one, 10, 4)] == ["A", "C", "G", "T"]
    assert validation_windows(one, 10, 1).shape == (1, 10)
    assert validation_windows(one, 201, 3).shape == (0, 201)
    assert validation_windows(species("ACGT"), 2, 3).shape == (0, 2)


def test_validation_windows_are_at_most_half_unknown():
    one = species(valid=["ACGTNN" + "ANNNNN" + "NNNACG" + "N" * 6])
    assert [decode(w) for w in validation_windows(one, 6, 9)] == ["ACGTNN", "NNNACG"]


def test_known_bases():
    one = species("ACGTNnRy", valid=["NNA"])
    assert (one.train_bases, one.valid_bases) == (4, 1)


# --- Classes ---------------------------------------------------------------------------------------------------------


def test_shares_by_class():
    shares = mixture_weights([100, 300, 50, 50], 10, power=1, max_passes=100, classes=["a", "a", "b", "b"],
                             class_shares={"a": 1, "b": 3})  # fmt: skip
    assert shares == pytest.approx([0.0625, 0.1875, 0.375, 0.375])
    # A weight stands in for bases to the power, inside its class.
    shares = mixture_weights([100, 300, 50], 10, power=1, max_passes=100, given=[900.0, None, None],
                             classes=["a", "a", "b"], class_shares={"a": 0.5, "b": 0.5})  # fmt: skip
    assert shares == pytest.approx([0.375, 0.125, 0.5])


def test_what_a_class_cannot_take_goes_to_its_kin_then_to_others():
    # 2,000 tokens at one pass: no species above its bases / 2,000. The first of class a can take 0.05 of its 0.3.
    options = {"power": 0, "max_passes": 1, "classes": ["a", "a", "b"], "class_shares": {"a": 0.5, "b": 0.5}}
    assert mixture_weights([100, 1400, 1400], 2000, **options) == pytest.approx([0.05, 0.45, 0.5])
    # Here class a as a whole takes 0.2 at most, and b the rest.
    assert mixture_weights([100, 300, 1900], 2000, **options) == pytest.approx([0.05, 0.15, 0.8])


def test_a_class_without_bases_is_told(caplog):
    shares = mixture_weights([0, 100], 10, power=1, max_passes=9, classes=["a", "b"], class_shares={"a": 1, "b": 1})
    assert shares == pytest.approx([0, 1])
    assert warnings_of(caplog, "empty-class") == [
        "class 'a' has no bases that windows can reach; its share goes to the others"
    ]


@settings(max_examples=200, deadline=None)
@given(
    bases=st.lists(st.integers(0, 10**6), min_size=3, max_size=9),
    tokens=st.integers(1, 10**6),
    parts=st.lists(st.floats(0.01, 5), min_size=3, max_size=3),
)
def test_classes_keep_the_limits_and_sum_to_one(bases, tokens, parts):
    classes = ["abc"[i % 3] for i in range(len(bases))]
    if sum(bases) * 3 < tokens:
        return
    shares = mixture_weights(bases, tokens, power=0.7, max_passes=3, classes=classes,
                             class_shares=dict(zip("abc", parts, strict=True)))  # fmt: skip
    assert shares.sum() == pytest.approx(1)
    assert (shares <= np.array(bases) * 3 / tokens * (1 + 1e-9)).all() and (shares >= 0).all()


# --- Where windows lie, and soft-masking -----------------------------------------------------------------------------


def test_a_window_says_where_it_lies():
    texts = {"c0": random_bases(300), "c1": random_bases(77, 1), "c2": random_bases(150, 2)}
    corpus = make(species(*texts.values()), bases=30)
    seen = set()
    for i in range(400):
        window, place = corpus.window(i), corpus.place(i)
        assert window[:5] == place and window.weights is None and window.species == "one"
        assert window.end - window.start == 30
        text = texts[window.contig][window.start : window.end]
        assert decode(window.ids) == (text if window.strand == "+" else reverse_complement(text))
        seen.add((window.contig, window.strand))
    assert len(seen) == 6


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_lower_case_weighs_less(weight):
    text = "".join(b.lower() if i // 13 % 2 else b for i, b in enumerate(random_bases(400)))
    masked, plain = (make(species(t), bases=50, soft_masked_weight=weight) for t in (text, text.upper()))
    for i in range(100):
        window = masked.window(i)
        due = [weight if b.islower() else 1 for b in text[window.start : window.end]]
        assert window.weights.dtype == np.float32
        assert window.weights.tolist() == (due if window.strand == "+" else due[::-1])
        # The windows are the same whatever is in lower case.
        assert np.array_equal(window.ids, plain.window(i).ids) and (plain.window(i).weights == 1).all()


# --- BED files -------------------------------------------------------------------------------------------------------


def test_bed_files_of_the_run_file(tmp_path, caplog):
    fasta = f">chr1\n{'A' * 1000}\n>chr2\n{'C' * 100}\n".encode()
    barred = put(tmp_path, b"chr1\t100\t200\nchr1\t950\t2000\nchr9\t0\t5\nchr1\t7\t7\n", "x.bed")
    held = put(tmp_path, b"chr1\t150\t300\n", "v.bed.gz")
    one = load(tmp_path, fasta, exclude_bed=barred, valid_bed=held, exclude=("chr1:1-10",), valid=("chr2:1-50",))
    assert [(s.contig, s.start, s.end) for s in one.train] == [("chr1", 10, 100), ("chr1", 300, 950), ("chr2", 50, 100)]
    assert [(s.contig, s.start, s.end) for s in one.valid] == [("chr1", 200, 300), ("chr2", 0, 50)]
    assert "contig chr9 is not in" in warnings_of(caplog, "unknown_contig")[0]
    with pytest.raises(DataError, match="no region has a contig of"):
        load(tmp_path, fasta, exclude_bed=put(tmp_path, b"chr9\t1\t2\n", "y.bed"))
    with pytest.raises(HybriDNAError, match="no such file"):
        load(tmp_path, fasta, exclude_bed=str(tmp_path / "none.bed"))


def test_exclusions_hold_for_every_species(tmp_path, caplog):
    bed = put(tmp_path, b"c0\t10\t20\nc1\t0\t500\nz\t1\t2\n", "x.bed")
    exclusions = read_exclusions(bed)
    parts = []
    for i, texts in enumerate((["A" * 30, "C" * 40], ["G" * 50])):
        path = put(tmp_path, "".join(f">c{j}\n{t}\n" for j, t in enumerate(texts)).encode(), f"{i}.fa")
        parts.append(load_species(SpeciesConfig(f"s{i}", path), exclude=exclusions))
    check_exclusions(bed, exclusions, parts)
    assert [[(s.contig, s.start, s.end) for s in one.train] for one in parts] == [
        [("c0", 0, 10), ("c0", 20, 30)], [("c0", 0, 10), ("c0", 20, 50)]
    ]  # fmt: skip
    assert warnings_of(caplog, "unknown_contig") == [f"{bed}: no species has a contig z; it excludes nothing"]
    with pytest.raises(DataError, match=r"no species has any of its contigs \(the first: chrc0\)") as caught:
        check_exclusions(bed, {"chrc0": [(1, 2)]}, parts)
    assert caught.value.exit_code == 3
