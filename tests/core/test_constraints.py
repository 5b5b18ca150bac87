"""Constraints: how they are read, the automaton against brute force, and what cannot be met.

options drawn at random -> Constraints -> Automaton -> every prefix followed, against constrained.satisfies
"""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from constrained import LETTERS, satisfies

from hybridna_core.automaton import Automaton
from hybridna_core.constraints import (
    Required,
    Site,
    compile_constraints,
    count_sites,
    find_broken,
    longest_run,
    parse_constraints,
)
from hybridna_core.errors import UsageError


def random_options(rng, length, total):
    """Draw options at random, satisfiable or not."""
    options = {}
    if rng.random() < 0.5:
        low, high = sorted(rng.choice((0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1)) for _ in range(2))
        options["gc"] = f"{low}:{high}"
    if rng.random() < 0.5:
        options["max_homopolymer"] = rng.randint(1, 4)
    if rng.random() < 0.6:
        motifs = ("".join(rng.choices(LETTERS, k=rng.randint(2, 6))) for _ in range(rng.randint(1, 3)))
        options["forbid"] = ",".join(motifs)
    if rng.random() < 0.3:
        options["template"] = "".join(rng.choices("NNNNACGTRYSWB", k=length))
    if rng.random() < 0.5:
        motif = "".join(rng.choices(LETTERS, k=rng.randint(1, 3)))
        last = max(total - len(motif), 0)
        place = rng.randint(0, last)
        options["require"] = motif + rng.choice(("", f"@{place + 1}", f"@{place - total}"))
    return options


def follow(automaton, prompt):
    """Return every sequence that the automaton leads to, having checked that no prefix is a dead end."""
    prefixes = [(prompt, *automaton.start)]
    for step in range(automaton.length):
        states, counts = (np.array([prefix[i] for prefix in prefixes]) for i in (1, 2))
        live = automaton.live(step, states, counts)
        assert live.any(axis=1).all()
        following = []
        for base in range(4):
            after = automaton.move(states, counts, np.full(len(prefixes), base))
            zipped = zip(prefixes, live[:, base], *after, strict=True)
            following += [(p[0] + "ACGT"[base], s, c) for p, is_live, s, c in zipped if is_live]
        prefixes = following
    return [prefix[0] for prefix in prefixes]


def test_the_automaton_leads_to_all_that_satisfies_and_nothing_else():
    rng, outcomes = random.Random(1), {True: 0, False: 0}
    for _ in range(150):
        length, prompt = rng.randint(1, 4), "".join(rng.choices("ACGT", k=rng.randint(0, 3)))
        options = random_options(rng, length, length + len(prompt))
        constraints = parse_constraints(**options)
        if constraints is None:
            continue
        every = (prompt + "".join(bases) for bases in itertools.product("ACGT", repeat=length))
        good = [sequence for sequence in every if satisfies(sequence, len(prompt), **options)]
        outcomes[bool(good)] += 1
        if not good:
            with pytest.raises(UsageError):
                compile_constraints(constraints, prompt, length)
            continue
        automaton = compile_constraints(constraints, prompt, length)
        assert sorted(follow(automaton, prompt)) == good, (options, prompt)
        assert automaton.count(10**6) == len(good) and automaton.count(2) == min(2, len(good))
        assert all(find_broken(sequence, len(prompt), constraints) is None for sequence in good)
    assert min(outcomes.values()) > 30


def test_what_is_broken_is_found_on_sequences_drawn_freely():
    rng, broken = random.Random(2), 0
    for _ in range(500):
        options = random_options(rng, 9, 9)
        constraints = parse_constraints(**options)
        sequence = "".join(rng.choices("ACGT", k=9))
        if constraints is not None:
            option = find_broken(sequence, 0, constraints)
            broken += option is not None
            assert (option is None) == satisfies(sequence, 0, **options), (options, sequence)
    assert 100 < broken < 450


def test_layers_that_are_computed_again_are_those_kept():
    text = {"gc": "0.45:0.55", "max_homopolymer": 3, "forbid": "GAATTC,GGTCTC", "require": "TATA"}
    automaton = compile_constraints(parse_constraints(**text), "GG", 130)
    layer = automaton._kept[130]
    for step in range(129, -1, -1):
        layer = automaton._before(layer, step)
        assert (automaton._layer(step) == layer).all()
    # 131 possible numbers of G and C take three words.
    assert layer.shape[1] == 3 and automaton.is_satisfiable


def test_more_g_and_c_than_a_word_has_bits():
    free = compile_constraints(parse_constraints(gc="0:1"), "", 130)
    bits = np.unpackbits(free._layer(0)[0].view(np.uint8), bitorder="little")
    assert bits[:131].all() and not bits[131:].any()
    # All bases G or C: at each place A and T are barred.
    full = compile_constraints(parse_constraints(gc="1:1"), "", 130)
    assert (full.live(0, np.zeros(1, int), np.zeros(1, int)) == [[False, True, True, False]]).all()


def test_sites_that_span_prompt_and_generated_bases_count():
    automaton = compile_constraints(parse_constraints(forbid="EcoRI"), "ACGAATT", 1)
    assert follow(automaton, "ACGAATT") == ["ACGAATTA", "ACGAATTG", "ACGAATTT"]
    # GAGACC is BsaI's GGTCTC on the other strand.
    found = follow(compile_constraints(parse_constraints(forbid="BsaI"), "GAGA", 2), "GAGA")
    assert len(found) == 15 and "GAGACC" not in found
    assert follow(compile_constraints(parse_constraints(max_homopolymer=2), "AA", 1), "AA") == ["AAC", "AAG", "AAT"]


def test_what_is_asked_for_is_read():
    found = parse_constraints("0.4:0.6", 6, "gaattc,EcoRI", "nnntatawnnn", ["TATAWAW@-30,ccaat", "AUG@1"])
    assert found.gc == (Fraction(2, 5), Fraction(3, 5)) and found.max_homopolymer == 6
    assert found.forbid == (Site("GAATTC", "GAATTC"), Site("EcoRI", "GAATTC"))
    assert found.template == "NNNTATAWNNN"
    assert found.require == (Required("TATAWAW", -30), Required("CCAAT", None), Required("ATG", 1))
    assert found.to_fields() == {
        "gc_range": "0.4:0.6", "max_homopolymer": 6, "forbid": "GAATTC,EcoRI", "template": "NNNTATAWNNN",
        "require": "TATAWAW@-30,CCAAT,ATG@1",
    }  # fmt: skip
    assert parse_constraints() is None


def test_positions_count_from_either_end():
    assert Required("TATA", 1).start(50) == 0
    assert Required("TATAWAW", -30).start(50) == 20
    automaton = compile_constraints(parse_constraints(require="TA@-2,C@1"), "", 4)
    assert sorted(follow(automaton, "")) == ["CATA", "CCTA", "CGTA", "CTTA"]


@pytest.mark.parametrize("options, words", [
    ({"gc": "0.4"}, "--gc: is '0.4', must be two shares; such as 0.4:0.6"),
    ({"gc": "0.6:0.4"}, "--gc: is '0.6:0.4', must be 0 <= lowest <= highest <= 1"),
    ({"gc": "nan:1"}, "--gc: is 'nan:1'"), ({"gc": "-1:1"}, "--gc: is '-1:1'"), ({"gc": "1/0:1"}, "--gc: is '1/0:1'"),
    ({"max_homopolymer": 0}, "--max-homopolymer: is 0, must be at least 1"),
    ({"forbid": "GAXTC"}, "--forbid: 'GAXTC' is neither IUPAC letters nor an enzyme"),
    ({"forbid": "ecori"}, "'ecori' is neither IUPAC letters nor an enzyme; did you mean EcoRI?"),
    ({"forbid": "GAATTC,,A"}, "--forbid: a motif is empty"),
    ({"template": "NN1"}, "--template: letter '1' at position 3 of 'NN1' is no IUPAC letter"),
    ({"require": "TATA@0"}, "--require: 'TATA@0': the position is a whole number other than 0; 1 is the first base"),
    ({"require": "TATA@x"}, "--require: 'TATA@x'"), ({"require": "@3"}, "--require: a motif is empty"),
    ({"require": "A" * 1001}, "--require: a motif of 1,001 letters is over 1,000"),
])  # fmt: skip
def test_texts_that_mean_nothing(options, words):
    with pytest.raises(UsageError) as caught:
        parse_constraints(**options)
    assert str(caught.value).startswith(words) or words in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("options, prompt, words", [
    ({"template": "NNN"}, "", "--template: has 3 letters, but 20 bases are generated; --length 3"),
    ({"require": "TATA@18"}, "", "--require: TATA@18 does not fit into 20 bases; 4 letters may begin at 1 to 17, or"),
    ({"require": "TATA@-3"}, "", "--require: TATA@-3 does not fit into 20 bases"),
    ({"require": "N" * 25}, "", "does not fit into 20 bases"),
    ({"forbid": "A,C,G,T"}, "", "no sequence of 20 bases satisfies --forbid A and --forbid C; loosen one of them"),
    ({"gc": "0.51:0.54"}, "", "no sequence of 20 bases satisfies --gc 0.51:0.54"),
    ({"gc": "0.9:1", "max_homopolymer": 3, "require": "AAWAA", "forbid": "EcoRI"}, "",
     "no sequence of 20 bases satisfies --gc 0.9:1 and --require AAWAA; loosen one of them"),
    ({"max_homopolymer": 3}, "GAAAAC", "satisfies --max-homopolymer 3, which begins with the prompt GAAAAC"),
    ({"require": "CC@2"}, "GAAAAC", "no sequence of 26 bases satisfies --require CC@2, which begins with the prompt"),
    ({"forbid": "RNNNNNNNNNNNNNNNNNNNNY"}, "", "the constraints take too much memory together (over 100,000 states)"),
])  # fmt: skip
def test_f11_what_cannot_be_met(options, prompt, words):
    with pytest.raises(UsageError) as caught:
        compile_constraints(parse_constraints(**options), prompt, 20)
    assert words in str(caught.value) and caught.value.exit_code == 2


def test_layers_over_memory_are_refused():
    constraints = parse_constraints(gc="0.4:0.6", max_homopolymer=500, forbid="CYANNNNNNTCC")
    with pytest.raises(UsageError, match=r"too much memory together \([0-9,]+ states, [0-9.]+ GiB"):
        compile_constraints(constraints, "", 60_000)


def test_counts():
    assert count_sites("GAATTCGAATTC", parse_constraints(forbid="EcoRI").forbid) == 2
    assert count_sites("GGTCTCAGAGACC", parse_constraints(forbid="BsaI").forbid) == 2
    assert count_sites("AAAA", [Site("AA", "AA")]) == 3
    assert (longest_run("AACCCT"), longest_run("A"), longest_run("")) == (3, 1, 0)


def test_an_automaton_without_patterns_takes_everything():
    automaton = Automaton([], 0, [set("ACGT")] * 2, None)
    assert len(follow(automaton, "")) == 16 == automaton.count(100)
