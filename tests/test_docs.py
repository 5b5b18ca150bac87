"""The documentation against the program: docs/cli.md is fresh, README commands run, links and names exist.

docs/*.py -> the same text again; README console blocks -> run in a copy of the demo -> output as printed there
"""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from hybridna_cli import app
from hybridna_core import tokenizer
from hybridna_core.config import PRESETS
from hybridna_core.data import variants
from hybridna_core.model.hybrid import count_parameters

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def load(name):
    """Import a script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXAMPLES = load("write_examples")
EXAMPLE_IDS = [command.split()[1] for command, _ in EXAMPLES.examples(README)]


def read(page):
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_cli_page_is_fresh():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "write_cli.py"], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == read("cli.md"), "run `make docs`"


def same(shown, printed):
    """Tell whether two lines agree, numbers within what another CPU's rounding may change."""
    pieces = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
    if pieces.sub("#", shown) != pieces.sub("#", printed):
        return False
    pairs = zip(pieces.findall(shown), pieces.findall(printed), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=5e-3, abs_tol=5e-3) for a, b in pairs)


def test_there_are_four_examples_with_output():
    examples = EXAMPLES.examples(README)
    assert [command.split()[1] for command, _ in examples] == ["score-variants", "embed", "generate", "pretrain"]
    assert all(output.strip() for _, output in examples), "run docs/write_examples.py"


@pytest.mark.parametrize("command, shown", EXAMPLES.examples(README), ids=EXAMPLE_IDS)
def test_readme_examples_run_and_print_what_is_shown(command, shown, tmp_path):
    shutil.copytree(ROOT / "demo", tmp_path / "demo", ignore=shutil.ignore_patterns("*.fai", "*.gzi"))
    printed = EXAMPLES.run_example(command, tmp_path).splitlines()
    assert len(printed) == len(shown.splitlines())
    for line, due in zip(printed, shown.splitlines(), strict=True):
        assert same(due, line), f"shown   {due}\nprinted {line}"


def test_readme_commands_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    demo = re.search(r"^demo:.*\n\t(.*)$", makefile, re.MULTILINE)[1]
    test = re.search(r"^test:.*\n\t(.*)$", makefile, re.MULTILINE)[1]
    assert f"    {demo}\n" in README and f"    {test}\n" in README
    assert test in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for target in ("demo", "test", "lint", "docs", "examples", "bench", "heldout", "slow"):
        assert f"make {target}" in read("contributing.md") and f"\n{target}:" in makefile


def test_readme_python_runs(tmp_path, monkeypatch):
    import numpy as np

    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    shutil.copytree(ROOT / "demo", tmp_path / "demo", ignore=shutil.ignore_patterns("*.fai", "*.gzi"))
    monkeypatch.chdir(tmp_path)
    code = code.replace('"in.vcf", "ref.fa"', '"demo/promoter_variants.vcf", "demo/yeast_chrI.fa.gz"')
    code = code.replace('"out.vcf.gz")', '"out.vcf.gz", window=128)')
    names = {}
    exec(code, names)
    assert Path("out.vcf.gz").stat().st_size > 0
    hd, model = names["hd"], names["model"]
    assert hd.embed_sequences(model, ["ACGT"]).shape == (1, model.config.hidden_size)
    assert np.isfinite(hd.log_probs(model, ["ACGTACGT"])[0]).all()


def test_scoring_page_python_runs():
    names = {}
    exec(re.search(r"```python\n(.*?)```", read("scoring.md"), re.DOTALL)[1], names)
    assert math.isfinite(names["forward"]) and len(names["window"]) == len(names["changed"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_pages_name_what_there_is():
    commands = set(app.COMMANDS)
    root = typer.main.get_command(app.build_app())
    for page in PAGES:
        for line in re.findall(r"hybridna ([a-z-]+) ", page.read_text(encoding="utf-8")):
            assert line in commands or line in ("and",), f"{page.name}: hybridna {line}"
    known = {o for command in root.commands.values() for o in options_of(command)}
    for page in PAGES:
        found = set(re.findall(r"`(--[a-z-]+)", page.read_text(encoding="utf-8")))
        assert found <= known | {"--help", "--check"}, f"{page.name}: {sorted(found - known)}"


def options_of(command):
    found = {word for parameter in command.params for word in parameter.opts}
    for inner in getattr(command, "commands", {}).values():
        found |= options_of(inner)
    return found


def test_scoring_page_lists_every_reason():
    missing = [reason for reason in (*variants.REASONS, *variants.SCORED) if f"`{reason}`" not in read("scoring.md")]
    assert not missing


def test_model_page_has_the_right_numbers():
    for name, config in PRESETS.items():
        row = re.search(rf"^\| `{name}` \|(.*)\|$", read("model.md"), re.MULTILINE)[1]
        cells = [cell.strip() for cell in row.split("|")]
        assert cells == [
            str(config.num_hidden_layers), str(config.hidden_size), str(config.intermediate_size),
            f"{config.mamba_n_heads} x {config.mamba_d_head}", f"{config.mamba_n_groups} x {config.mamba_d_state}",
            f"{config.num_attention_heads} / {config.num_key_value_heads}", f"{count_parameters(config):,}",
        ]  # fmt: skip
    assert f"`{' '.join(tokenizer.TOKENS[:7])}` are 0 to 6" in read("model.md")


def test_licence_is_the_verbatim_text():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert len(text.splitlines()) == 202 and "END OF TERMS AND CONDITIONS" in text


def test_constraints_pin_each_direct_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [
        re.match(r"[\w-]+", line)[0] for line in (*project["dependencies"], *project["optional-dependencies"]["dev"])
    ]
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert set(names) <= set(pinned)
