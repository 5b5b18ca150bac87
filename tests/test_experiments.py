"""The experiments' runner: what it would train is what it says, a claim is judged rightly, finished runs are kept.

docs/experiments.toml -> models and run files; a tiny plan -> two variants, two seeds -> page, table, picture
"""

import csv
import importlib.util
import tomllib
from pathlib import Path

import numpy as np
import pytest

from hybridna_core.config import layer_pattern
from hybridna_core.model.hybrid import count_parameters
from hybridna_core.run_config import read_run

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("run_experiments", ROOT / "docs" / "run_experiments.py")
RUNNER = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(RUNNER)
PLAN = tomllib.loads((ROOT / "docs" / "experiments.toml").read_text())
MODELS = RUNNER.make_models(PLAN)

TINY = """
tokens = 128
seeds = [0, 1]
stretches = 2
stretch_bases = 41
[common]
layers = 2
context_length = 32
batch_tokens = 64
[common.model]
hidden_size = 16
intermediate_size = 16
num_attention_heads = 2
num_key_value_heads = 1
mamba_n_heads = 2
mamba_d_head = 8
mamba_d_state = 4
max_position_embeddings = 64
[run.optim]
lr = 1e-3
warmup_steps = 1
[[run.species]]
name = "ant"
fasta = "genomes/ant.fa"
valid = ["held"]
[[variant]]
name = "hybrid"
attention_every = 2
[[variant]]
name = "plain"
attention_every = 0
match = "hybrid"
[[experiment]]
title = "Hybrid or not"
source = "Fig. 0"
claim = "hybrids are better"
variants = ["hybrid", "plain"]
expects = "first"
"""


def test_models_are_what_the_plan_says():
    hybrid, pure, attention = (MODELS[name] for name in ("hybrid 7:1", "Mamba-2 alone", "attention alone"))
    assert hybrid.layer_types == layer_pattern(24) and hybrid.layer_types.count("attention") == 3
    assert set(pure.layer_types) == {"mamba"} and set(attention.layer_types) == {"attention"}
    for ratio in (1, 3, 5, 7):
        kinds = MODELS[f"hybrid {ratio}:1"].layer_types
        assert kinds.count("mamba") == ratio * kinds.count("attention")
    due = count_parameters(hybrid)
    for variant in PLAN["variant"]:
        if variant.get("match") == "hybrid 7:1":
            assert abs(count_parameters(MODELS[variant["name"]]) / due - 1) < 0.005
    sizes = [count_parameters(MODELS[name]) for name in ("small", "middle", "large")]
    assert sizes[0] * 2 < sizes[1] and sizes[1] * 2 < sizes[2]
    assert MODELS["context 1k"] == MODELS["context 8k"]


def test_match_is_the_nearest_there_is():
    config = MODELS["middle"]
    one_wider = 3 * config.hidden_size * config.num_hidden_layers
    found = RUNNER.match_size(config, count_parameters(config) + 7 * one_wider + 3)
    assert found.intermediate_size == config.intermediate_size + 7


@pytest.mark.parametrize("variant", PLAN["variant"], ids=lambda variant: variant["name"])
def test_run_files_hold_the_same_tokens(variant, tmp_path):
    config = MODELS[variant["name"]]
    text, stage = RUNNER.spell_run(PLAN, variant, config, 2, tmp_path)
    (tmp_path / "run.toml").write_text(text)
    run = read_run(tmp_path / "run.toml")
    assert run.model == config and run.seed == 2 and len(run.species) == len(PLAN["run"]["species"])
    (only,) = run.stage
    assert 0 <= PLAN["tokens"] - only.steps * only.batch_tokens < only.batch_tokens == stage["batch_tokens"]
    assert run.species[0].fasta == str(tmp_path / "bacteria/ecoli_k12_mg1655.fa.gz")


def test_experiments_name_variants_there_are():
    names = {variant["name"] for variant in PLAN["variant"]}
    assert all(set(one["variants"]) <= names for one in PLAN["experiment"])
    assert names == {name for one in PLAN["experiment"] for name in one["variants"]}


def test_differences_are_paired_over_seeds():
    # Differences 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, Student's t of two degrees 4.303.
    mean, width = RUNNER.compare({0: 1.9, 1: 1.8, 2: 1.7}, {0: 1.91, 1: 1.82, 2: 1.73})
    assert mean == pytest.approx(0.02) and width == pytest.approx(4.303 * 0.01 / 3**0.5)
    assert RUNNER.compare({0: 1.9}, {0: 1.8, 1: 1.7}) == (pytest.approx(-0.1), None)


@pytest.mark.parametrize(
    ("expects", "bits", "words"),
    [
        ("first", [[1.90, 1.91], [1.95, 1.96], [1.97, 1.98]], "Holds"),
        ("first", [[1.90, 1.91], [1.95, 1.96], [1.85, 1.86]], "Contradicted"),
        ("first", [[1.90, 1.91], [1.95, 1.96], [1.80, 1.99]], "Not decided"),
        ("first", [[1.90], [1.95], [1.97]], "Not decided"),
        ("first", [[1.90], [1.95], []], "Not run yet"),
        ("falling", [[1.97, 1.98], [1.95, 1.96], [1.90, 1.91]], "Holds"),
        ("falling", [[1.95, 1.96], [1.97, 1.98], [1.90, 1.91]], "Contradicted"),
    ],
)
def test_claims_are_judged(expects, bits, words):
    experiment = {"variants": ["a", "b", "c"], "expects": expects, "source": "s", "claim": "c"}
    table = {name: dict(enumerate(values)) for name, values in zip("abc", bits, strict=True)}
    assert RUNNER.judge(experiment, table).startswith(f"**{words}")


def test_every_variant_is_measured_on_the_same_bases(tmp_path, monkeypatch):
    """With a model that tells each base's own place, the bits of the second half come back, for any window."""
    ids = np.random.default_rng(0).integers(7, 11, 500).astype(np.uint8)
    (tmp_path / "g.fa").write_text(f">train\nACGT\n>held\n{''.join('ACGT'[i - 7] for i in ids)}\n")
    text = RUNNER.spell_run(tomllib.loads(TINY), {"name": "x", "attention_every": 0}, MODELS["small"], 0, tmp_path)[0]
    (tmp_path / "run.toml").write_text(text.replace("ant.fa", "g.fa"))
    seen = {}

    def place(model, part, start, window):
        first, end = RUNNER.counted(start, len(part), window)
        assert start == 0 or first - start >= window // 2
        seen.setdefault(window, []).append(part[first:end])
        return part[first:end].astype(float)

    monkeypatch.setattr(RUNNER, "model_bits", place)
    run = read_run(tmp_path / "run.toml")
    due = np.mean(np.concatenate([ids[at + 20 : at + 41] for at in (0, 246)]))
    for window in (7, 16, 41):
        assert RUNNER.held_out_bits(None, run, 2, 41, window)["ant"] == pytest.approx(due)


def test_tiny_plan_from_end_to_end(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    genomes = tmp_path / "genomes"
    genomes.mkdir()
    bases = "".join(np.random.default_rng(1).choice(list("ACGT"), 600))
    (genomes / "ant.fa").write_text(f">train\n{bases}\n>held\n{bases[:200]}\n")
    (tmp_path / "plan.toml").write_text(TINY)
    docs = tmp_path / "docs"
    docs.mkdir()
    call = ["--plan", str(tmp_path / "plan.toml"), "--genomes", str(genomes), "--docs", str(docs)]
    call += ["--out", str(tmp_path / "out")]
    RUNNER.main([*call, "--list"])
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["hybrid", "plain"]
    RUNNER.main([*call, "--only", "hybrid"])
    assert "**Not run yet.**" in (docs / "experiments.md").read_text()
    trained = []
    pretrain = RUNNER.pretrain
    monkeypatch.setattr(RUNNER, "pretrain", lambda run, **o: trained.append(run) or pretrain(run, **o))
    RUNNER.main(call)
    assert len(trained) == 2 and all("plain" in str(run) for run in trained)
    rows = list(csv.DictReader((docs / "experiments.csv").read_text().splitlines()))
    assert [(row["variant"], row["seed"]) for row in rows] == [(v, s) for v in ("hybrid", "plain") for s in "01"]
    assert all(row["tokens"] == "128" and 1 < float(row["bits_per_base"]) < 4 for row in rows)
    page = (docs / "experiments.md").read_text()
    assert "at this scale** (Fig. 0: hybrids are better)" in page and "| hybrid |" in page
    assert str(tmp_path) not in page + (docs / "experiments.csv").read_text()
    assert (docs / "experiments.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit):
        RUNNER.main([*call, "--only", "plane"])
