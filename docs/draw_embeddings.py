"""Draw what embeddings tell of yeast: coding, promoter and intergenic windows, beside GC and k-mers.

GFF -> windows of three kinds -> `hybridna embed`, every layer -> probes over chromosomes, silhouettes -> embeddings.tsv
-> PCA and accuracies -> embeddings.png
"""

import argparse
import csv
import gzip
import itertools
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hybridna_cli.console import start_progress
from hybridna_core.checkpoint import load_model
from hybridna_core.commands.embed import embed
from hybridna_core.data.genome import open_genome
from hybridna_core.tokenizer import reverse_complement

FOLDER = Path(__file__).resolve().parent
KINDS = ("coding", "promoter", "intergenic")
# After Okabe and Ito.
COLOURS = {"coding": "#0072B2", "promoter": "#D55E00", "intergenic": "#009E73"}
MITOCHONDRION = ("chrmt", "chrM", "MT")


def read_gff(path):
    """Return {contig: [(type, start, end, strand, attributes)]}, 0-based half-open, whole chromosomes left out."""
    found = defaultdict(list)
    with gzip.open(path, "rt") as handle:
        for line in itertools.takewhile(lambda line: not line.startswith("##FASTA"), handle):
            fields = line.rstrip("\n").split("\t")
            if len(fields) == 9 and fields[2] != "chromosome" and fields[0] not in MITOCHONDRION:
                contig, _, kind, start, end, _, strand, _, attributes = fields
                found[contig].append((kind, int(start) - 1, int(end), strand, attributes))
    return found


def choose_windows(features, lengths, width, count, seed=0):
    """Return `count` windows of each kind at most, as (contig, start, end, kind, strand).

    coding      the middle of a CDS of three widths or more, on its strand
    promoter    what lies before a gene's start, where no feature is, on its strand
    intergenic  where no feature is and no gene begins within a width and 100 bases, such as between two gene ends; on
                either strand
    Dubious genes give no windows.
    """
    draw, found = random.Random(seed), {kind: [] for kind in KINDS}
    for contig, all_of_it in features.items():
        used, near = (np.zeros(lengths[contig] + 1, dtype=bool) for _ in range(2))
        genes = [f for f in all_of_it if f[0] == "gene"]
        for _, start, end, _, _ in all_of_it:
            used[start:end] = True
        for _, start, end, strand, _ in genes:
            near[max(0, start - width - 100) : start] |= strand == "+"
            near[end : end + width + 100] |= strand == "-"
        for kind, start, end, strand, attributes in all_of_it:
            if kind == "CDS" and end - start >= 3 * width and "Dubious" not in attributes:
                middle = (start + end - width) // 2
                found["coding"].append((contig, middle, middle + width, "coding", strand))
        for _, start, end, strand, attributes in genes:
            low = start - width if strand == "+" else end
            inside = low >= 0 and low + width <= lengths[contig]
            if "Dubious" not in attributes and inside and not used[low : low + width].any():
                found["promoter"].append((contig, low, low + width, "promoter", strand))
        at = 0
        while at + width <= lengths[contig]:
            is_free = not used[at : at + width].any() and not near[at : at + width].any()
            if is_free:
                found["intergenic"].append((contig, at, at + width, "intergenic", draw.choice("+-")))
            at += width if is_free else 20
    return [w for kind in KINDS for w in sorted(draw.sample(found[kind], min(count, len(found[kind]))))]


def count_kmers(sequences, k):
    """Return the share of each k-mer in each sequence. (n, 4^k)"""
    places = {"".join(letters): i for i, letters in enumerate(itertools.product("ACGT", repeat=k))}
    table = np.zeros((len(sequences), len(places)))
    for row, sequence in zip(table, sequences, strict=True):
        for i in range(len(sequence) - k + 1):
            if sequence[i : i + k] in places:
                row[places[sequence[i : i + k]]] += 1
    return table / np.maximum(table.sum(axis=1, keepdims=True), 1)


def measure(table, kinds, contigs):
    """Return accuracy of a linear probe for the three kinds and for coding against intergenic, and the silhouette.

    Probes are tested on chromosomes that they were not trained on, five folds; columns are standardised.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    folds, two = GroupKFold(5), np.isin(kinds, ["coding", "intergenic"])
    three = cross_val_score(probe, table, kinds, groups=contigs, cv=folds).mean()
    pair = cross_val_score(probe, table[two], kinds[two], groups=contigs[two], cv=folds).mean()
    return three, pair, silhouette_score(StandardScaler().fit_transform(table), kinds)


def draw(path, panels, rows, kinds, last):
    """Draw a PCA of each panel (name, table), and the accuracy by layer beside the baselines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels) + 1, figsize=(12.6, 4.2), layout="constrained")
    order = np.random.default_rng(0).permutation(len(kinds))
    for axis, (name, table) in zip(axes, panels, strict=False):
        pca = PCA(2, random_state=0)
        points = pca.fit_transform(StandardScaler().fit_transform(table))
        shares = 100 * pca.explained_variance_ratio_
        axis.scatter(*points[order].T, c=[COLOURS[kind] for kind in kinds[order]], s=9, alpha=0.55, linewidths=0)
        for kind in KINDS:
            middle = points[kinds == kind].mean(axis=0)
            axis.scatter(*middle, c=COLOURS[kind], s=130, edgecolors="white", linewidths=1.5, label=kind)
        (low, high) = np.percentile(points, [0.5, 99.5], axis=0)
        axis.set(title=name, xlabel=f"component 1 ({shares[0]:.0f} %)", ylabel=f"component 2 ({shares[1]:.0f} %)",
                 xlim=(low[0], high[0]), ylim=(low[1], high[1]))  # fmt: skip
    axes[0].legend(loc="best", fontsize=9, title="large: mean of the kind", title_fontsize=8)
    axis = axes[-1]
    layers = [row for row in rows if row["features"].startswith("layer")]
    for column, colour, words in (("coding_intergenic", "#000000", "coding / intergenic"),
                                  ("three_kinds", "#CC79A7", "three kinds")):  # fmt: skip
        axis.plot(range(len(layers)), [row[column] for row in layers], "o-", color=colour, label=words)
        for name, dash in (("3-mers", "--"), ("GC", ":")):
            axis.axhline(next(row[column] for row in rows if row["features"] == name), color=colour, ls=dash, lw=1)
    axis.set(title="accuracy on other chromosomes", xlabel=f"layer (0 embedding, {last} final norm)", ylim=(0.3, 1))
    axis.set_xticks(range(last + 1))
    for name, dash in (("same, 3-mers", "--"), ("same, GC alone", ":")):
        axis.plot([], [], color="#666666", linestyle=dash, linewidth=1, label=name)
    axis.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fasta", required=True)
    parser.add_argument("--gff", required=True)
    parser.add_argument("--scratch", required=True, help="folder for windows and vectors; what is there is used again")
    parser.add_argument("--model", default="base")
    parser.add_argument("--width", type=int, default=300)
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    scratch = Path(options.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    with open_genome(options.fasta) as genome:
        windows = choose_windows(read_gff(options.gff), genome.contigs, options.width, options.count)
        sequences = [genome.fetch(*window[:3]) for window in windows]
    sequences = [reverse_complement(s) if w[4] == "-" else s for s, w in zip(sequences, windows, strict=True)]
    bed, vectors = scratch / "windows.bed", scratch / "windows.npz"
    bed.write_text("".join(f"{c}\t{a}\t{b}\t{kind}\t0\t{strand}\n" for c, a, b, kind, strand in windows))
    model = load_model(options.model)
    last = model.config.num_hidden_layers + 1
    if not vectors.exists():
        layers = list(range(last + 1))
        embed(bed, options.fasta, vectors, model=model, layer=layers, progress=start_progress("embed"))
    with np.load(vectors) as table:
        kinds, contigs = table["name"], table["contig"]
        by_layer = {f"layer {i}": table[f"layer_{i}"].astype(float) for i in range(last + 1)}
    tables = {"GC": np.array([[(s.count("G") + s.count("C")) / len(s)] for s in sequences])}
    tables |= {f"{k}-mers": count_kmers(sequences, k) for k in (1, 2, 3, 4, 5)} | by_layer
    rows = []
    for name, table in tables.items():
        three, pair, silhouette = measure(table, kinds, contigs)
        rows.append({"features": name, "three_kinds": round(three, 3), "coding_intergenic": round(pair, 3),
                     "silhouette": round(silhouette, 3)})  # fmt: skip
    with open(FOLDER / "embeddings.tsv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    panels = [(f"{options.model}, layer {last} (default)", by_layer[f"layer {last}"]), ("3-mers", tables["3-mers"])]
    draw(FOLDER / "embeddings.png", panels, rows, kinds, last)


if __name__ == "__main__":
    main()
