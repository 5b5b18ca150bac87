"""Beams and draws within constraints, beams in slices and in groups, and what one search promises of its numbers.

toy models -> designs; every sequence enumerated, or options drawn around a witness, as the oracle
"""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from constrained import LETTERS, satisfies
from toys import markov_model, random_model

from hybridna_core import search as module
from hybridna_core.commands.generate import generate_sequences
from hybridna_core.config import preset
from hybridna_core.constraints import compile_constraints, parse_constraints
from hybridna_core.errors import UsageError
from hybridna_core.model.likelihood import Reading, read
from hybridna_core.search import Beams, Sampling, count_bytes, count_seconds, count_slice, draw_block, search_beams
from hybridna_core.tokenizer import decode, encode


@pytest.fixture(scope="module")
def model():
    return random_model(3)


@pytest.fixture(scope="module")
def thin():
    """One layer, so that hundreds of searches take seconds."""
    return random_model(5, layer_types=("mamba",))


def start(model, prompt=""):
    return read(model, torch.tensor([[2, *encode(prompt).tolist()]]))[1]


def score_all(model, sequences, prompt=""):
    """Return the log-probability of each sequence after a prompt, all in one plain pass."""
    tokens = torch.tensor([[2, *encode(prompt + sequence).tolist()] for sequence in sequences])
    return read(model, tokens)[0][:, 1 + len(prompt) :].sum(dim=1).numpy()


def options_around(rng, witness, prompt_bases):
    """Draw options that a sequence satisfies, whatever our own code thinks of it."""
    total, options = len(witness), {}
    while not options:
        if rng.random() < 0.6:
            share = sum(base in "GC" for base in witness) / total
            options["gc"] = f"{max(0, round(share - rng.choice((0.01, 0.1)), 2))}:{min(1, round(share + 0.1, 2))}"
        if rng.random() < 0.5:
            longest = max(len(list(run)) for _, run in itertools.groupby(witness))
            options["max_homopolymer"] = longest + rng.randint(0, 1)
        if rng.random() < 0.6:
            options["forbid"] = ",".join("".join(rng.choices(LETTERS, k=rng.randint(2, 6))) for _ in range(3))
        if rng.random() < 0.4:
            letters = {"A": "ARWN", "C": "CYSN", "G": "GKRN", "T": "TYBN"}
            options["template"] = "".join(rng.choice(letters[base]) for base in witness[prompt_bases:])
        if rng.random() < 0.5:
            at = rng.randint(0, total - 3)
            options["require"] = witness[at : at + 3] + rng.choice(("", f"@{at + 1}", f"@{at - total}"))
        if "forbid" in options and not satisfies(witness, 0, forbid=options["forbid"]):
            del options["forbid"]
    return options


def test_500_satisfiable_sets_are_satisfied(thin):
    rng, sequences = random.Random(3), 0
    for number in range(500):
        prompt = "".join(rng.choices("ACGT", k=rng.randint(0, 4)))
        witness = prompt + "".join(rng.choices("ACGT", k=rng.randint(4, 9)))
        options = options_around(rng, witness, len(prompt))
        assert satisfies(witness, len(prompt), **options)
        length = len(witness) - len(prompt)
        how = {"num_beams": None if number % 2 else 1, "n": 1, "seed": number}
        for design in generate_sequences(thin, prompt=prompt, length=length, **how, **options):
            assert satisfies(design.sequence, len(prompt), **options), (options, design.sequence)
            assert design.sequence.startswith(prompt) and len(design.sequence) == len(witness)
            if number % 10 == 0:
                plain = score_all(thin, [design.sequence[len(prompt) :]], prompt)[0]
                assert design.log_prob == pytest.approx(plain, abs=1e-6)
            sequences += 1
    assert sequences == 500


def test_one_beam_takes_the_likeliest_base_that_leaves_a_way_to_the_end(model):
    options = {"gc": "0.5:0.55", "forbid": "GG,AT", "max_homopolymer": 2}
    automaton = compile_constraints(parse_constraints(**options), "", 20)
    sequence, (state, count) = "", automaton.start
    for step in range(20):
        following = read(model, torch.tensor([[2, *encode(sequence).tolist()]]))[1].next_log_probs()[0].numpy()
        live = automaton.live(step, np.array([state]), np.array([count]))[0]
        best = max((base for base in range(4) if live[base]), key=lambda base: following[base])
        (state,), (count,) = automaton.move(np.array([state]), np.array([count]), np.array([best]))
        sequence += "ACGT"[best]
    found = generate_sequences(model, length=20, num_beams=1, **options)[0]
    assert found.sequence == sequence and satisfies(sequence, 0, **options)
    assert generate_sequences(model, length=20, num_beams=1)[0].sequence != sequence


def test_a_wide_beam_enumerates_all_that_satisfies(thin):
    options = {"gc": "0.3:0.5", "max_homopolymer": 2, "forbid": "TA,GRC", "require": "CA@-3"}
    every = ["".join(bases) for bases in itertools.product("ACGT", repeat=6)]
    good = [sequence for sequence in every if satisfies("AC" + sequence, 2, **options)]
    exact = sorted(zip(-score_all(thin, good, "AC"), good, strict=True))
    found = generate_sequences(thin, prompt="AC", length=6, n=len(good), num_beams=len(good), **options)
    assert len(good) > 40 and sorted(d.sequence[2:] for d in found) == good
    assert found[0].sequence == "AC" + exact[0][1]
    assert [design.log_prob for design in found] == pytest.approx([-score for score, _ in exact], abs=1e-5)


def test_f5_more_beams_than_satisfying_sequences(thin):
    with pytest.raises(UsageError) as caught:
        generate_sequences(thin, num_beams=5, template="ACGTNACGTA")
    words = "--num-beams: is 5, but only 4 sequences satisfy the constraints; --num-beams 4 finds them all"
    assert str(caught.value) == words
    assert len(generate_sequences(thin, num_beams=4, template="ACGTNACGTA")) == 4


def test_draws_within_constraints_take_the_models_chances_among_live_bases():
    table = np.tile([0.1, 0.2, 0.6, 0.1], (4, 1))
    model = markov_model(table, table[0], layer_types=("mamba",))
    designs = generate_sequences(model, n=320, template="HN", seed=4)
    share = np.array([sum(d.sequence[0] == base for d in designs) for base in "ACGT"]) / 320
    assert share[2] == 0 and abs(share[1] - 0.5) < 4 * math.sqrt(0.25 / 320)
    # The log-probability is the model's own, not that of the draw.
    for design in designs[:5]:
        own = [{"A": 0.1, "C": 0.2, "G": 0.6, "T": 0.1}[base] for base in design.sequence]
        assert design.log_prob == pytest.approx(sum(map(math.log, own)), abs=1e-5)


def test_sequence_i_depends_on_seed_and_i_alone_within_constraints_too(thin):
    options = {"gc": "0.4:0.6", "max_homopolymer": 3, "length": 20, "seed": 3}
    many = [d.sequence for d in generate_sequences(thin, n=20, **options)]
    assert [d.sequence for d in generate_sequences(thin, n=2, **options)] == many[:2]
    assert [d.sequence for d in generate_sequences(thin, n=17, **options)] == many[:17]


@pytest.mark.parametrize("prompt", ["", "GATTACA"])
def test_slices_change_nothing(model, prompt):
    whole = search_beams(model, start(model, prompt), 14, Beams(30))
    for rows in (7, 29):
        found = search_beams(model, start(model, prompt), 14, Beams(30), rows_at_once=rows)
        assert (found.ids == whole.ids).all()
        assert found.log_probs == pytest.approx(whole.log_probs, abs=1e-5)
    # The sums are those of a plain pass, so every state has followed its parent.
    plain = score_all(model, [decode(ids) for ids in whole.ids], prompt)
    assert whole.log_probs == pytest.approx(plain, abs=1e-4)


def test_gathered_rows_are_those_selected(model):
    a, b = (read(model, torch.randint(7, 11, (rows, 9)))[1] for rows in (3, 4))
    joined = Reading.gather([(a, torch.tensor([2, 0])), (b, torch.tensor([1, 1, 3]))])
    assert (joined.logits == torch.cat([a.logits[[2, 0]], b.logits[[1, 1, 3]]])).all()
    tokens = torch.randint(7, 11, (5, 3))
    found = read(model, tokens, joined)[0]
    apart = [read(model, tokens[:2], a.select(torch.tensor([2, 0])))[0]]
    apart.append(read(model, tokens[2:], b.select(torch.tensor([1, 1, 3])))[0])
    assert torch.allclose(found, torch.cat(apart), atol=1e-5)


def test_groups_without_a_penalty_find_the_same(thin):
    alone = search_beams(thin, start(thin), 12, Beams(4))
    # Three groups that find the same four: each sequence is given once.
    found = search_beams(thin, start(thin), 12, Beams(12, 3, 0.0))
    assert (found.ids == alone.ids).all() and (found.log_probs == alone.log_probs).all()


def diverse(model, length, groups, penalty):
    """Groups of one beam each, step by step and from the start each time."""
    chosen = [""] * groups
    for step in range(length):
        for number in range(groups):
            following = read(model, torch.tensor([[2, *encode(chosen[number]).tolist()]]))[1].next_log_probs()[0]
            taken = [earlier[step] for earlier in chosen[:number]]
            scores = [float(following[base]) - penalty * taken.count("ACGT"[base]) for base in range(4)]
            chosen[number] += "ACGT"[int(np.argmax(scores))]
    return chosen


def test_groups_of_one_beam_against_the_definition(thin):
    found = search_beams(thin, start(thin), 10, Beams(4, 4, 0.7))
    expected = list(dict.fromkeys(diverse(thin, 10, 4, 0.7)))
    assert len(expected) > 1 and [decode(ids) for ids in found.ids] == expected
    # The log-probability is the model's own: penalties only choose.
    assert found.log_probs == pytest.approx(score_all(thin, expected), abs=1e-5)


def test_groups_spread_the_beams(thin):
    # Whatever came before, A has 0.4: the best beams differ in a base or two.
    model = markov_model(np.tile([0.4, 0.3, 0.2, 0.1], (4, 1)), layer_types=("mamba",))
    options = {"num_beams": 24, "n": 6, "length": 12}

    def spread(designs):
        pairs = itertools.combinations([d.sequence for d in designs], 2)
        return np.mean([sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairs])

    grouped = generate_sequences(model, beam_groups=6, diversity_penalty=2.0, **options)
    assert len(grouped) == 6 and spread(grouped) > 2 * spread(generate_sequences(model, **options))
    assert [d.log_prob for d in grouped] == sorted((d.log_prob for d in grouped), reverse=True)
    for design in generate_sequences(thin, beam_groups=6, gc="0.4:0.6", forbid="TA", **options):
        assert satisfies(design.sequence, 0, gc="0.4:0.6", forbid="TA")


@pytest.mark.parametrize("options, words", [
    ({"beam_groups": 2}, "--beam-groups: is for beam search; give --num-beams"),
    ({"diversity_penalty": 1.0}, "--diversity-penalty: is for beam search; give --num-beams"),
    ({"diversity_penalty": 1.0, "num_beams": 4}, "--diversity-penalty: is between groups of beams; give --beam-groups"),
    ({"beam_groups": 3, "num_beams": 4}, "--beam-groups: is 3, must divide the 4 beams"),
    ({"beam_groups": 0, "num_beams": 4}, "--beam-groups: is 0, must divide the 4 beams"),
    *[({"beam_groups": 2, "num_beams": 4, "diversity_penalty": value}, f"--diversity-penalty: is {value}, must be 0")
      for value in (float("nan"), float("inf"), -1.0)],
])  # fmt: skip
def test_f16_groups_and_penalties(thin, options, words):
    with pytest.raises(UsageError) as caught:
        generate_sequences(thin, **options)
    assert str(caught.value).startswith(words) and caught.value.exit_code == 2


def test_as_many_beams_at_once_as_memory_allows(model, monkeypatch):
    beams, at = Beams(1000), (model.config, torch.device("cuda"), torch.float32, 5, 100)
    per_row = module.bytes_per_row(model.config, 105)
    monkeypatch.setattr(module, "free_bytes", lambda device: None)
    assert count_slice(*at, beams) == 1000
    monkeypatch.setattr(module, "free_bytes", lambda device: 3000 * per_row)
    assert count_slice(*at, beams) == 1000
    monkeypatch.setattr(module, "free_bytes", lambda device: 2000 * per_row)
    assert count_slice(*at, beams) == 64 and count_slice(*at, Beams(3)) == 3
    each, fixed = count_bytes(*at, beams)
    assert 1.1 * per_row < each < 1.5 * per_row and fixed == 256 * per_row


def test_slices_on_a_cpu_stay_within_what_the_allocator_keeps(model, monkeypatch):
    wide = preset("tiny")
    layer = 4 * wide.mamba_n_heads * wide.mamba_d_head * wide.mamba_d_state
    monkeypatch.setattr(module, "free_bytes", lambda device: None)
    found = count_slice(wide, "cpu", torch.float32, 5, 100, Beams(2500))
    assert 2500 > found > 64 and found * layer <= 16 * 2**20 < (found + 1) * layer
    assert count_slice(wide, "cpu", torch.float32, 5, 100, Beams(7)) == 7
    assert count_slice(preset("7b"), "cpu", torch.float32, 5, 100, Beams(2500)) == 64
    per_row = module.bytes_per_row(wide, 105)
    monkeypatch.setattr(module, "free_bytes", lambda device: 3000 * per_row)
    assert count_slice(wide, "cpu", torch.float32, 5, 100, Beams(2500)) == 64


def test_draws_do_not_depend_on_the_automaton_of_another_prompt(thin):
    free = compile_constraints(parse_constraints(gc="0:1"), "", 9)
    block = draw_block(thin, start(thin), 9, 0, Sampling(seed=1), free)
    assert (block.ids == draw_block(thin, start(thin), 9, 0, Sampling(seed=1)).ids).all()


def test_time_is_estimated(model):
    assert 0 < count_seconds(model.config, "cpu", torch.float32, 4, 10, 20) < 60
