"""Set the bundled model's variant scores beside effects that were measured, and write docs/effects.md with a picture.

four VCFs of measured effects -> evaluate_effects, one file of figures per set -> page and picture

What is measured already with the same model, sets and options is not measured again; a set that was stopped goes on.
"""

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

import torch

from hybridna_cli.console import start_progress
from hybridna_core.baselines import count_background
from hybridna_core.checkpoint import load_model
from hybridna_core.commands.evaluate_effects import evaluate_effects

ROOT = Path(__file__).resolve().parent.parent
WINDOW, STRIDE, DRAWS, SEED = 1024, 32, 1000, 0
INTRODUCTION = (
    "Written by `make effects` (docs/score_effects.py); do not edit. How far do zero-shot scores of the bundled "
    "model go with effects that were measured? No effect entered its training. In brackets stand 95 % bootstrap "
    "intervals: groups drawn whole, or places where there are no groups; of seven groups they are rough. Chance "
    "is 0.5 for AUROC and 0 for Spearman's correlation. The paper itself reports chance for its human tasks at "
    "zero shot."
)
READING = (
    "Beside the model's stand scores that know the two alleles alone (G and C gained, 1 for a transition), and "
    "the same ratio by an order-5 Markov model, counted on the training bases. AUROC of -score: what does harm "
    "should be found less likely. Sizes: the absolute value of the score against that of the effect. Within: only "
    f"alleles of one group are compared. Window {WINDOW:,}, horizon {WINDOW // 2}, stride {STRIDE}, both strands, "
    "float32."
)
SCORES = {
    "HD_LLR": "HD_LLR", "HD_FWD": "HD_LLR, read forwards", "HD_REV": "HD_LLR, read backwards",
    "markov": "order-5 Markov", "gc_change": "GC gained", "transition": "transition",
}  # fmt: skip


class Column(NamedTuple):
    """One column of a set's table: which Measures, and their heading."""

    heading: str
    statistic: str
    spelling: str
    scope: str


class EffectSet(NamedTuple):
    """One set of measured effects.

    vcf, fasta  below the folder of data
    asked       keywords of evaluate_effects
    sites       places drawn; None: all
    columns     the first two are drawn
    """

    name: str
    title: str
    about: str
    vcf: str
    fasta: str
    asked: dict
    sites: int | None
    columns: tuple


SETS = (
    EffectSet(
        "brca1", "BRCA1 saturation genome editing",
        "Seven exons (X2, X4, X15, X17, X19, X21, X23) of Findlay et al. 2018; the function score is low where "
        "function is lost. AUROC: loss of function against all others. Groups: exons. BRCA1 was left out of the "
        "training.",
        "variants/brca/brca1_sge_findlay2018_dev.vcf.gz", "variants/brca/hg19_brca1_brca2_padded.fa.gz",
        {"effect": "FS", "positive": "FC=LOF", "group": "EXPERIMENT"}, None,
        (Column("AUROC, -score", "auroc", "-{}", "all"), Column("Spearman", "spearman", "{}", "all"),
         Column("AUROC within exons", "auroc", "-{}", "within"),
         Column("Spearman within exons", "spearman", "{}", "within")),
    ),
    EffectSet(
        "mpra", "MPRA saturation mutagenesis",
        "Fourteen human promoters and enhancers in twenty experiments of Kircher et al. 2019: log2 change of "
        "expression, changes with at least 10 barcodes. AUROC: p below 1e-5 against all others. Groups: experiments. "
        "The model reads each element alone, without its surroundings.",
        "variants/mpra_satmut/satmut_dev.vcf.gz", "variants/mpra_satmut/elements_dev.fa.gz",
        {"effect": "EFFECT", "positive": "PVAL<1e-5", "where": ("BARCODES>=10",), "group": "EXPERIMENT",
         "each_group": True}, 1000,
        (Column("Spearman within experiments", "spearman", "{}", "within"),
         Column("Spearman of sizes, within", "spearman", "|{}|", "within"),
         Column("AUROC of sizes, within", "auroc", "|{}|", "within")),
    ),
    EffectSet(
        "yeast", "Yeast promoter mutants",
        "Single changes in native 80-base promoter tiles (Vaishnav et al. 2022), expression in defined medium beside "
        "the median of the tile's mutants. Groups: tiles. The model was trained on the sequence of this genome.",
        "variants/yeast_promoter_mpra/native_promoter_snvs_train_val.vcf.gz", "genomes/fungi/scerevisiae_r64.fa.gz",
        {"effect": "DELTA_DEFINED", "group": "TILE"}, 1500,
        (Column("Spearman within tiles", "spearman", "{}", "within"),
         Column("Spearman of sizes, within", "spearman", "|{}|", "within"),
         Column("Spearman", "spearman", "{}", "all")),
    ),
    EffectSet(
        "sars_cov_2", "SARS-CoV-2 fitness",
        "Fitness of single changes, estimated from public sequences (Bloom and Neher), positions 266 to 13,468; at "
        "least 20 expected mutations, and none at which clade founders differ. No groups. SARS-CoV-2 was left out of "
        "the training.",
        "variants/sars_cov_2/nt_fitness_orf1a.vcf.gz", "genomes/virus/sars_cov_2.fa.gz",
        {"effect": "FITNESS", "where": ("EXPCOUNT>=20", "FOUNDERDIFF=0")}, 600,
        (Column("Spearman", "spearman", "{}", "all"), Column("Spearman of sizes", "spearman", "|{}|", "all")),
    ),
)  # fmt: skip


def spell_command(one, sites, markov):
    """Spell the command that measures a set, as typed in the folder of data; the run file lies beside it."""
    words = ["hybridna", "evaluate", "effects", one.vcf, "-f", one.fasta]
    for key, value in one.asked.items():
        for text in value if isinstance(value, tuple) else (value,):
            words += [f"--{key.replace('_', '-')}", *([] if text is True else [text])]
    words += ["--sites", str(sites)] if sites else []
    words += ["--background", "run.toml"] if markov is not None else []
    return shlex.join([*words, "--window", str(WINDOW), "--stride", str(STRIDE)])


def measure_set(one, sites, model, markov, options):
    """Return the figures of a set: those kept in its file if they fit, else measured now; None if it is not wanted."""
    place = options.out / f"{one.name}.json"
    facts = {"command": spell_command(one, sites, markov), "model_sha256": model.digest}
    if place.exists():
        old = json.loads(place.read_text())
        if {key: old.get(key) for key in facts} == facts:
            print(f"{one.name}: measured on {old['date']}", file=sys.stderr)
            return old
    if options.only and one.name not in options.only:
        return None
    begun, progress = time.perf_counter(), start_progress(f"evaluate effects {one.name}")
    found = evaluate_effects(
        options.data / one.vcf, options.data / one.fasta, model=model, background=() if markov is None else markov,
        sites=sites, variants=options.out / f"{one.name}.tsv", draws=DRAWS, window=WINDOW, stride=STRIDE, seed=SEED,
        force=True, progress=progress, **one.asked,
    )  # fmt: skip
    progress.close()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    figures = {
        **facts, "date": datetime.date.today().isoformat(), "commit": commit.stdout.strip() or "unknown",
        "wall_seconds": time.perf_counter() - begun, **found.to_dict(),
    }  # fmt: skip
    place.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{one.name}: {found.measured:,} alleles, {figures['wall_seconds']:.0f} s", file=sys.stderr)
    return figures


# The page


def pick(figures, column, score):
    """Return the Measure of a score in a column, None where there is none."""
    wanted = (column.spelling.format(score), column.statistic, column.scope)
    return next((m for m in figures["measures"] if (m["score"], m["statistic"], m["scope"]) == wanted), None)


def chance(statistic):
    return 0.5 if statistic == "auroc" else 0.0


def spell_measure(measure):
    if measure is None:
        return "-"
    if measure["value"] is None:
        return f"NA ({measure['reason']})"
    if measure["low"] is None:
        return f"{measure['value']:.3f}"
    return f"{measure['value']:.3f} ({measure['low']:.3f} to {measure['high']:.3f})"


def fill(text):
    return textwrap.fill(text, 125, break_long_words=False, break_on_hyphens=False)


def spell_table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def judge_column(figures, column):
    """Say of a column whether the model's interval holds chance, and which score lies farthest from it."""
    own, middle = pick(figures, column, "HD_LLR"), chance(column.statistic)
    if own is None or own["low"] is None:
        return f"{column.heading}: no interval."
    holds = own["low"] <= middle <= own["high"]
    side = "its interval holds chance" if holds else f"{'above' if own['low'] > middle else 'below'} chance"
    far = {}
    for score in ("HD_LLR", "markov", "gc_change", "transition"):
        measure = pick(figures, column, score)
        if measure is not None and measure["value"] is not None:
            far[score] = abs(measure["value"] - middle)
    return (
        f"{column.heading}: HD_LLR {own['value']:.3f}, {side}; farthest from chance is {SCORES[max(far, key=far.get)]}."
    )


def spell_set(one, figures, sites):
    """Return the part of the page about a set."""
    if figures is None:
        return f"## {one.title}\n\nNot measured."
    rows = [
        [f"`{name}`" if score == "HD_LLR" else name, *(spell_measure(pick(figures, c, score)) for c in one.columns)]
        for score, name in SCORES.items()
        if pick(figures, one.columns[0], score) is not None
    ]
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in figures["left_out"].items()) or "none"
    groups = f", {figures['groups']} groups" if figures["groups"] else ""
    drawn = f"; {sites:,} places drawn with seed {SEED}" if figures["left_out"].get("not_drawn") else ""
    counted = (
        f"{figures['measured']:,} of {figures['alleles']:,} alleles at {figures['places']:,} places{groups}{drawn}. "
        f"Left out: {left_out}. {figures['date']}, commit {figures['commit']}, model {figures['model']} "
        f"({figures['model_sha256'][:12]})."
    )
    lines = [
        f"## {one.title}", "", fill(one.about), "",
        spell_table(["score", *(c.heading for c in one.columns)], rows), "",
        *(f"- {judge_column(figures, c)}" for c in one.columns), "", fill(counted), "", f"    {figures['command']}",
    ]  # fmt: skip
    each = [m for m in figures["measures"] if m["scope"] == "group"]
    if each:
        by = {(m["group"], m["score"], m["statistic"]): m for m in each}
        columns = {"HD_LLR": "Spearman", "markov": "Markov"}
        heads = ["experiment", "alleles", *columns.values(), *(f"{head}, sizes" for head in columns.values())]
        rows = []
        for group in sorted(dict.fromkeys(m["group"] for m in each)):
            cells = [by.get((group, name, "spearman")) for name in (*columns, *(f"|{n}|" for n in columns))]
            rows.append([group, f"{cells[0]['alleles']:,}", *map(spell_measure, cells)])
        lines += ["", "Each experiment alone, places drawn for its intervals:", "", spell_table(heads, rows)]
    return "\n".join(lines)


def write_page(found, sites_of):
    """Return the text of docs/effects.md; found: name of a set -> its figures, or None"""
    parts = [
        "# Measured effects",
        fill(INTRODUCTION),
        fill(READING),
        "![Scores beside measured effects](effects.png)",
    ]
    parts += [spell_set(one, found[one.name], sites_of[one.name]) for one in SETS]
    return "\n\n".join(parts) + "\n"


def draw(found, path):
    """Draw the first two columns of every set: value and interval of each score, chance as a line."""
    from matplotlib.figure import Figure

    measured = [one for one in SETS if found[one.name] is not None]
    figure = Figure(figsize=(3.1 * len(measured) + 1.2, 4.6), layout="constrained")
    grid = figure.subplots(2, len(measured), squeeze=False)
    names = list(SCORES)
    for place, one in enumerate(measured):
        for row, column in enumerate(one.columns[:2]):
            axes = grid[row][place]
            axes.axvline(chance(column.statistic), color="#999999", lw=1)
            for number, score in enumerate(names):
                measure = pick(found[one.name], column, score)
                if measure is None or measure["value"] is None:
                    continue
                colour = "#1F5FBF" if score.startswith("HD_") else "#B05A00"
                if measure["low"] is not None:
                    axes.plot([measure["low"], measure["high"]], [number] * 2, color=colour, lw=2, alpha=0.5)
                axes.plot(measure["value"], number, "o" if score == "HD_LLR" else "s", color=colour, ms=6)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_yticks(range(len(names)), SCORES.values() if place == 0 else [""] * len(names), fontsize=8)
            axes.set_xlabel(column.heading, fontsize=8)
            axes.locator_params(axis="x", nbins=5)
            axes.tick_params(axis="x", labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            if row == 0:
                axes.set_title(one.title, fontsize=9)
    figure.savefig(path, dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("."), help="folder with `variants` and `genomes`")
    parser.add_argument("--run", help="run file whose training bases the Markov model counts; without, there is none")
    parser.add_argument("--model", default="base", help="bundled model or folder")
    parser.add_argument("--out", type=Path, default=Path("runs/effects"), help="folder that keeps figures and scores")
    parser.add_argument(
        "--only", action="append", choices=[one.name for one in SETS], help="measure this set; repeatable"
    )
    parser.add_argument("--sites", type=int, help="draw at most so many places of each set, for a trial")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "effects.md", help="page; the picture lies beside it"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_model(options.model, device="cpu")
    markov = count_background([options.run], None, {}) if options.run else None
    sites_of = {one.name: min(filter(None, (one.sites, options.sites)), default=None) for one in SETS}
    found = {}
    for one in SETS:
        found[one.name] = measure_set(one, sites_of[one.name], model, markov, options)
    draw(found, options.page.with_suffix(".png"))
    options.page.write_text(write_page(found, sites_of), encoding="utf-8")


if __name__ == "__main__":
    main()
