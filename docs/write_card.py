"""Fill the generated parts of a model card from the files measured beside it, and renew the folder's manifest.

config.json, run.toml, training.json, curve.tsv, sources.tsv, heldout.json, coding.json, speed.json, tried.tsv
-> tables -> README.md between `<!-- name -->` and `<!-- /name -->` -> manifest.json

What stands outside these marks is written by hand and left alone. A part whose file is not there says so.
"""

import csv
import json
import re
import sys
import tomllib
from pathlib import Path

from hybridna_core.checkpoint import MANIFEST, sha256, write_manifest
from hybridna_core.config import read_model_config
from hybridna_core.model.hybrid import count_parameters

ROOT = Path(__file__).resolve().parent.parent
ORDERS = (0, 3, 6, 9, 12)
STRATA = ("all", "substitution", "codon_position", "both")
SCORES = {"hybridna": "-HD_LLR", "markov": "order-5 Markov", "regression": "regression"}
CURVE_ROWS = 10


def spell_table(columns, rows):
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def read_tsv(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def read_sources(folder):
    """Return the rows of sources.tsv by species; every species of the run must be there."""
    run = tomllib.loads((folder / "run.toml").read_text())
    rows = {row["species"]: row for row in read_tsv(folder / "sources.tsv")}
    missing = [one["name"] for one in run["species"] if one["name"] not in rows]
    if missing:
        sys.exit(f"{folder / 'sources.tsv'}: no row for {', '.join(missing)}")
    return run, rows


def read_measured(folder, name):
    """Return a measured table; stop if it was measured with other weights than those in the folder."""
    table = json.loads((folder / name).read_text())
    own = sha256(folder / "model.safetensors")
    if table["model_sha256"] != own:
        sys.exit(f"{folder / name}: measured with other weights ({table['model_sha256'][:12]}, here {own[:12]})")
    return table


def spell_facts(folder):
    config = read_model_config(folder / "config.json")
    attention = config.layer_types.count("attention")
    size = (folder / "model.safetensors").stat().st_size
    return (
        f"{count_parameters(config):,} parameters in {size / 1e6:.2f} MB: {config.num_hidden_layers} layers, "
        f"{config.num_hidden_layers - attention} Mamba-2 and {attention} attention, width {config.hidden_size}, MLP "
        f"{config.intermediate_size}, {config.mamba_n_heads} Mamba heads of {config.mamba_d_head} with state "
        f"{config.mamba_d_state}; context {config.context_length:,} tokens."
    )


def spell_heldout(folder):
    table = read_measured(folder, "heldout.json")
    _, sources = read_sources(folder)
    rows, lost = [], []
    for one in table["sets"]:
        name = sources[one["name"]]["held_out"]
        bits = {
            "`base`": one["model"],
            "Markov": one["best_markov"],
            "adaptive": one["adaptive"],
            "xz": one["compressor"],
        }
        if one["model"] >= one["best_markov"]:
            lost.append(name)
        orders = [f"{one['markov'][k]:.4f}" for k in ORDERS if k < len(one["markov"])]
        best = f"{one['best_markov']:.4f} ({one['best_markov_order']})"
        rows.append([name, f"{one['bases']:,}", f"{one['model']:.4f}", best, *orders, f"{one['adaptive']:.4f}",
                     f"{one['compressor']:.4f} ({one['by']})", min(bits, key=bits.get)])  # fmt: skip
    orders = [f"order {k}" for k in ORDERS if k < len(table["sets"][0]["markov"])]
    columns = [
        "held out",
        "bases measured",
        "`base`",
        "best Markov (order)",
        *orders,
        "adaptive",
        "compressor",
        "lowest",
    ]
    won = len(rows) - len(lost)
    text = f"`base` is below the best Markov model on {won} of {len(rows)} sets"
    text += f"; the mean gain over it is {table['gain']:+.4f} bits."
    if lost:
        text += f" It loses to it on {', '.join(lost)}."
    beaten = [row[0] for row in rows if row[-1] not in ("`base`", "Markov")]
    if beaten:
        text += f" What learns from the measured bases alone is lowest on {', '.join(beaten)}."
    return f"{spell_table(columns, rows)}\n\n{text} Windows of {table['window']:,} bases."


def spell_coding(folder):
    table = read_measured(folder, "coding.json")
    by = {(one["score"], one["strata"]): one for one in table["aurocs"] if one["against"] == "stop_gained"}
    rows = []
    for score, name in SCORES.items():
        if (score, "all") in by:
            cells = [by[score, strata] for strata in STRATA]
            rows.append([name] + [
                "-" if one["auroc"] is None else f"{one['auroc']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
                for one in cells
            ])  # fmt: skip
    counts, compared = table["counts"], by["hybridna", "both"]["compared"]
    text = (
        f"AUROC, 95 % interval in brackets: {counts['stop_gained']:,} stop-gained against {counts['synonymous']:,} "
        f"synonymous changes drawn evenly, genetic code {table['codon_table']}, window {table['window']:,}, horizon "
        f"{table['horizon']:,}. Within both, {compared:,} stop-gained changes have a synonymous one to compare."
    )
    columns = ["score", "all", "same substitution", "same codon position", "same both"]
    return f"{spell_table(columns, rows)}\n\n{text}"


def spell_speed(folder):
    table = read_measured(folder, "speed.json")
    return (
        f"{table['seconds_per_variant']:.3f} s a variant (median of {table['repeats']} passes over {table['sites']} "
        f"variants, {table['fastest']:.3f} to {table['slowest']:.3f}), window {table['window']:,}, both strands, "
        f"{table['threads']} threads, float32; {table['cpu']}, torch {table['torch']}, {table['date']}, "
        f"commit {table['commit']}."
    )


def spell_curve(folder):
    """A few rows of the training loss, the first and the last among them."""
    rows = read_tsv(folder / "curve.tsv")
    count = min(CURVE_ROWS, len(rows))
    chosen = [rows[round(i * (len(rows) - 1) / max(1, count - 1))] for i in range(count)]
    cells = [[f"{int(row['step']):,}", row["stage"], f"{int(row['tokens']):,}", row["bits_per_base"]] for row in chosen]
    return spell_table(["step", "stage", "tokens", "bits per base"], cells)


def spell_tried(folder):
    rows = read_tsv(folder / "tried.tsv")
    return spell_table(list(rows[0]), [list(row.values()) for row in rows])


def spell_data(folder):
    run, sources = read_sources(folder)
    seen = json.loads((folder / "training.json").read_text())["seen_bases"]
    rows = []
    for one in run["species"]:
        source = sources[one["name"]]
        held = "all of it" if one.get("valid") == ["all"] else ", ".join(one.get("valid", ()))
        rows.append([source["genome"], source["class"], source["by_way_of"], f"{seen[one['name']] / 1e6:,.2f}", held])
    columns = ["genome", "class", "public record, by way of", "training bases read, millions", "held out"]
    total = f"{sum(seen.values()) / 1e6:,.1f} million bases were read in all."
    return f"{spell_table(columns, rows)}\n\n{total}"


PARTS = {
    "facts": (spell_facts, "config.json"),
    "heldout": (spell_heldout, "heldout.json"),
    "coding": (spell_coding, "coding.json"),
    "speed": (spell_speed, "speed.json"),
    "curve": (spell_curve, "curve.tsv"),
    "tried": (spell_tried, "tried.tsv"),
    "data": (spell_data, "training.json"),
}


def write_card(folder):
    """Return the card's text with every generated part made anew."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"<!-- (\w+) -->", text):
        if name not in PARTS:
            sys.exit(f"{folder / 'README.md'}: no part called {name!r}; there are {', '.join(PARTS)}")
        spell, source = PARTS[name]
        body = spell(folder) if (folder / source).exists() else f"Not measured ({source} is not there)."
        pattern = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
        if not re.search(pattern, text, re.DOTALL):
            sys.exit(f"{folder / 'README.md'}: <!-- {name} --> has no end")
        block = f"<!-- {name} -->\n{body}\n<!-- /{name} -->"
        text = re.sub(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "hybridna_core" / "bundled" / "base"
    old = json.loads((place / MANIFEST).read_text())
    card = write_card(place)
    (place / "README.md").write_text(card, encoding="utf-8")
    write_manifest(place, about={key: old[key] for key in old if key not in ("format", "hybridna", "files", "digest")})
