"""The scoring engine: shared reading equals two full passes, depends on nothing but the variant, and reads less.

random variants of every kind -> Scorer -> per direction: both contigs as strings, each read whole
"""

import math
import random

import numpy as np
import pytest
import torch
from genome_files import put
from toys import random_model

from hybridna_core.data.genome import open_genome
from hybridna_core.data.variants import Allele, Piece, Variant
from hybridna_core.model.likelihood import read
from hybridna_core.scoring import Plan, ReferencePass, Scorer, lay_out
from hybridna_core.tokenizer import encode, reverse_complement

RANDOM = random.Random(11)
LONG = "".join(RANDOM.choices("ACGT", k=1500))
# A repeat, in which changes are found far from where they are spelt; two unknown bases; and a contig within one window.
CONTIGS = {
    "long": LONG[:700] + "CAG" * 12 + LONG[700:],
    "gaps": LONG[100:300] + "NN" + LONG[300:560],
    "short": LONG[:90],
}
FASTA = "".join(f">{name}\n{text}\n" for name, text in CONTIGS.items()).encode()
KINDS = ("snv", "mnv", "insertion", "deletion", "complex", "<DEL>", "<DUP>", "<INV>")
PLANS = [
    Plan(128, 64, 1), Plan(128, 64, 8), Plan(128, 16, 5), Plan(96, 90, 3), Plan(64, 64, 7), Plan(128, 16, 300),
    Plan(400, 100, 100), Plan(700, 30, 256),
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return random_model(4)


@pytest.fixture(scope="module")
def exact_model():
    return random_model(4).double()


@pytest.fixture
def genome(tmp_path):
    with open_genome(put(tmp_path, FASTA, "ref.fa")) as genome:
        yield genome


def draw(rng, contig, kind):
    """Return a random Variant of a kind, and the contig with it put in; near an end every third time."""
    text = CONTIGS[contig]
    length = {"snv": 1, "mnv": 3, "insertion": 1, "complex": 4}.get(kind, rng.choice([1, 6, 30]))
    start = rng.choice([rng.randrange(len(text) - length), rng.randrange(len(text) - length), rng.randrange(40)])
    if rng.random() < 0.15:
        start = len(text) - length - rng.randrange(5)
    end, stretch = start + length, Piece(start, start + length)
    before = text[start:end]
    if kind[0] == "<":
        pieces = {"<DEL>": (), "<DUP>": (stretch, stretch), "<INV>": (stretch._replace(reverse=True),)}[kind]
        put_in = {"<DEL>": "", "<DUP>": before * 2, "<INV>": reverse_complement(before)}[kind]
        return Variant(contig, start, end, pieces), text[:start] + put_in + text[end:]
    alt = {
        "snv": lambda: other(before), "mnv": lambda: "".join(map(other, before)), "deletion": lambda: "",
        "insertion": lambda: before + "".join(rng.choices("ACGT", k=rng.choice([1, 3, 12]))),
        "complex": lambda: other(before[0]) + "".join(rng.choices("ACGT", k=rng.randrange(9))),
    }[kind]()  # fmt: skip
    return Variant(contig, start, end, (Piece(0, len(alt), ids=encode(alt)),)), text[:start] + alt + text[end:]


def other(base):
    return "A" if base == "N" else "ACGT"["ACGT".index(base) - 1]


def two_passes(model, r, a, plan, is_reverse):
    """Score of one direction by the definition, each allele read from the start token to its end; None: none."""
    length = len(r)
    if is_reverse:
        r, a = reverse_complement(r), reverse_complement(a)
    change = next((i for i, (x, y) in enumerate(zip(r, a, strict=False)) if x != y), min(len(r), len(a)))
    earliest = change - (plan.window - plan.horizon)
    # The last multiple, on the contig, at or before the place that this direction starts from.
    start = (
        length - (length - earliest) // plan.stride * plan.stride
        if is_reverse
        else -(-earliest // plan.stride) * plan.stride
    )
    start = min(max(start, 0), change)
    count = min(plan.horizon, *(len(x) - change - x[change:].count("N") for x in (r, a)))
    values = []
    for text in (r, a):
        known = [i for i in range(change, len(text)) if text[i] != "N"][:count]
        if not known:
            return None
        tokens = np.concatenate([[model.config.bos_token_id], encode(text[start : known[-1] + 1])]).astype(np.int64)
        log_probs, _ = read(model, torch.from_numpy(tokens)[None])
        values.append(log_probs[0].numpy()[[i - start + 1 for i in known]])
    return float((values[1] - values[0]).sum())


def compare_ways(model, genome, plan, contigs):
    """Yield (score by the shared way, by two passes) of each direction of a variant of each kind."""
    rng, shared = random.Random(str(plan)), Scorer(model, genome, plan)
    for kind in KINDS:
        for contig in contigs:
            variant, changed = draw(rng, contig, kind)
            score = shared.score(Allele("ok", variant))
            if score.llr is None:
                assert score.status in ("no_change", "too_many_n"), variant
                continue
            for found, strand in ((score.forward, "+"), (score.reverse, "-")):
                due = two_passes(model, CONTIGS[contig], changed, plan, strand == "-")
                assert (found is None) == (due is None), variant
                if found is not None:
                    yield found, due


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_shared_reading_equals_two_full_passes(exact_model, genome, plan):
    """In float64, so that nothing but a fault in what is read can differ."""
    found, due = zip(*compare_ways(exact_model, genome, plan, ("long", "gaps", "short")), strict=True)
    assert found == pytest.approx(due, rel=1e-9, abs=1e-9) and len(found) > 30 and np.std(found) > 0.1


def test_rounding_in_float32(model, genome):
    found, due = zip(*compare_ways(model, genome, Plan(128, 64, 8), ("long", "short")), strict=True)
    assert found == pytest.approx(due, rel=1e-5, abs=1e-5) and len(found) > 20


@pytest.mark.parametrize("plan", [Plan(128, 64, 8), Plan(400, 100, 100)], ids=str)
def test_order_and_neighbours_leave_no_trace(model, genome, plan):
    rng = random.Random(3)
    variants = [Allele("ok", draw(rng, contig, kind)[0]) for kind in KINDS for contig in ("long", "short")]
    variants += [snv("long", pos, base) for pos in range(600, 604) for base in "ACGT" if base != CONTIGS["long"][pos]]
    scorer = Scorer(model, genome, plan)
    due = [scorer.score(allele) for allele in variants]
    order = list(range(len(variants)))
    rng.shuffle(order)
    shuffled = Scorer(model, genome, plan)
    assert {i: shuffled.score(variants[i]) for i in order} == dict(enumerate(due))
    assert [Scorer(model, genome, plan).score(variants[i]) for i in order[:5]] == [due[i] for i in order[:5]]


def snv(contig, start, base):
    return Allele("ok", Variant(contig, start, start + 1, (Piece(0, 1, ids=encode(base)),)))


def test_neighbours_share_what_is_read(model, genome):
    """By hand: 40 places in six blocks of a stride; each block reads the window and its start token once."""
    plan, places = Plan(128, 64, 8), range(800, 840)
    # 1 + 4 x 8 + 7 places; an alternative reads again up to 7 bases before it: 7, 0 to 7 four times, 0 to 6.
    due = 6 * (1 + 128) + 3 * (40 * 64 + 7 + 4 * 28 + 21)
    for strand in "+-":
        scorer = Scorer(None, genome, plan, model.config)
        kept = scorer._compare
        scorer._compare = lambda contig, c, kept=kept, strand=strand: kept(contig, c) if c.strand == strand else (0, 0)
        for start in places:
            for base in "ACGT".replace(CONTIGS["long"][start], ""):
                scorer.score(snv("long", start, base))
        assert scorer.tokens == due


def test_what_is_counted_without_a_model_is_what_is_read(model, genome):
    rng = random.Random(8)
    alleles = [Allele("ok", draw(rng, contig, kind)[0]) for kind in KINDS for contig in CONTIGS]
    for plan in PLANS[1::3]:
        counted, scored = Scorer(None, genome, plan, model.config), Scorer(model, genome, plan)
        for allele in alleles[::3]:
            assert counted.score(allele).status == scored.score(allele).status
        assert counted.tokens == scored.tokens > 0


def test_a_pass_is_read_in_the_same_pieces_whatever_is_asked(model, genome):
    """Lazily or at once, the same pieces; snapshots where changes can lie, none further."""
    plan = Plan(400, 100, 150)
    assert lay_out(plan, 1536) == (151, 300, 18, 64)
    assert lay_out(plan._replace(stride=1), 1536) == (300, 300, 8, 64)
    read_pieces = []

    def reading(ends, start):
        pieces = []
        scorer = Scorer(model, genome, plan)
        shared = ReferencePass(
            lambda tokens, before: pieces.append(len(tokens)) or scorer._read(tokens, before),
            genome, "long", "+", start, plan, scorer.opening,
        )  # fmt: skip
        for end in ends:
            shared.read_reference(0, end)
        read_pieces.append(pieces)
        return shared

    few, many = reading([400], 450), reading(range(1, 401), 450)
    assert read_pieces == [[152, *[18] * 8, 105]] * 2
    assert sorted(few.snapshots) == sorted(many.snapshots) == [0, *range(151, 301, 18)]
    assert np.array_equal(few.log_probs, many.log_probs)
    edge = reading([300], 0)
    assert read_pieces[-1] == [65, 64, 64, 64, 64] and sorted(edge.snapshots) == [0, 64, 128, 192, 256]


def test_keys_are_stored_once_per_pass(model, genome):
    plan = Plan(700, 100, 1)
    scorer = Scorer(model, genome, plan)
    shared = ReferencePass(scorer._read, genome, "long", "+", 0, plan, scorer.opening)
    shared.read_reference(0, 640)
    readings = [reading for offset, reading in shared.snapshots.items() if offset]
    assert len(readings) == 9
    attention = [layer for reading in readings for layer in reading.state.layers if hasattr(layer, "keys")]
    assert len({layer.shared_keys.untyped_storage().data_ptr() for layer in attention}) == 1
    assert len({layer.shared_values.untyped_storage().data_ptr() for layer in attention}) == 1
    assert {layer.keys.shape[1] for layer in attention} == {0}
    # The start token has a key, too.
    assert [layer.shared_keys.shape[1] for layer in attention] == [offset + 1 for offset in shared.snapshots if offset]


def test_numbers_are_nats_of_both_directions(model, genome):
    score = Scorer(model, genome, Plan(128, 64, 8)).score(snv("long", 600, other(CONTIGS["long"][600])))
    assert score.llr == math.fsum((score.forward, score.reverse)) / 2 != 0 and score.forward != score.reverse


def test_two_directions_at_once_give_the_same_scores(exact_model, genome):
    """With several threads the second variant on is read in two workers; in float64 nothing else can differ."""
    rng, plan = random.Random(3), Plan(64, 24, 8)
    variants = [draw(rng, contig, kind)[0] for kind in KINDS for contig in ("long", "gaps")]
    before = torch.get_num_threads()
    found = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            scorer = Scorer(exact_model, genome, plan)
            found[threads] = [scorer.score(Allele("ok", variant)) for variant in variants], scorer.tokens
            assert (scorer.halves is not None) == (threads == 2)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    (alone, read_alone), (halved, read_halved) = found[1], found[2]
    assert read_alone == read_halved and sum(score.llr is not None for score in alone) > 10
    for one, other in zip(alone, halved, strict=True):
        assert one.status == other.status and (one.llr is None) == (other.llr is None)
        if one.llr is not None:
            assert other[1:5] == pytest.approx(one[1:5], abs=1e-10)


def test_a_failure_in_one_direction_is_raised(exact_model, genome, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scorer = Scorer(exact_model, genome, Plan(64, 24, 8))
        rng = random.Random(4)
        scorer.score(Allele("ok", draw(rng, "long", "snv")[0]))
        monkeypatch.setattr("hybridna_core.scoring.read", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            for _ in range(20):
                scorer.score(Allele("ok", draw(rng, "long", "snv")[0]))
    finally:
        torch.set_num_threads(before)
