"""Generation: draws, beams, the promise that every log-probability is the model's, and rows F1 to F15.

toy models with known answers -> designs; wrong numbers -> UsageError before anything is computed
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import markov_log_prob, markov_model, random_model, uniform_model

from hybridna_core import search as module
from hybridna_core.commands.generate import generate, generate_sequences
from hybridna_core.errors import DataError, GuardError, UsageError
from hybridna_core.metrics import pairwise_distances
from hybridna_core.model.likelihood import read
from hybridna_core.model.state import bytes_per_row
from hybridna_core.search import choose, uniforms
from hybridna_core.tokenizer import LabelPosition, encode

TABLE = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1], [0.05, 0.15, 0.5, 0.3]])
START = np.array([0.4, 0.3, 0.2, 0.1])
LABELS = (LabelPosition("HepG2", 4), LabelPosition("K562", 4), LabelPosition("SK-N-SH", 4))


@pytest.fixture(scope="module")
def model():
    return random_model(3)


@pytest.fixture(scope="module")
def markov():
    return markov_model(TABLE, START)


def plain_log_prob(model, sequence, head=(2,)):
    """Log-probability of a sequence after the given tokens, in one pass of its own."""
    tokens = torch.tensor([[*head, *encode(sequence).tolist()]])
    return float(read(model, tokens)[0][0, len(head) :].sum())


def refused(kind=UsageError, code=2, **options):
    model = options.pop("model", None) or random_model(3)
    with pytest.raises(kind) as caught:
        generate_sequences(model, **options)
    assert caught.value.exit_code == code
    return str(caught.value)


# --- Sampling --------------------------------------------------------------------------------------------------------


def test_log_prob_is_the_models_own(model, markov):
    for design in generate_sequences(model, n=3, length=40, seed=5):
        assert design.log_prob == pytest.approx(plain_log_prob(model, design.sequence), abs=1e-9)
        assert len(design.sequence) == 40 and set(design.sequence) <= set("ACGT")
    for design in generate_sequences(markov, n=3, length=40, temperature=0.5):
        assert design.log_prob == pytest.approx(markov_log_prob(TABLE, design.sequence, START), abs=1e-5)
        assert design.gc == pytest.approx(sum(design.sequence.count(b) for b in "GC") / 40)


def test_results_do_not_depend_on_n_or_run(model):
    many = generate_sequences(model, n=20, length=30, seed=7)
    assert generate_sequences(model, n=3, length=30, seed=7) == many[:3]
    assert generate_sequences(model, n=17, length=30, seed=7) == many[:17]
    assert len({design.sequence for design in many}) == 20
    assert generate_sequences(model, n=3, length=30, seed=8) != many[:3]


def test_a_longer_run_begins_as_a_shorter_one(model):
    short = generate_sequences(model, n=4, length=10, seed=1)
    long = generate_sequences(model, n=4, length=25, seed=1)
    assert [d.sequence for d in short] == [d.sequence[:10] for d in long]


def test_frequencies_are_those_of_the_model(markov):
    sequences = [d.sequence for d in generate_sequences(markov, n=160, length=60, seed=2)]
    counts = np.zeros((4, 4))
    for a, b in itertools.chain.from_iterable(map(itertools.pairwise, sequences)):
        counts["ACGT".index(a), "ACGT".index(b)] += 1
    shares = counts / counts.sum(axis=1, keepdims=True)
    # Four standard errors of a share.
    error = np.sqrt(TABLE * (1 - TABLE) / counts.sum(axis=1, keepdims=True))
    assert (abs(shares - TABLE) < 4 * error).all()


def test_uniforms_are_counted():
    assert (uniforms(3, 5, 7) == uniforms(3, 5, 20)[:7]).all()
    assert len({float(uniforms(seed, i, 1)[0]) for seed in (0, 1, 2**64 - 1) for i in range(5)}) == 15
    draws = uniforms(0, 0, 10_000)
    assert draws.min() >= 0 and draws.max() < 1 and abs(draws.mean() - 0.5) < 0.012


@given(
    st.lists(st.floats(0.001, 1), min_size=4, max_size=4), st.floats(0, 1, exclude_max=True),
    st.none() | st.floats(0.1, 5), st.none() | st.integers(1, 4), st.none() | st.floats(0.01, 1),
)  # fmt: skip
@settings(deadline=None)
def test_choose_against_a_plain_definition(weights, draw, temperature, top_k, top_p):
    p = np.array(weights) / sum(weights)
    scaled = p ** (1 / (temperature or 1))
    scaled /= scaled.sum()
    kept, reached = [], 0.0
    for i in sorted(range(4), key=lambda i: (-scaled[i], i)):
        if len(kept) < (top_k or 4) and (top_p is None or reached < top_p - 1e-12):
            kept.append(i)
        reached += scaled[i]
    chosen = choose(np.log(p)[None], np.array([draw]), temperature, top_k, top_p)[0]
    total = sum(scaled[i] for i in kept)
    below = sum(scaled[i] for i in kept if i < chosen) / total
    above = sum(scaled[i] for i in kept if i <= chosen) / total
    # A nucleus whose sum meets top_p within rounding may keep one base more.
    close = top_p is not None and any(abs(s - top_p) < 1e-9 for s in np.cumsum(np.sort(scaled)[::-1]))
    assert close or (chosen in kept and below - 1e-9 <= draw <= above + 1e-9)


def test_top_k_one_is_greedy(model):
    greedy = generate_sequences(model, n=1, length=30, num_beams=1)[0]
    assert {d.sequence for d in generate_sequences(model, n=5, length=30, top_k=1)} == {greedy.sequence}
    assert generate_sequences(model, n=1, length=30, temperature=1e-9)[0].sequence == greedy.sequence


# --- Beams -----------------------------------------------------------------------------------------------------------


def test_one_beam_takes_the_likeliest_base_at_each_step(model):
    sequence = ""
    for _ in range(25):
        tokens = torch.tensor([[2, *encode(sequence).tolist()]])
        following = read(model, tokens)[1].next_log_probs()[0]
        sequence += "ACGT"[int(following.argmax())]
    assert generate_sequences(model, length=25, num_beams=1)[0].sequence == sequence


@pytest.mark.parametrize("prompt", ["", "GATTACA"])
def test_a_wide_beam_enumerates_everything(model, prompt):
    every = ["".join(bases) for bases in itertools.product("ACGT", repeat=5)]
    tokens = torch.tensor([[2, *encode(prompt + s).tolist()] for s in every])
    sums = read(model, tokens)[0][:, 1 + len(prompt) :].sum(dim=1).tolist()
    exact = sorted(zip(sums, every, strict=True), reverse=True)
    found = generate_sequences(model, prompt=prompt, n=4**5, length=5, num_beams=4**5)
    assert sorted(d.sequence[len(prompt) :] for d in found) == every
    assert [d.log_prob for d in found] == pytest.approx([p for p, _ in exact], abs=1e-5)
    assert found[0].sequence == prompt + exact[0][1]


def test_the_best_beams_of_a_markov_model_by_hand():
    # Whatever came before, G follows with probability 0.6.
    table = np.tile([0.1, 0.2, 0.6, 0.1], (4, 1))
    found = generate_sequences(markov_model(table, START), n=3, length=2, num_beams=16)
    assert [d.sequence for d in found] == ["AG", "CG", "GG"]
    assert [d.log_prob for d in found] == pytest.approx([math.log(s * 0.6) for s in START[:3]], abs=1e-5)


def test_f13_ties_go_to_the_earlier_parent_then_base():
    found = generate_sequences(uniform_model(), n=6, length=3, num_beams=6)
    assert [d.sequence for d in found] == ["AAA", "AAC", "AAG", "AAT", "ACA", "ACC"]
    assert all(d.log_prob == pytest.approx(3 * math.log(1 / 4)) for d in found)


# --- Labels and prompts ----------------------------------------------------------------------------------------------


def test_order_is_start_token_label_bases():
    model = random_model(4, labels=LABELS)
    design = generate_sequences(model, label="302", prompt="acg", n=1, length=12)[0]
    assert design.sequence.startswith("ACG") and len(design.sequence) == 15
    assert (design.label, design.prompt_bases) == ("302", 3)
    head = (2, 15, 16, 22, 7, 8, 9)
    assert design.log_prob == pytest.approx(plain_log_prob(model, design.sequence[3:], head), abs=1e-9)
    other = generate_sequences(model, label="003", prompt="acg", n=1, length=12)[0]
    assert other.log_prob != design.log_prob


def test_unknown_label_lists_what_the_model_knows(model):
    assert "this model knows no labels; give --prompt with bases" in refused(label="300")
    assert "labels are 3 digits (HepG2 0-3" in refused(model=random_model(0, labels=LABELS), label="304")


def test_f1_empty_prompt_needs_a_start_token():
    model = random_model(3, bos_token_id=None)
    assert "--prompt: is empty, but this model has no start token" in refused(model=model)
    design = generate_sequences(model, prompt="AC", n=1, length=5)[0]
    tokens = torch.from_numpy(encode(design.sequence).astype(np.int64))[None]
    assert design.log_prob == pytest.approx(float(read(model, tokens)[0][0, 2:].sum()), abs=1e-9)


@pytest.mark.parametrize("prompt, words", [
    ("ACGN", "--prompt: letter 'N' at position 4 is not A, C, G or T"), ("AUG", "letter 'U' at position 2"),
    ("A C", "letter ' ' at position 2"),
])  # fmt: skip
def test_f2_prompt_letters(prompt, words):
    assert words in refused(prompt=prompt)


def test_f2_lower_case_is_accepted(model):
    assert generate_sequences(model, prompt="acgt", n=2, length=9) == generate_sequences(
        model, prompt="ACGT", n=2, length=9
    )


def test_f15_prompts_of_other_lengths_do_not_matter(model, tmp_path):
    fasta = tmp_path / "prompts.fa"
    fasta.write_text(">one\nACG\n>two\nGGGATTTACCCA\n>three\nT\n")
    out = tmp_path / "out.fa"
    generate(str(out), model=model, prompts=str(fasta), num_sequences=2, length=20, seed=9)
    records = dict(r.split("\n", 1) for r in out.read_text().lstrip(">").split("\n>"))
    for name, prompt in (("one", "ACG"), ("two", "GGGATTTACCCA"), ("three", "T")):
        alone = generate_sequences(model, prompt=prompt, n=2, length=20, seed=9)
        assert [records[k].strip() for k in records if k.startswith(f"{name}_")] == [d.sequence for d in alone]


def test_f14_a_bad_prompt_is_marked_and_the_others_stay(model, tmp_path):
    good, mixed = tmp_path / "good.fa", tmp_path / "mixed.fa"
    good.write_text(">one\nACG\n>two\nGG\n")
    mixed.write_text(">one\nACG\n>bad\nACNNG\n>long\n" + "A" * 4090 + "\n>two\nGG\n")
    options = {"model": model, "num_sequences": 1, "length": 20}
    generate(str(tmp_path / "a.fa"), prompts=str(good), **options)
    summary = generate(str(tmp_path / "b.fa"), prompts=str(mixed), **options)
    assert summary.marked == {"bad_prompt": 1, "too_long": 1} and summary.sequences == 2
    records = (tmp_path / "b.fa").read_text().split(">")
    assert [r.split()[0:2] for r in records[2:4]] == [["bad", "status=bad_prompt"], ["long", "status=too_long"]]
    assert "".join(">" + r for r in (records[1], records[4])) == (tmp_path / "a.fa").read_text()


def test_f14_no_good_prompt_at_all(model, tmp_path):
    fasta = tmp_path / "bad.fa"
    fasta.write_text(">one\nNNN\n")
    with pytest.raises(DataError, match="none of 1 prompts can be used \\(bad_prompt\\)"):
        generate(str(tmp_path / "out.fa"), model=model, prompts=str(fasta))
    assert not (tmp_path / "out.fa").exists()


# --- Numbers out of range --------------------------------------------------------------------------------------------


def test_f3_prompt_and_length_over_the_context():
    message = refused(prompt="ACGT", length=4092)
    assert message == "--length: 4,092 bases after 5 tokens are more than the model reads at once; at most 4,091 here"
    assert len(generate_sequences(random_model(3, max_position_embeddings=20), prompt="ACGT", n=1, length=15)) == 1


@pytest.mark.parametrize("options, words", [
    ({"length": 0}, "--length: is 0, must be at least 1"),
    ({"length": -5}, "--length: is -5"),
    ({"length": 2 * 10**9}, "at most 1,000,000,000 bases are generated; the tokens alone would take 14.9 GiB"),
    ({"num_beams": 0}, "--num-beams: is 0, must be at least 1"),
    ({"num_beams": -1}, "--num-beams: is -1"),
    ({"num_beams": 17, "length": 2}, "is 17, but only 16 sequences of 2 bases exist"),
    ({"temperature": 0}, "--temperature: is 0, must be above 0 and finite; --num-beams 1 takes the likeliest base"),
    ({"temperature": -1}, "--temperature: is -1"),
    ({"temperature": float("nan")}, "--temperature: is nan"),
    ({"temperature": float("inf")}, "--temperature: is inf"),
    ({"top_p": 0.0}, "--top-p: is 0.0, must be above 0 and at most 1"),
    ({"top_p": 1.5}, "--top-p: is 1.5"),
    ({"top_p": float("nan")}, "--top-p: is nan"),
    ({"top_k": 0}, "--top-k: is 0, must be at least 1"),
    ({"num_beams": 4, "temperature": 1.0}, "--temperature: is for sampling, but --num-beams asks for beam search"),
    ({"num_beams": 4, "top_k": 2}, "--top-k: is for sampling"),
    ({"num_beams": 4, "top_p": 0.5}, "--top-p: is for sampling"),
    ({"num_beams": 4, "n": 5}, "--num-sequences: is 5, but a search with 4 beams returns at most 4; --num-beams 5"),
    ({"n": 0}, "--num-sequences: is 0"),
    ({"seed": -1}, "--seed: is -1, must be 0 to 2^64 - 1"),
    ({"seed": 2**64}, "must be 0 to 2^64 - 1"),
])  # fmt: skip
def test_f4_f5_f7_f8_f9_f10_numbers(options, words):
    assert words in refused(**options)


def test_f6_beams_over_memory_are_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 10 * 2**20)
    message = refused(num_beams=1000, length=100)
    assert message.startswith("--num-beams: 1,000 sequences of 100 bases need about ")
    fits = int(message.rsplit("enough for ", 1)[1].split(" beams")[0].replace(",", ""))
    assert 0 < fits < 1000
    assert generate_sequences(random_model(3), num_beams=fits, n=1, length=100)
    assert "enough for" in refused(num_beams=fits + 1, length=100)


def test_f6_the_estimate_covers_the_state(model):
    per_row = bytes_per_row(model.config, 100)
    _, reading = read(model, torch.full((3, 100), 7))
    assert reading.state.nbytes == 3 * per_row


def test_defaults_for_the_number_of_sequences(model):
    assert len(generate_sequences(model, length=3)) == 10
    assert len(generate_sequences(model, length=3, num_beams=4)) == 4
    assert len(generate_sequences(model, length=3, num_beams=40)) == 10


def test_f12_not_finite_predictions_stop_the_run():
    model = random_model(3)
    # Only a step that has read a T is spoilt.
    model.model.embed_tokens.weight[10] = float("nan")
    message = refused(GuardError, 6, model=model, n=2, length=100)
    assert "the model's prediction is not finite" in message and message.startswith("step ") and "sequence" in message
    assert "step 2, beam 4: " in refused(GuardError, 6, model=model, num_beams=4, length=5)


def test_a_log_probability_that_does_not_hold_stops_the_run(model, monkeypatch):
    true = module.next_log_probs
    monkeypatch.setattr(module, "next_log_probs", lambda reading: true(reading) + 0.01)
    assert "while generating" in refused(GuardError, 6, model=model, n=1, length=20)


# --- The file --------------------------------------------------------------------------------------------------------


def test_fasta_out(model, tmp_path):
    out = tmp_path / "out.fa"
    ticks = []
    summary = generate(
        str(out), model=model, prompt="ACGT", num_sequences=2, length=90, temperature=0.8, top_k=3, seed=4,
        progress=lambda done, total: ticks.append((done, total)),
    )  # fmt: skip
    designs = generate_sequences(model, prompt="ACGT", n=2, length=90, temperature=0.8, top_k=3, seed=4)
    run = max(len(list(letters)) for _, letters in itertools.groupby(designs[0].sequence))
    distance = int(pairwise_distances([design.sequence for design in designs])[0])
    lines = out.read_text().splitlines()
    assert lines[0] == (
        f">design_1 status=ok log_prob={designs[0].log_prob:.4f} length=94 gc={designs[0].gc:.3f} "
        f"longest_homopolymer={run} forbidden_sites=0 nearest_design=design_2 design_distance={distance} "
        "prompt_bases=4 method=sample temperature=0.8 top_k=3 seed=4 model=toy:000000000000"
    )
    assert lines[1] + lines[2] == designs[0].sequence and len(lines[1]) == 80
    assert summary.to_dict().keys() == {
        "sequences", "marked", "bases", "mean_log_prob", "seconds", "output", "model"
    }  # fmt: skip
    assert (summary.sequences, summary.bases) == (2, 188)
    assert ticks[-1] == (90, 90) and len(ticks) == 90


def test_beam_output_says_how(model, tmp_path):
    out = tmp_path / "out.fa"
    generate(str(out), model=model, length=8, num_beams=4, num_sequences=1)
    assert " method=beam num_beams=4 model=toy:" in out.read_text() and "seed" not in out.read_text()


def test_nothing_at_the_name_when_it_fails(model, tmp_path):
    out = tmp_path / "out.fa"
    out.write_text("kept")
    with pytest.raises(UsageError, match="exists already"):
        generate(str(out), model=model)
    with pytest.raises(UsageError, match="knows no labels"):
        generate(str(out), model=model, label="300", force=True)
    with pytest.raises(UsageError, match="one of --prompt and --prompts"):
        generate(str(out), model=model, prompt="A", prompts="x.fa", force=True)
    assert out.read_text() == "kept" and list(tmp_path.iterdir()) == [out]
