"""Simple scores of the same variants, to set beside a model's: a Markov model's ratio, GC gained, transitions.

FASTA, run files -> Markov counts; Variant -> what is read of both alleles -> a number
"""

import os

import numpy as np

from hybridna_core.data.inputs import warn
from hybridna_core.data.variants import Haplotype, compare
from hybridna_core.errors import UsageError
from hybridna_core.run_config import read_run
from hybridna_core.tokenizer import A, C, G, T

# Two codons.
MARKOV_ORDER = 5


def count_background(paths, fasta_ref, reading):
    """Count a Markov model of order 5 on FASTA files and on the training bases of run files (.toml).

    fasta_ref  the genome that is measured, which may not be among the FASTA files; None if that is for others to see to
    """
    from hybridna_core.data.corpus import load_species
    from hybridna_core.data.genome import open_genome
    from hybridna_core.data.markov import MarkovModel

    def is_measured(path):
        return fasta_ref is not None and os.path.samefile(path, fasta_ref)

    markov = MarkovModel(MARKOV_ORDER)
    for path in paths:
        if str(path).endswith(".toml"):
            for config in read_run(path).species:
                species = load_species(config, **reading)
                if species.train and is_measured(config.fasta):
                    warn("trained-on", f"{path} trains on {fasta_ref}, so this is no test on a genome unseen")
                for stretch in species.train:
                    markov.add(stretch.ids)
            continue
        if is_measured(path):
            raise UsageError("is the genome that is measured", where=path, hint="give other genomes as --background")
        with open_genome(path, **reading) as genome:
            for contig, length in genome.contigs.items():
                markov.add(genome.ids(contig, 0, length))
    return markov


def markov_llr(markov, variant, genome, plan):
    """Log-likelihood ratio by a Markov model over the same bases that a model counts, mean of the directions; nats."""
    _, comparisons = compare(variant, genome, *plan)
    ratios = []
    for one in comparisons:
        before = one.prefix[-markov.order :] if markov.order else one.prefix[:0]
        alternative, reference = one.alternative, one.reference
        if len(alternative) == len(reference):
            # Further on both read the same.
            end = np.flatnonzero(alternative != reference)[-1] + 1 + markov.order
            alternative, reference = alternative[:end], reference[:end]
        bits = [
            np.nansum(markov.log2_probs(np.concatenate([before, suffix]))[-1, len(before) :])
            for suffix in (alternative, reference)
        ]
        ratios.append((bits[0] - bits[1]) * np.log(2))
    return variant.sign * float(np.mean(ratios))


def gc_change(variant, genome):
    """Return how many more G and C the alternative has than the reference."""
    before, after = _spell(variant, genome)
    return variant.sign * int(np.isin(after, (C, G)).sum() - np.isin(before, (C, G)).sum())


def is_transition(variant, genome):
    """Return whether A and G, or C and T, change places at one base and all else stays."""
    before, after = _spell(variant, genome)
    if len(before) != len(after):
        return False
    (changed,) = np.nonzero(before != after)
    return len(changed) == 1 and {before[changed[0]], after[changed[0]]} in ({A, G}, {C, T})


def _spell(variant, genome):
    """Return the ids of the changed stretch, reference and alternative."""
    after = Haplotype(genome, variant.contig, variant.pieces)
    return genome.ids(variant.contig, variant.start, variant.end), after.ids(0, after.length)
