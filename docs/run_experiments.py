"""Train the variants of docs/experiments.toml, measure them on held-out bases, and write what they show.

variants x seeds -> run file -> pretrain -> bits per base -> results.csv -> docs/experiments.{csv,png,md}

Runs that are finished are skipped, so the same command goes on after any stop.
"""

import argparse
import csv
import datetime
import hashlib
import itertools
import json
import math
import shlex
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np

from hybridna_cli.console import start_progress
from hybridna_core.checkpoint import load_model
from hybridna_core.commands.evaluate_genome import choose_windows, counted, model_bits
from hybridna_core.commands.pretrain import pretrain
from hybridna_core.config import ModelConfig, layer_pattern
from hybridna_core.data.corpus import Stretch, load_species, validation_windows
from hybridna_core.model.hybrid import count_parameters, match_size
from hybridna_core.run_config import read_run

ROOT = Path(__file__).resolve().parent.parent
# Two-sided 95 % points of Student's t, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
COLUMNS = (
    "variant", "seed", "parameters", "attention_layers", "layers", "hidden_size", "intermediate_size", "context_length",
    "batch_tokens", "tokens", "bits_per_base", "sets", "seconds", "date", "commit", "digest",
)  # fmt: skip


def make_models(plan):
    """Return the ModelConfig of each variant by name, MLPs widened or narrowed to match where asked."""
    found, common = {}, plan["common"]
    for variant in plan["variant"]:
        layers, every = variant.get("layers", common["layers"]), variant["attention_every"]
        kinds = layer_pattern(layers, every, every // 2) if every else ("mamba",) * layers
        found[variant["name"]] = ModelConfig(layer_types=kinds, **{**common["model"], **variant.get("model", {})})
    for variant in plan["variant"]:
        if "match" in variant:
            due = count_parameters(found[variant["match"]])
            found[variant["name"]] = match_size(found[variant["name"]], due)
    return found


def spell_run(plan, variant, config, seed, genomes):
    """Spell the run file of one variant and seed; JSON's lists, numbers and texts are TOML's, too."""
    context = variant.get("context_length", plan["common"]["context_length"])
    batch = variant.get("batch_tokens", plan["common"]["batch_tokens"])
    lines = [f"name = {json.dumps(variant['name'])}", f"seed = {seed}"]
    model = {name: value for name, value in config.to_dict().items()
             if value is not None and name not in ("model_type", "num_hidden_layers")}  # fmt: skip
    stage = {"context_length": context, "steps": max(1, plan["tokens"] // batch), "batch_tokens": batch}
    species = [{**one, "fasta": str(genomes / one["fasta"].removeprefix("genomes/"))} for one in plan["run"]["species"]]
    tables = [("[model]", model), ("[[stage]]", stage)]
    tables += [(f"[{name}]", table) for name, table in plan["run"].items() if name != "species"]
    for head, table in [*tables, *(("[[species]]", one) for one in species)]:
        lines += ["", head, *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n", stage


def held_out_bits(model, run, stretches, bases, window):
    """Return bits per base of each held-out set: the second half of stretches spread evenly over it.

    Windows of the length trained on stand at steps of half, so each base is read after half of one at least, and
    every variant is measured on the same bases.
    """
    found, half = {}, bases // 2
    for config in run.species:
        one = load_species(config)
        values = []
        for ids in validation_windows(one, bases, stretches):
            first = max(0, half - window // 2)
            part = ids[first:]
            bits = np.full(len(part), np.nan)
            for _, at in choose_windows([Stretch("", 0, len(part), part)], window):
                start, end = counted(at, len(part), window)
                bits[start:end] = model_bits(model, part, at, window)
            values.append(bits[half - first :])
        if values:
            found[config.name] = float(np.nanmean(np.concatenate(values)))
    return found


def run_variant(plan, variant, config, seed, genomes, folder, progress):
    """Train and measure one variant with one seed; return its row of the results."""
    text, stage = spell_run(plan, variant, config, seed, genomes)
    place = folder / f"{variant['name'].replace(' ', '-').replace(':', '-')}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "run.toml").write_text(text)
    begun = time.monotonic()
    pretrain(place / "run.toml", output=place, device="cpu", progress=progress)
    run, model = read_run(place / "run.toml"), load_model(place / "model", device="cpu")
    window = stage["context_length"] - 1
    sets = held_out_bits(model, run, plan["stretches"], plan["stretch_bases"], window)
    return {
        "variant": variant["name"], "seed": seed, "parameters": count_parameters(config),
        "attention_layers": config.layer_types.count("attention"), "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "context_length": stage["context_length"], "batch_tokens": stage["batch_tokens"],
        "tokens": stage["steps"] * stage["batch_tokens"],
        "bits_per_base": f"{statistics.mean(sets.values()):.5f}",
        "sets": " ".join(f"{name.replace(' ', '_')}={value:.5f}" for name, value in sets.items()),
        "seconds": f"{time.monotonic() - begun:.0f}", "date": datetime.date.today().isoformat(),
        "commit": commit(), "digest": digest(plan, text, genomes),
    }  # fmt: skip


def digest(plan, text, genomes):
    """Tell runs apart by what decides their numbers, and not by where the genomes lie."""
    facts = [text.replace(str(genomes), ""), plan["stretches"], plan["stretch_bases"]]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def commit():
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() or "unknown"


def read_results(path):
    """Return the rows of a results file, none if it is not there."""
    if not path.exists():
        return []
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def write_results(path, rows):
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def compare(better, worse):
    """Return mean of worse - better over the seeds that both have, its 95 % half-width (None below two seeds)."""
    differences = [worse[seed] - better[seed] for seed in sorted(set(better) & set(worse))]
    if len(differences) < 2:
        return (differences[0] if differences else math.nan), None
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), STUDENT[min(len(differences) - 1, max(STUDENT))] * spread


def judge(experiment, bits):
    """Return a sentence on whether a claim holds: each pair must differ by more than chance over seeds allows.

    bits  variant -> seed -> bits per base
    """
    names = experiment["variants"]
    if any(not bits.get(name) for name in names):
        return "**Not run yet.**"
    if experiment["expects"] == "first":
        pairs = [(names[0], other) for other in names[1:]]
    else:
        pairs = [(after, before) for before, after in itertools.pairwise(names)]
    texts, states = [], []
    for better, worse in pairs:
        mean, width = compare(bits[better], bits[worse])
        # Nothing is decided by one seed.
        states.append(0 if width is None or abs(mean) <= width else 1 if mean > 0 else -1)
        shown = f"{mean:+.4f}" if width is None else f"{mean:+.4f} ± {width:.4f}"
        texts.append(f"{better} is lower than {worse} by {shown}")
    head = {1: "**Holds at this scale**", 0: "**Not decided at this scale**", -1: "**Contradicted at this scale**"}
    return f"{head[min(states)]} ({experiment['source']}: {experiment['claim']}): {'; '.join(texts)} bits per base."


def spell_page(plan, rows, command):
    """Return the Markdown page."""
    bits = {}
    for row in rows:
        bits.setdefault(row["variant"], {})[int(row["seed"])] = float(row["bits_per_base"])
    by_name = {row["variant"]: row for row in rows}
    species = ", ".join(f"{one['name']} ({', '.join(one['valid'])})" for one in plan["run"]["species"])
    dates, commits = (sorted({row[key] for row in rows}) for key in ("date", "commit"))
    parts = [
        "# Experiments on architecture",
        "Made by `docs/run_experiments.py` from [experiments.csv](experiments.csv); "
        "[experiments.toml](experiments.toml) says what was trained.",
        f"    {command}",
        f"Runs of {' to '.join(dict.fromkeys([dates[0], dates[-1]])) if rows else 'no day yet'}, "
        f"commit {', '.join(commits) or 'none'}.",
        f"Every variant reads {plan['tokens']:,} tokens, drawn by its seed and the same for all of one context length. "
        f"Optimiser, learning rate (at most {plan['run']['optim']['lr']:g}) and schedule are the same for all and "
        f"tuned for none. Bits per base are the mean over held-out sets of {species}; {plan['stretches']} stretches of "
        f"{plan['stretch_bases']:,} bases of each, the second half counted, windows of the length trained on at steps "
        "of half. ± beside a variant is the deviation over seeds, ± beside a difference its 95 % interval over seeds "
        "(paired, Student's t). These models are thousands of times smaller than the paper's and far from trained out: "
        "they can contradict a claim at this scale, which does not refute it at another. Attention has no position "
        "code here, alone as in the hybrid.",
        "![bits per base of every run](experiments.png)",
    ]  # fmt: skip
    for experiment in plan["experiment"]:
        lines = [
            "| variant | parameters | layers, attention | context | seeds | bits per base |",
            "|---|---|---|---|---|---|",
        ]
        for name in experiment["variants"]:
            if name not in by_name:
                continue
            row, values = by_name[name], list(bits[name].values())
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            lines.append(
                f"| {name} | {int(row['parameters']):,} | {row['layers']}, {row['attention_layers']} "
                f"| {int(row['context_length']):,} | {len(values)} | {statistics.mean(values):.4f}{spread} |"
            )
        parts += [f"## {experiment['title']}", "\n".join(lines), judge(experiment, bits)]
    return "\n\n".join(parts) + "\n"


def draw(plan, rows, path):
    """Draw every run as a dot and every mean as a line, one panel per experiment."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(plan["experiment"]), figsize=(4 * len(plan["experiment"]), 4), squeeze=False
    )
    for panel, experiment in zip(panels[0], plan["experiment"], strict=True):
        names = experiment["variants"]
        for at, name in enumerate(names):
            values = [float(row["bits_per_base"]) for row in rows if row["variant"] == name]
            panel.plot([at] * len(values), values, "o", color="C0", markersize=4)
            if values:
                panel.plot([at - 0.3, at + 0.3], [statistics.mean(values)] * 2, color="black")
        panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
        panel.set_xlim(-0.6, len(names) - 0.4)
        panel.set_title(experiment["title"])
        panel.set_ylabel("bits per base")
    figure.tight_layout()
    # No date or version in the file, so that the same results give the same bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=ROOT / "docs" / "experiments.toml", help="what to train")
    parser.add_argument("--genomes", type=Path, required=True, help="folder of the genomes")
    parser.add_argument("--out", type=Path, required=True, help="scratch folder: runs, and results.csv")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where experiments.csv, .png and .md go")
    parser.add_argument("--tokens", type=int, help="tokens per run, in place of the plan's")
    parser.add_argument("--seeds", type=int, nargs="*", help="seeds, in place of the plan's")
    parser.add_argument("--only", action="append", metavar="VARIANT", help="train this variant; repeatable")
    parser.add_argument("--list", action="store_true", help="list the variants and their parameters, train nothing")
    options = parser.parse_args(argv)
    plan = tomllib.loads(options.plan.read_text())
    plan["tokens"] = options.tokens or plan["tokens"]
    seeds = plan["seeds"] if options.seeds is None else options.seeds
    models, variants = make_models(plan), {one["name"]: one for one in plan["variant"]}
    if unknown := set(options.only or ()) - set(variants):
        parser.error(f"no variant called {', '.join(sorted(unknown))}")
    if options.list:
        for name, config in models.items():
            attention = config.layer_types.count("attention")
            print(f"{name}\t{count_parameters(config):,}\t{attention} of {config.num_hidden_layers} attention")
        return
    genomes = options.genomes.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.csv"
    if not results.exists():
        # Runs that were published need not be made again.
        write_results(results, read_results(options.docs / "experiments.csv"))
    # Seeds outermost: whatever is stopped early has all variants of the seeds done.
    wanted = []
    for seed, name in itertools.product(seeds, options.only or variants):
        wanted.append(
            (seed, name, digest(plan, spell_run(plan, variants[name], models[name], seed, genomes)[0], genomes))
        )
    for number, (seed, name, key) in enumerate(wanted):
        rows = read_results(results)
        if key in {row["digest"] for row in rows}:
            continue
        print(f"{number + 1} of {len(wanted)}: {name}, seed {seed}", file=sys.stderr, flush=True)
        progress = start_progress("experiments")
        row = run_variant(plan, variants[name], models[name], seed, genomes, options.out / key, progress)
        progress.close()
        write_results(results, [*rows, row])
    # Only runs of this very plan are shown.
    keys = {digest(plan, spell_run(plan, variants[name], models[name], seed, genomes)[0], genomes)
            for seed, name in itertools.product(seeds, variants)}  # fmt: skip
    rows = [row for row in read_results(results) if row["digest"] in keys]
    order = list(variants)
    rows.sort(key=lambda row: (order.index(row["variant"]), int(row["seed"])))
    write_results(options.docs / "experiments.csv", rows)
    draw(plan, rows, options.docs / "experiments.png")
    changed = [f"--tokens {options.tokens}"] if options.tokens else []
    changed += [] if options.seeds is None else [f"--seeds {' '.join(map(str, seeds))}"]
    command = "make experiments GENOMES=genomes"
    command += f" EXPERIMENTS={shlex.quote(' '.join(changed))}" if changed else ""
    (options.docs / "experiments.md").write_text(spell_page(plan, rows, command))


if __name__ == "__main__":
    main()
