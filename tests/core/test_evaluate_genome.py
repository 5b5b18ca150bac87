"""Bits per base and the Markov baseline, on sequences whose answers can be worked out."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from hybridna_core.commands import evaluate_genome as evaluate
from hybridna_core.config import ModelConfig
from hybridna_core.data.markov import MarkovModel
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.tokenizer import encode, reverse_complement


def test_markov_probabilities_by_counting_words():
    text = "ACGTTACGNACCGTA"
    model = MarkovModel(2)
    model.add(encode(text))
    words = Counter()
    for strand in (text, reverse_complement(text)):
        for k in (1, 2, 3):
            words.update(w for i in range(len(strand) - k + 1) if "N" not in (w := strand[i : i + k]))

    def probability(context, base, strength):
        below = 0.25 if not context and base else None
        if below is None:
            below = probability(context[1:], base, strength)
        total = sum(words[context + b] for b in "ACGT")
        return (words[context + base] + strength * below) / (total + strength)

    found = model.log2_probs(encode("ACNGTA"), strength=3.0)
    for k in range(3):
        due = []
        for i, base in enumerate("ACNGTA"):
            context = "ACNGTA"[max(0, i - k) : i].split("N")[-1]
            due.append(math.nan if base == "N" else math.log2(probability(context, base, 3.0)))
        np.testing.assert_allclose(found[k], due, rtol=1e-12)


def test_windows_count_each_base_once():
    class Stretch:
        def __init__(self, n):
            self.ids = np.zeros(n, dtype=np.uint8)

    for window, lengths in itertools.product((1, 2, 9, 10, 11), ([100], [10], [11], [7, 23, 64], [1])):
        stretches = [Stretch(n) for n in lengths]
        seen = [np.zeros(n, dtype=int) for n in lengths]
        for which, start in evaluate.choose_windows(stretches, window):
            first, end = evaluate.counted(start, lengths[which], window)
            # Half a window at least is read before what is counted.
            assert start == 0 or first - start >= window // 2
            seen[which][first:end] += 1
        assert all((s == 1).all() for s in seen), (window, lengths)


def test_fewer_windows_are_spread_evenly():
    class Stretch:
        ids = np.zeros(1000, dtype=np.uint8)

    places = evaluate.choose_windows([Stretch], 10, max_bases=50)
    assert len(places) == 10
    assert {b - a for (_, a), (_, b) in itertools.pairwise(places)} <= {95, 100}


def test_a_uniform_model_needs_two_bits():
    config = ModelConfig(
        hidden_size=16, intermediate_size=16, layer_types=("mamba",), num_attention_heads=1, num_key_value_heads=1,
        mamba_n_heads=2, mamba_d_head=8, mamba_d_state=4, max_position_embeddings=64,
    )  # fmt: skip
    model = HybridLM(config).eval()
    model.lm_head.weight.data.zero_()
    bits = evaluate.model_bits(model, encode("ACGTN" * 10), 0, 20)
    assert np.isnan(bits).sum() == 4
    np.testing.assert_allclose(bits[~np.isnan(bits)], 2.0, rtol=1e-6)


@pytest.fixture
def run_file(tmp_path):
    random = np.random.default_rng(0)
    unit = "".join(random.choice(list("ACGT"), 7))
    (tmp_path / "g.fa").write_text(f">train\n{unit * 300}\n>held\n{unit * 60}\n")
    (tmp_path / "run.toml").write_text(
        '[model]\npreset = "tiny"\n[[stage]]\ncontext_length = 64\nsteps = 1\nbatch_tokens = 64\n'
        '[[species]]\nname = "unit"\nfasta = "g.fa"\nvalid = ["held"]\n'
    )
    return tmp_path / "run.toml"


def test_markov_models_learn_a_repeat_that_a_new_network_does_not(run_file):
    from hybridna_core.config import preset

    found = evaluate.evaluate_genome(run_file, model=HybridLM(preset("tiny")).eval(), window=50, max_order=8)
    (one,) = found.sets
    assert one.bases == 420
    assert one.markov[0] > 1.5 and one.best_markov[1] < 0.3
    assert one.model == pytest.approx(2.0, abs=0.2)
    assert one.compressor < 1.0 and one.adaptive < 0.5
    assert found.to_dict()["sets"][0]["best_markov_order"] == one.best_markov[0]
