"""How often each contig was read in training.

places of the windows of each step -> windows and bases per species and contig -> ledger.tsv
"""

import os

import numpy as np

from hybridna_core.data.inputs import warn

COLUMNS = ("species", "contig", "train_bases", "windows", "bases", "passes")


def count_places(ledger, places):
    """Add windows to a ledger: species -> contig -> [windows, bases]."""
    for place in places:
        entry = ledger.setdefault(place.species, {}).setdefault(place.contig, [0, 0])
        entry[0] += 1
        entry[1] += place.end - place.start


def spell_ledger(ledger, species):
    """Spell a ledger as TSV: one line per contig that is trained on, in the order of run file and genome.

    train_bases are the contig's known bases that are not held out or excluded; passes the bases read per such base.
    """
    lines = ["\t".join(COLUMNS) + "\n"]
    for one in species:
        counts, store, train = ledger.get(one.name, {}), one.train.store, one.train
        known = np.zeros(len(store.lengths), dtype=np.int64)
        np.add.at(known, train.contigs, train.ends - train.starts - store.count_unknown(train.starts, train.ends))
        for contig in np.unique(train.contigs).tolist():
            name, bases = store.name(contig), int(known[contig])
            windows, read = counts.get(name, (0, 0))
            lines.append(f"{one.name}\t{name}\t{bases}\t{windows}\t{read}\t{read / max(1, bases):.4f}\n")
    return "".join(lines)


def write_ledger(path, ledger, species):
    """Write the ledger of a run beside its snapshots; one that cannot be written costs a warning, never the run."""
    temporary = path.with_suffix(".partial")
    try:
        temporary.write_text(spell_ledger(ledger, species), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        warn("ledger", f"{path}: could not be written: {error.strerror}")
