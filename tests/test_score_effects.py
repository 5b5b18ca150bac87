"""docs/score_effects.py on a made-up set: page, picture, and what is measured already."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from toys import random_model

from hybridna_core.checkpoint import save_model

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("score_effects", ROOT / "docs" / "score_effects.py")
SCRIPT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)
COLUMNS = (
    SCRIPT.Column("AUROC, -score", "auroc", "-{}", "all"),
    SCRIPT.Column("Spearman within", "spearman", "{}", "within"),
    SCRIPT.Column("Spearman of sizes", "spearman", "|{}|", "all"),
)
ASKED = {"effect": "E", "positive": "E<0", "where": ("U=1", "E>-9"), "group": "G", "each_group": True}


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Two sets that are one file, of which the second is drawn from; the options of a run."""
    pytest.importorskip("matplotlib")
    random = np.random.default_rng(0)
    contig = "".join(random.choice(list("ACGT"), 300))
    (tmp_path / "g.fa").write_text(f">c\n{contig}\n")
    (tmp_path / "b.fa").write_text(f">d\n{contig[::-1]}\n")
    (tmp_path / "run.toml").write_text(
        '[model]\npreset = "tiny"\n[[stage]]\ncontext_length = 64\nsteps = 1\nbatch_tokens = 64\n'
        '[[species]]\nname = "b"\nfasta = "b.fa"\n'
    )
    alts = {at: "C" if contig[at] == "A" else "A" for at in range(100, 124)}
    effects = random.normal(size=300).round(3)
    infos = {at: f"E={effects[at]};U=1;G={at // 100}" for at in alts}
    lines = [f"c\t{at + 1}\t.\t{contig[at]}\t{alt}\t.\t.\t{infos[at]}\n" for at, alt in alts.items()]
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "v.vcf").write_text(head + "".join(lines))
    save_model(tmp_path / "toy", random_model(1, layer_types=("mamba",)))
    sets = [
        SCRIPT.EffectSet(name, title, "About.", "v.vcf", "g.fa", ASKED, sites, COLUMNS)
        for name, title, sites in (("one", "First set", None), ("two", "Second set", 6))
    ]
    monkeypatch.setattr(SCRIPT, "SETS", sets)
    monkeypatch.setattr(SCRIPT, "WINDOW", 64)
    monkeypatch.setattr(SCRIPT, "DRAWS", 25)
    return ["--data", str(tmp_path), "--run", str(tmp_path / "run.toml"), "--model", str(tmp_path / "toy"),
            "--out", str(tmp_path / "out"), "--page", str(tmp_path / "effects.md")]  # fmt: skip


def test_page_says_what_was_measured_and_nothing_is_measured_twice(options, tmp_path, monkeypatch):
    SCRIPT.main([*options, "--only", "two"])
    assert "## First set\n\nNot measured." in (tmp_path / "effects.md").read_text()
    SCRIPT.main(options)
    text = (tmp_path / "effects.md").read_text()
    figures = json.loads((tmp_path / "out" / "two.json").read_text())
    for column in COLUMNS:
        one = SCRIPT.pick(figures, column, "HD_LLR")
        assert one["value"] is not None and f"{one['value']:.3f}" in text
        if one["low"] is not None:
            assert f"({one['low']:.3f} to {one['high']:.3f})" in text
    asked = (
        "--effect E --positive 'E<0' --where U=1 --where 'E>-9' --group G --each-group --sites 6 --background run.toml"
    )
    assert f"    hybridna evaluate effects v.vcf -f g.fa {asked} --window 64 --stride 32\n" in text
    assert "6 of 24 alleles at 6 places" in text and "Left out: not_drawn 18." in text
    assert "| order-5 Markov |" in text and "| 1 | 24 |" in text and (tmp_path / "effects.png").stat().st_size > 5000
    monkeypatch.setattr(SCRIPT, "evaluate_effects", None)
    SCRIPT.main(options)
    assert (tmp_path / "effects.md").read_text() == text
    # Another model is measured anew.
    save_model(tmp_path / "other", random_model(2, layer_types=("mamba",)))
    with pytest.raises(TypeError):
        SCRIPT.main([*options, "--model", str(tmp_path / "other")])


def test_sets_of_the_page_ask_what_there_is():
    assert [one.name for one in SCRIPT.SETS] == ["brca1", "mpra", "yeast", "sars_cov_2"]
    for one in SCRIPT.SETS:
        kinds = {column.statistic for column in one.columns}
        assert ("auroc" in kinds) == ("positive" in one.asked) and "spearman" in kinds
        assert "group" in one.asked or not any(column.scope == "within" for column in one.columns)
        assert len(one.columns) >= 2
