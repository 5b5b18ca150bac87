"""The report-only search: what it tries, what it measures, what it concludes.

toy models with known answers -> settings -> nats per base worked out by hand -> verdict
"""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from toys import markov_model, random_model, uniform_model

from hybridna_core.config import PRESETS
from hybridna_core.hf_check import (
    BEFORE,
    LETTERS,
    UNIFORM,
    Probe,
    Setting,
    compare_published,
    default_setting,
    factors,
    judge,
    list_passes,
    measure,
    read_probes,
    rebind,
    search,
)
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.model.likelihood import read
from hybridna_core.tokenizer import BOS, encode

TABLE = np.array([[0.05, 0.8, 0.1, 0.05], [0.1, 0.05, 0.8, 0.05], [0.05, 0.1, 0.05, 0.8], [0.7, 0.1, 0.1, 0.1]])


def draw_probe(seed, length=120, published=None):
    """Draw a sequence from TABLE."""
    generator = np.random.default_rng(seed)
    letters = [0]
    while len(letters) < length:
        letters.append(int(generator.choice(4, p=TABLE[letters[-1]])))
    return Probe(f"p{seed}", "toy", "none", "".join("ACGT"[i] for i in letters), published or {})


PROBES = [draw_probe(i) for i in range(3)]


def expected_nats(letters="ACGT", offset=1, skip=3):
    """Work out by hand what TABLE's model gives per base in a setting, from base `skip` on."""
    terms = []
    for probe in PROBES:
        ids = [letters.index(c) for c in probe.sequence]
        terms += [-math.log(TABLE[ids[t - offset]][ids[t]]) for t in range(skip, len(ids))]
    return sum(terms) / len(terms)


@pytest.fixture(scope="module")
def markov():
    return markov_model(TABLE, mamba_n_heads=4, mamba_d_head=16, bos_token_id=None)


class TestProbes:
    def test_eight_by_default_and_all_on_request(self):
        few, every = read_probes(), read_probes(every=True)
        assert len(few) == 8
        assert len(every) == 112
        assert every[:8] == few
        assert len({p.element for p in few}) == 8
        assert all(set(p.sequence) <= set("ACGT") and 156 <= len(p.sequence) <= 1024 for p in every)
        assert all(set(p.published) == {"300M", "3B", "7B"} for p in every)

    def test_they_are_the_published_ones(self, shared_data):
        path = shared_data / "official" / "hybridna_published_likelihoods.tsv"
        with open(path, newline="") as handle:
            rows = {row["probe_id"]: row for row in csv.DictReader(handle, delimiter="\t")}
        assert len(rows) == 112
        for probe in read_probes(every=True):
            row = rows[probe.name]
            assert probe.sequence == row["sequence"]
            assert probe.published == {size: float(row[f"sum_log_p_{size}"]) for size in ("300M", "3B", "7B")}


class TestSettings:
    def test_factors_are_those_the_shapes_allow(self):
        found = factors(PRESETS["300m"])
        assert found["n_groups"] == [1, 2, 4, 8, 16, 32]
        assert found["attention_heads"] == [32, 4, 8, 16, 64, 128]
        assert len(found["letters"]) == len(set(found["letters"])) == 24
        assert found["before"] == ["none", "[CLS]", "[BOS]", "[SEP]"]
        assert sorted(found["offset"]) == [0, 1, 2, 3]

    def test_one_factor_at_a_time(self):
        passes = list_passes(PRESETS["tiny"])
        own = default_setting(PRESETS["tiny"])
        assert passes[0] == own == Setting(1, 4, "ACGT", "none", 1)
        assert all(len(p.differences(own)) == 1 for p in passes[1:])
        assert len(passes) == len(set(passes)) == 1 + 2 + 2 + 23 + 3

    def test_the_whole_product(self):
        found = factors(PRESETS["tiny"])
        passes = list_passes(PRESETS["tiny"], exhaustive=True)
        assert len(passes) == len(set(passes)) == len(found["n_groups"]) * len(found["attention_heads"]) * 24 * 4
        assert passes[0] == default_setting(PRESETS["tiny"])

    def test_without_attention_there_are_no_head_layouts(self):
        config = dataclasses.replace(PRESETS["tiny"], layer_types=("mamba",) * 2)
        assert factors(config)["attention_heads"] == [4]

    @pytest.mark.parametrize("setting", [Setting(2, 4), Setting(1, 2), Setting(4, 2)])
    def test_rebinding_shares_weights_and_equals_a_fresh_model(self, setting):
        model = random_model(mamba_n_heads=4, mamba_d_head=16)
        other = rebind(model, setting)
        assert (other.config.mamba_n_groups, other.config.num_attention_heads) == setting[:2]
        assert other.config.mamba_n_groups * other.config.mamba_d_state == 8
        for name, tensor in model.state_dict().items():
            assert other.state_dict()[name].data_ptr() == tensor.data_ptr(), name
        fresh = HybridLM(other.config).requires_grad_(False)
        fresh.load_state_dict(model.state_dict())
        tokens = torch.randint(7, 11, (1, 60))
        assert torch.equal(other(tokens)[0], fresh(tokens)[0])
        assert not torch.equal(other(tokens)[0], model(tokens)[0])
        assert (model.config.mamba_n_groups, model.config.num_attention_heads) == (1, 4)

    def test_the_own_setting_needs_no_second_model(self):
        model = random_model()
        assert rebind(model, default_setting(model.config)) is model


class TestMeasure:
    def test_a_markov_model_gives_the_hand_worked_numbers(self, markov):
        own = default_setting(markov.config)
        for letters in ("ACGT", "TGCA", "CGTA"):
            outcomes = measure(markov, PROBES, own._replace(letters=letters), offsets=(1, 2, 3))
            for outcome in outcomes:
                due = expected_nats(letters, outcome.setting.offset)
                assert outcome.nats == pytest.approx(due, abs=1e-5), outcome.setting

    def test_totals_are_those_of_the_public_reading(self):
        model = random_model()
        outcome = measure(model, PROBES, default_setting(model.config))[0]
        for probe in PROBES:
            tokens = torch.tensor(encode(probe.sequence).astype(np.int64))[None]
            due, _ = read(model, tokens, renormalize=False)
            assert outcome.totals[probe.name] == pytest.approx(float(due[0, 1:].sum()), abs=1e-4)
        tokens = torch.tensor(encode(PROBES[0].sequence).astype(np.int64))[None]
        alone = measure(model, PROBES[:1], default_setting(model.config))[0]
        assert alone.nats == pytest.approx(-float(read(model, tokens)[0][0, 3:].mean()), abs=1e-6)
        plain = read(model, tokens, renormalize=False)[0][0, 3:]
        assert alone.nats_vocabulary == pytest.approx(-float(plain.mean()), abs=1e-6)

    @pytest.mark.parametrize("before", [b for b in BEFORE if b != "none"])
    def test_a_token_before_is_read_and_not_counted(self, before):
        model = random_model()
        setting = default_setting(model.config)._replace(before=before)
        outcome = measure(model, PROBES[:1], setting)[0]
        tokens = torch.tensor([BEFORE[before], *encode(PROBES[0].sequence)])[None]
        due = read(model, tokens)[0][0, 4:]
        assert outcome.nats == pytest.approx(-float(due.mean()), abs=1e-6)
        assert outcome.nats != measure(model, PROBES[:1], default_setting(model.config))[0].nats

    def test_every_offset_counts_the_same_bases(self):
        model = uniform_model()
        outcomes = measure(model, PROBES, default_setting(model.config), offsets=(0, 1, 2, 3))
        assert [o.setting.offset for o in outcomes] == [0, 1, 2, 3]
        for outcome in outcomes:
            assert outcome.nats == pytest.approx(UNIFORM, abs=1e-6)
            assert outcome.nats_vocabulary == pytest.approx(math.log(12), abs=1e-6)


def permute(model, letters):
    """Return a copy of a model in which ids 7 to 10 stand for other letters."""
    other = markov_model(TABLE, mamba_n_heads=4, mamba_d_head=16, bos_token_id=None)
    rows = [7 + "ACGT".index(c) for c in letters]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        other.state_dict()[name][7:11] = model.state_dict()[name][rows]
    return other


class TestVerdict:
    def test_a_sound_model_is_left_in_peace(self, markov):
        outcomes = search(markov, PROBES)
        verdict = judge(outcomes, PROBES)
        assert outcomes[0].setting == default_setting(markov.config)
        assert verdict.best.nats == pytest.approx(expected_nats(), abs=1e-5)
        assert verdict.better_than_uniform
        assert not verdict.suspicious
        text = "\n".join(verdict.lines())
        assert "published likelihoods: none for a model of this size" in text
        assert "better than a uniform guess (1.3863)" in text
        assert "no other setting tried does better" in text
        assert text.endswith("nothing was changed")

    @pytest.mark.parametrize("letters", ["TGCA", "CATG", "AGCT"])
    def test_permuted_letters_are_found(self, markov, letters):
        verdict = judge(search(permute(markov, letters), PROBES), PROBES)
        assert verdict.suspicious
        assert verdict.best.setting.letters == letters
        assert verdict.best.nats == pytest.approx(expected_nats(), abs=1e-5)
        assert verdict.default.nats > UNIFORM
        gain = verdict.default.nats - verdict.best.nats
        assert f"with letters {letters}, {gain:.4f} below, better than a uniform guess" in "\n".join(verdict.lines())

    def test_a_prediction_aimed_two_ahead_is_found(self):
        """The square of a table that turns the letters round aims two ahead."""
        cycle = np.full((4, 4), 0.02) + 0.92 * np.roll(np.eye(4), 1, axis=1)
        two = cycle @ cycle
        sequence = [0]
        generator = np.random.default_rng(0)
        while len(sequence) < 400:
            sequence.append(int(generator.choice(4, p=cycle[sequence[-1]])))
        probe = Probe("p", "toy", "none", "".join("ACGT"[i] for i in sequence), {})
        verdict = judge(search(markov_model(two), [probe]), [probe])
        assert verdict.best.setting.differences(verdict.default.setting) == ["offset 2"]

    def test_a_model_that_repeats_its_input_does_not_win(self):
        table = np.full((4, 4), 0.01) + 0.96 * np.eye(4)
        verdict = judge(search(markov_model(table), PROBES), PROBES)
        assert verdict.echo.nats == pytest.approx(-math.log(0.97), abs=1e-4)
        assert verdict.best.setting.offset != 0
        assert any("repeat their own input, which is no likelihood" in line for line in verdict.lines())

    def test_a_model_that_knows_nothing(self):
        verdict = judge(search(uniform_model(), PROBES), PROBES)
        assert not verdict.better_than_uniform
        assert not verdict.suspicious
        assert "no setting tried does better than a uniform guess" in list(verdict.lines())

    def published(self, outcome, shift=0.0):
        """Turn what a setting gives into published numbers, shifted by so many nats per base."""
        return [p._replace(published={"3B": outcome.totals[p.name] - shift * (len(p.sequence) - 1)}) for p in PROBES]

    def test_published_numbers_that_are_reproduced(self, markov):
        own = measure(markov, PROBES, default_setting(markov.config))[0]
        for shift, found in ((0.0, True), (0.001, True), (0.01, False)):
            probes = self.published(own, shift)
            assert compare_published(own, probes, "3B") == pytest.approx(shift, abs=1e-9)
            verdict = judge(search(markov, probes), probes, "3B")
            assert verdict.reproduced is found
            state = "reproduced" if found else "not reproduced"
            due = f"published likelihoods of HybriDNA-3B: {state} (largest difference {shift:.4f} nats per base)"
            assert due in list(verdict.lines())

    def test_published_numbers_that_another_setting_reproduces(self, markov):
        odd = default_setting(markov.config)._replace(letters="GATC")
        probes = self.published(measure(markov, PROBES, odd)[0])
        verdict = judge(search(markov, probes), probes, "3B")
        assert verdict.reproduced is False
        assert verdict.closest[1] == odd
        assert "they are reproduced with letters GATC" in list(verdict.lines())

    def test_machine_form(self, markov):
        outcomes = search(markov, PROBES)
        table = json.loads(json.dumps(judge(outcomes, PROBES).to_dict()))
        assert table["best"]["letters"] == "ACGT"
        assert table["best_differs_in"] == []
        assert table["published_reproduced"] is None
        assert len({o.setting for o in outcomes}) == len(outcomes)

    def test_exhaustive_finds_two_faults_at_once(self, markov, monkeypatch):
        import hybridna_core.hf_check as module

        monkeypatch.setattr(module, "LETTERS", LETTERS[:3])
        probes = [PROBES[0]._replace(sequence=PROBES[0].sequence[:60])]
        outcomes = search(permute(markov, LETTERS[2]), probes, exhaustive=True)
        choices = factors(markov.config)
        due = len(choices["n_groups"]) * len(choices["attention_heads"]) * 3 * len(BEFORE) * 4
        assert len(outcomes) == len({o.setting for o in outcomes}) == due
        assert judge(outcomes, probes).best.setting.letters == LETTERS[2]

    def test_progress(self, markov):
        seen = []
        search(markov, PROBES[:1], progress=lambda done, total: seen.append((done, total)))
        total = len(list_passes(markov.config))
        assert seen == [(i + 1, total) for i in range(total)]


def test_bos_is_the_token_of_that_name():
    assert BEFORE["[BOS]"] == BOS
