"""A report on designs as one HTML file that needs nothing else: pictures lie in it as data.

certificates, reference -> numbers, distances, spectra -> figures as PNG -> HTML
"""

import base64
import html
import io

import numpy as np

from hybridna_core.certificate import SETTINGS
from hybridna_core.errors import SystemFault, UsageError
from hybridna_core.logo import add_letters
from hybridna_core.metrics import jensen_shannon, kmer_spectrum, pairwise_distances

K = 4
# Designs whose distances are all computed, lines of the table of designs, and bases per row of the logo.
PAIRS_LIMIT, ROWS_SHOWN, LOGO_BASES = 500, 100, 100
DESIGNS, KNOWN, GREY = "#0072B2", "#D55E00", "#444444"
_STYLE = (
    "body{font:15px/1.45 sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:.6em 0}td,th{padding:.15em .7em;text-align:left}"
    "td,th{border-bottom:1px solid #ddd}"
    "td.n{text-align:right}code{font-size:11px;word-break:break-all}img{max-width:100%}h2{margin-top:1.6em}"
)


def check_report(path):
    """Raise UsageError for a name that is no HTML's, SystemFault without matplotlib."""
    if not str(path).lower().endswith((".html", ".htm")):
        raise UsageError("the report is HTML", where=str(path), hint="end its name in .html")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        hint = "pip install 'hybridna[plots]'"
        raise SystemFault("--report needs matplotlib, which is not installed", hint=hint) from None


def spell_report(certificates, known):
    """Return the HTML of a report.

    certificates  list of Certificate, of prompts without designs too
    known         bases of the sequences to compare with, None without any
    """
    designs = [c for c in certificates if c.fields["status"] == "ok"]
    known = [bases for bases in known or () if bases] or None
    sequences = [c.sequence for c in designs]
    distances = pairwise_distances(sequences[:PAIRS_LIMIT])
    parts = [
        "<h1>Designs</h1>",
        _table(_facts(designs, len(certificates) - len(designs), distances, known)),
        "<h2>Distributions</h2>",
        _picture(_draw_distributions(designs, known), "histograms"),
        f"<h2>{K}-mers</h2>",
        _picture(_draw_spectrum(sequences, known), f"shares of {K}-mers"),
    ]
    if len(distances):
        parts += ["<h2>Diversity</h2>", _picture(_draw_distances(designs, distances), "histogram of distances")]
    if len({len(sequence) for sequence in sequences}) == 1:
        note = "<p>Letters: bits per position, 2 less the entropy of the designs' bases there.</p>"
        parts += ["<h2>Logo</h2>", note, _picture(_draw_logo(sequences), "sequence logo")]
    shown = f"<p>The first {ROWS_SHOWN} of {len(designs):,}.</p>" if len(designs) > ROWS_SHOWN else ""
    parts += ["<h2>Sequences</h2>", shown, _list(designs[:ROWS_SHOWN])]
    head = f'<meta charset="utf-8"><title>hybridna generate</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _numbers(designs, key):
    return np.array([float(c.fields[key]) for c in designs if key in c.fields])


def _facts(designs, unusable, distances, known):
    """Return rows (name, value) of what is common to all designs and of their means."""
    first, facts = designs[0].fields, [("sequences", f"{len(designs):,}")]
    facts.append(("distinct", f"{len({c.sequence for c in designs}):,}"))
    if unusable:
        facts.append(("prompts without designs", f"{unusable:,}"))
    facts += [(key.replace("_", " "), first[key]) for key in ("label", "model", *SETTINGS) if key in first]
    names = {
        "log_prob": "log-probability, nats", "posterior": "posterior of the label", "gc": "share of G and C",
        "longest_homopolymer": "longest run", "design_distance": "edit distance to the nearest design",
        "reference_distance": "edit distance to the nearest known sequence",
    }  # fmt: skip
    for key, name in names.items():
        values = _numbers(designs, key)
        if len(values):
            facts.append((name, f"mean {values.mean():.3f}, {values.min():g} to {values.max():g}"))
    if len(distances):
        facts.append(("mean edit distance of two designs", f"{distances.mean():.2f}"))
    if known is not None:
        found = (kmer_spectrum(texts, K) for texts in ([c.sequence for c in designs], known))
        facts.append((f"{K}-mers from known sequences", f"Jensen-Shannon distance {jensen_shannon(*found):.3f}"))
        facts.append(("known sequences", f"{len(known):,}"))
    return facts


def _table(rows):
    cells = (f"<tr><th>{html.escape(str(a))}</th><td>{html.escape(str(b))}</td></tr>" for a, b in rows)
    return f"<table>{''.join(cells)}</table>"


def _list(designs):
    columns = [key for key in ("log_prob", "posterior", "gc", "longest_homopolymer", "design_distance",
                               "nearest_reference", "reference_distance") if key in designs[0].fields]  # fmt: skip
    head = "".join(f"<th>{key.replace('_', ' ')}</th>" for key in ("name", *columns, "sequence"))
    lines = []
    for design in designs:
        record = dict(word.split("=", 1) for word in design.to_record().split("\n", 1)[0].split()[1:])
        cells = "".join(f'<td class="n">{html.escape(record.get(key, "."))}</td>' for key in columns)
        lines.append(f"<tr><td>{html.escape(design.name)}</td>{cells}<td><code>{design.sequence}</code></td></tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _figure(width, height, **layout):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**layout)


def _picture(figure, words):
    """Return an image tag that holds the picture itself."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    return f'<img alt="{words}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _tidy(axes, name, count="designs"):
    axes.set_xlabel(name)
    axes.set_ylabel(count)
    axes.spines[["top", "right"]].set_visible(False)


def _gc(sequence):
    letters = sum(sequence.count(base) for base in "ACGT")
    return (sequence.count("G") + sequence.count("C")) / max(letters, 1)


def _draw_distributions(designs, known):
    """Draw a histogram for each number that a certificate has; GC beside that of known sequences."""
    names = {
        "log_prob": "log-probability, nats", "gc": "share of G and C", "longest_homopolymer": "longest run, bp",
        "posterior": "posterior of the label", "reference_distance": "edit distance to the nearest known",
    }  # fmt: skip
    present = [key for key in names if len(_numbers(designs, key))]
    figure, grid = _figure(10.5, 2.7 * -(-len(present) // 3), nrows=-(-len(present) // 3), ncols=3, squeeze=False)
    for axes, key in zip(grid.flat, present, strict=False):
        values = _numbers(designs, key)
        is_count = key in ("longest_homopolymer", "reference_distance")
        bins = np.arange(values.min() - 0.5, values.max() + 1.5) if is_count and np.ptp(values) < 60 else 24
        if key == "gc":
            # Shares such as 0.3 lie within a bin, not on the edge of two.
            bins = np.arange(-0.0125, 1.02, 0.025)
            if known is not None:
                shares = [_gc(bases) for bases in known]
                axes.hist(shares, bins=bins, weights=np.full(len(shares), len(values) / len(shares)), color=KNOWN,
                          histtype="step", linewidth=1.3, label="known, scaled")  # fmt: skip
        axes.hist(values, bins=bins, color=DESIGNS, alpha=0.75, label="designs")
        if key == "gc" and known is not None:
            axes.legend(fontsize=8, frameon=False)
        _tidy(axes, names[key])
    for axes in list(grid.flat)[len(present) :]:
        axes.set_visible(False)
    return figure


def _draw_spectrum(sequences, known):
    """Draw the share of each k-mer, against that among known sequences where there are any."""
    own, words = kmer_spectrum(sequences, K), _kmers()
    if known is None:
        figure, axes = _figure(10.5, 3)
        best = np.argsort(-own, kind="stable")[:40]
        axes.bar(range(len(best)), own[best], color=DESIGNS)
        axes.axhline(4.0**-K, color=GREY, linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(best)), [words[i] for i in best], rotation=90, fontsize=8, family="monospace")
        _tidy(axes, f"the 40 most frequent {K}-mers; dashed: all alike", "share")
        return figure
    theirs = kmer_spectrum(known, K)
    figure, axes = _figure(5.2, 5)
    floor = min(own[own > 0].min(), theirs[theirs > 0].min()) / 2
    x, y = np.maximum(theirs, floor), np.maximum(own, floor)
    axes.plot(x, y, "o", color=DESIGNS, markersize=3.5, alpha=0.6, markeredgewidth=0)
    axes.plot([floor, 1], [floor, 1], color=GREY, linewidth=0.8)
    for i in np.argsort(-np.abs(np.log(y / x)), kind="stable")[:5]:
        axes.annotate(words[i], (x[i], y[i]), fontsize=7, xytext=(3, 2), textcoords="offset points")
    top = 1.4 * max(x.max(), y.max())
    axes.set(xscale="log", yscale="log", xlim=(floor * 0.8, top), ylim=(floor * 0.8, top))
    axes.set_title(f"correlation {np.corrcoef(own, theirs)[0, 1]:.3f}", fontsize=10)
    _tidy(axes, f"share of the {K}-mer in known sequences", "in designs")
    return figure


def _kmers():
    words = [""]
    for _ in range(K):
        words = [word + base for word in words for base in "ACGT"]
    return words


def _draw_distances(designs, distances):
    """Draw the edit distances of every two designs, and of each to its nearest."""
    figure, (left, right) = _figure(10.5, 2.7, ncols=2)
    bins = np.arange(-0.5, distances.max() + 1.5) if distances.max() < 60 else 40
    left.hist(distances, bins=bins, color=DESIGNS, alpha=0.75)
    note = f", first {PAIRS_LIMIT}" if len(designs) > PAIRS_LIMIT else ""
    _tidy(left, f"edit distance of two designs{note}", "pairs")
    right.hist(_numbers(designs, "design_distance"), bins=bins, color=DESIGNS, alpha=0.75)
    _tidy(right, "edit distance to the nearest design")
    return figure


def _draw_logo(sequences):
    """Draw the information of each position, rows of LOGO_BASES positions."""
    letters = np.array([list(sequence) for sequence in sequences])
    shares = np.stack([(letters == base).mean(axis=0) for base in "ACGT"], axis=1)
    entropy = -np.sum(shares * np.log2(np.where(shares > 0, shares, 1)), axis=1)
    heights = shares * (2 - entropy)[:, None]
    rows = -(-len(shares) // LOGO_BASES)
    figure, grid = _figure(10.5, 1.25 * rows + 0.3, nrows=rows, squeeze=False)
    for number, axes in enumerate(grid[:, 0]):
        first = number * LOGO_BASES
        stacks = []
        for offset, column in enumerate(heights[first : first + LOGO_BASES]):
            below = 0.0
            for base in np.argsort(column, kind="stable"):
                stacks.append(("ACGT"[base], first + offset + 0.56, below, column[base]))
                below += column[base]
        add_letters(axes, stacks)
        axes.set_xlim(first + 0.5, first + min(LOGO_BASES, len(shares)) + 0.5)
        axes.set_ylim(0, 2)
        axes.set_ylabel("bits")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
