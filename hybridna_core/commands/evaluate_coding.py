"""How well a model tells changes that end a protein from those that do not alter it, with simple baselines beside it.

FASTA, CDS -> single-base changes and their classes -> log-likelihood ratios -> AUROC of model and baselines
"""

import collections
import os
import time
from typing import NamedTuple

import numpy as np

from hybridna_core.baselines import count_background, markov_llr
from hybridna_core.data.inputs import check_input
from hybridna_core.data.writers import check_output, open_output
from hybridna_core.errors import UsageError
from hybridna_core.reports import Kept, check_report, write_report


class Auroc(NamedTuple):
    """How well one score tells a class from synonymous changes.

    score      hybridna, markov or regression
    against    the class that should score higher
    strata     what is held equal within a pair: all (nothing), substitution, codon_position, or both
    auroc      None where nothing can be compared
    low, high  bounds of the 95 % bootstrap interval, transcripts drawn whole
    compared   changes of the class that have a synonymous one in their stratum, of `changes`
    """

    score: str
    against: str
    strata: str
    auroc: float | None
    low: float | None
    high: float | None
    compared: int
    changes: int
    synonymous: int


class CodingEvaluation(NamedTuple):
    """AUROCs of a model and of its baselines on coding changes; `left_out` counts changes without a score by reason."""

    model: str
    model_sha256: str
    window: int
    horizon: int
    codon_table: int
    counts: dict
    left_out: dict
    aurocs: tuple[Auroc, ...]
    seconds_per_variant: float | None
    seconds: float

    def to_dict(self):
        return {**self._asdict(), "aurocs": [one._asdict() for one in self.aurocs]}

    def table(self):
        """Return column names and rows of cells as text."""
        rows = [["." if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in one]
                for one in self.aurocs]  # fmt: skip
        return list(Auroc._fields), rows


class Change(NamedTuple):
    """One coding change with what is written of it; ref and alt on the contig, codon and substitution on its strand."""

    contig: str
    pos: int
    ref: str
    alt: str
    kind: str
    transcript: str
    strand: str
    codon_position: int
    codon: str
    substitution: str


def evaluate_coding(
    fasta_ref, cds, output=None, *, model="base", variants=None, codon_table=1, contigs=(), sites=1000, missense=0,
    background=(), window=1024, horizon=None, seed=0, device="auto", dtype="float32", force=False,
    rebuild_index=False, other_letters=None, rna=False, allow_missing_eof=False, allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Measure how well -HD_LLR tells stop-gained from synonymous single-base changes in coding sequence.

    fasta_ref    the genome, plain or bgzip
    cds          GFF3 or BED of its coding sequence, as data.coding reads it
    output       file for the table of AUROCs, TSV or Markdown (.md); `-` is standard output, None: not written
    variants     file for one line per change, TSV; while it is made, `variants` with .part behind it keeps the scores
                 so far, and the same call goes on from there
    codon_table  number of the genetic code
    contigs      names to draw from; all when empty
    sites        changes drawn of stop-gained and of synonymous each; None: all of them
    missense     further changes drawn of missense
    background   FASTA files, or run files whose training bases are meant, that the Markov model of order 5 counts,
                 both strands; without any there is no such row
    window, horizon  as score_variants has them
    Returns a CodingEvaluation; raises HybriDNAError kinds.

    Beside -HD_LLR stand the same ratio by the Markov model, and a logistic regression on substitution and codon
    position that never saw the transcript it judges; of it, only changes judged by one and the same fit are compared.
    Within strata only changes of the same substitution (coding
    strand), codon position, or both are compared.
    """
    from hybridna_core.checkpoint import load_model
    from hybridna_core.data import coding
    from hybridna_core.data.genome import open_genome
    from hybridna_core.scoring import Scorer, make_plan

    started = time.monotonic()
    for name, value, least in (("--sites", sites, 1), ("--missense", missense, 0), ("--seed", seed, 0)):
        if value is not None and value < least:
            raise UsageError(f"is {value:,}, must be at least {least}", where=name)
    code = coding.genetic_code(codon_table)
    inputs = [check_input(path, random_access=True) for path in (fasta_ref, cds, *background)]
    check_report(output, inputs, force)
    if variants is not None:
        check_output(variants, inputs=[*inputs, *([] if output is None else [output])], force=force)
    reading = {"rebuild_index": rebuild_index, "other_letters": other_letters, "rna": rna,
               "allow_missing_eof": allow_missing_eof}  # fmt: skip
    counts = {coding.STOP_GAINED: sites, coding.SYNONYMOUS: sites, **({coding.MISSENSE: missense} if missense else {})}
    with open_genome(fasta_ref, **reading) as genome:
        transcripts = coding.read_transcripts(cds, genome, list(contigs) or None)
        found = coding.enumerate_variants(genome, transcripts, code, tuple(counts))
        found = coding.sample_variants(found, counts, seed)
        changes, alleles = spell_changes(found, transcripts, genome)
        if isinstance(model, str | os.PathLike):
            model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
        plan = make_plan(model.config, window, horizon, 1)
        markov = count_background(background, fasta_ref, reading) if background else None
        scorer = Scorer(model, genome, plan)
        names = list(dict.fromkeys(one.contig for one in changes))
        facts = [model.digest, str(model.dtype), *plan, *((name, genome.digest(name)) for name in names), *changes]
        llrs, left_out, fresh, begun = [], collections.Counter(), 0, time.perf_counter()
        with Kept(variants, facts) as kept:
            for number, allele in enumerate(alleles):
                if number >= len(kept.rows):
                    score = scorer.score(allele)
                    kept.add(score.status if score.llr is None else repr(score.llr))
                    fresh += 1
                llrs.append(read_number(kept.rows[number]))
                if llrs[-1] is None:
                    left_out[kept.rows[number]] += 1
                if progress is not None:
                    progress(number + 1, len(alleles))
            scoring = time.perf_counter() - begun
            chosen = [i for i, value in enumerate(llrs) if value is not None]
            rows = [changes[i] for i in chosen]
            scores = {"hybridna": np.array([llrs[i] for i in chosen])}
            if markov is not None:
                scores["markov"] = np.array([markov_llr(markov, alleles[i].variant, genome, plan) for i in chosen])
            aurocs, odds = judge_changes(rows, scores)
            counted = collections.Counter(one.kind for one in rows)
            summary = CodingEvaluation(
                model.name, model.digest, plan.window, plan.horizon, codon_table,
                {kind: counted[kind] for kind in coding.CLASSES}, dict(left_out), aurocs,
                scoring / fresh if fresh else None, time.monotonic() - started,
            )  # fmt: skip
            write_report(output, *summary.table(), force)
            if variants is not None:
                write_changes(variants, rows, {**scores, "regression": odds}, force)
                kept.finish()
    return summary


def spell_changes(found, transcripts, genome):
    """Turn CodingVariants into Changes and the Alleles that are scored, in order of place."""
    from hybridna_core.data.coding import CLASSES, spell_codon
    from hybridna_core.data.variants import Allele, Piece, Variant
    from hybridna_core.tokenizer import encode, reverse_complement

    rank = {name: i for i, name in enumerate(genome.contigs)}
    pairs = []
    for number, start, ref, alt, place, codon, kind in zip(*(column.tolist() for column in found), strict=True):
        one = transcripts[number]
        ref, alt = "ACGT"[ref], "ACGT"[alt]
        there, put = (ref, alt) if one.strand == "+" else (reverse_complement(ref), reverse_complement(alt))
        change = Change(one.contig, start + 1, there, put, CLASSES[kind], one.name, one.strand, place,
                        spell_codon(codon), f"{ref}>{alt}")  # fmt: skip
        variant = Variant(one.contig, start, start + 1, (Piece(0, 1, ids=encode(put)),))
        pairs.append((change, Allele("ok", variant)))
    pairs.sort(key=lambda pair: (rank[pair[0].contig], pair[0].pos, pair[0].alt))
    return [change for change, _ in pairs], [allele for _, allele in pairs]


def judge_changes(rows, scores):
    """Return the Aurocs of every score, and each change's log-odds of stop-gained by the regression, NaN for missense.

    rows    list of Change
    scores  name -> (n,) log-likelihood ratios
    """
    from hybridna_core.metrics import auroc, auroc_interval, cross_validate

    kind = np.array([one.kind for one in rows])
    substitution = np.array([one.substitution for one in rows])
    place = np.array([str(one.codon_position) for one in rows])
    clusters = np.array([f"{one.contig} {one.transcript}" for one in rows])
    both = np.char.add(np.char.add(substitution, " "), place)
    strata = {"all": np.full(len(rows), ""), "substitution": substitution, "codon_position": place, "both": both}
    features = np.column_stack([substitution == value for value in np.unique(substitution)]
                               + [place == value for value in np.unique(place)])  # fmt: skip
    found, odds = [], np.full(len(rows), np.nan)
    for against in ("stop_gained", "missense"):
        used = np.isin(kind, (against, "synonymous"))
        positive = kind[used] == against
        if positive.all() or not positive.any():
            continue
        regression, fold = cross_validate(features[used], positive, clusters[used])
        if against == "stop_gained":
            odds[used] = regression
        for name, values in {**{n: -v[used] for n, v in scores.items()}, "regression": regression}.items():
            for held, labels in strata.items():
                labels = labels[used]
                if name == "regression":
                    labels = np.char.add(np.char.add(labels, " "), fold.astype(str))
                compared = int(np.isin(labels[positive], labels[~positive]).sum())
                numbers = [None] * 3
                if compared:
                    interval = auroc_interval(values, positive, clusters[used], strata=labels)
                    numbers = [auroc(values, positive, strata=labels), *interval]
                changes, others = int(positive.sum()), int((~positive).sum())
                found.append(Auroc(name, against, held, *numbers, compared, changes, others))
    return tuple(found), odds


def write_changes(path, rows, scores, force):
    """Write one line per change: where and what it is, then the scores; log-likelihood ratios in nats."""
    names = {"hybridna": "llr", "markov": "markov_llr", "regression": "regression_log_odds"}
    lines = [[*("class" if f == "kind" else f for f in Change._fields), *(names[name] for name in scores)]]
    for number, one in enumerate(rows):
        values = [values[number] for values in scores.values()]
        lines.append([*map(str, one), *("" if np.isnan(v) else f"{v:.9g}" for v in values)])
    with open_output(path, force) as handle:
        handle.write("".join("\t".join(cells) + "\n" for cells in lines).encode())


def read_number(text):
    """Return a kept score, or None for a reason why there is none."""
    try:
        return float(text)
    except ValueError:
        return None
