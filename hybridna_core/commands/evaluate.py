"""How well a model does on two tasks, with simple baselines beside it.

genome: run.toml -> training bases -> Markov counts; held-out bases -> windows -> bits per base of model and baselines
coding: FASTA, CDS -> single-base changes and their classes -> log-likelihood ratios -> AUROC of model and baselines
"""

import collections
import hashlib
import os
import time
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.writers import check_output, is_stdout, open_output
from hybridna_core.errors import DataError, UsageError
from hybridna_core.run_config import read_run

STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0)
# Of the baseline beside coding changes: two codons.
MARKOV_ORDER = 5


class HeldOut(NamedTuple):
    """One held-out set: bases measured, and their bits per base.

    markov           one per order, counted on the training bases
    compressor, by   of an outside compressor where there is one, else xz; and what it was
    adaptive         of an adaptive mixture of orders that learns from the measured bases alone
    """

    name: str
    bases: int
    model: float
    markov: tuple[float, ...]
    compressor: float
    by: str
    adaptive: float

    @property
    def best_markov(self):
        """Order and bits per base of the best Markov model; the baseline gets the benefit of choosing here."""
        order = int(np.argmin(self.markov))
        return order, self.markov[order]


class GenomeEvaluation(NamedTuple):
    """Bits per base on every held-out set of a run.

    tokens_per_second  of the model, reading windows one by one
    """

    model: str
    model_sha256: str
    window: int
    sets: tuple[HeldOut, ...]
    tokens_per_second: float
    seconds: float

    @property
    def gain(self):
        """Mean over the sets of best Markov model minus model, bits per base."""
        return float(np.mean([s.best_markov[1] - s.model for s in self.sets]))

    def to_dict(self):
        rows = [
            {**s._asdict(), "best_markov_order": s.best_markov[0], "best_markov": s.best_markov[1]} for s in self.sets
        ]
        return {**self._asdict(), "sets": rows, "gain": self.gain if rows else None}

    def table(self):
        """Return column names and rows of cells as text."""
        orders = range(len(self.sets[0].markov) if self.sets else 0)
        columns = ["set", "bases", "model", "best_markov", "best_order", "compressor", "by", "adaptive"]
        rows = []
        for one in self.sets:
            order, best = one.best_markov
            bits = [f"{value:.4f}" for value in (one.model, best, one.compressor, one.adaptive, *one.markov)]
            rows.append([one.name, str(one.bases), *bits[:2], str(order), bits[2], one.by, *bits[3:]])
        return columns + [f"order_{k}" for k in orders], rows


def evaluate_genome(run, output=None, *, model="base", max_bases=500_000, max_order=12, window=None, device="auto",
                    set=(), force=False, rebuild_index=False, other_letters=None, rna=False, allow_missing_eof=False,
                    allow_nonfinite=False, progress=None):  # fmt: skip
    """Measure bits per base on the held-out bases of a run file, beside interpolated Markov models and compressors.

    run        run file: its species with `valid` are measured, the others' training bases are counted
    output     file for the table, TSV or Markdown (.md); `-` is standard output, None: not written
    model      name or folder, or a loaded model
    max_bases  measured per set, in whole windows spread evenly over it; None: all
    window     bases per window; what the model reads at once when None
    rebuild_index, other_letters, rna, allow_missing_eof: as `open_genome` has them, for every FASTA of the run

    Windows stand at steps of half; the second half of each is counted, of a stretch's first window all of it; unknown
    bases are skipped. Markov models count both strands; their strength is the best of a few on the measured bases.
    Compressors and the adaptive mixture get the measured bases joined, and learn from nothing else.
    Returns a GenomeEvaluation; raises as `pretrain` does.
    """
    from hybridna_core.checkpoint import load_model
    from hybridna_core.data.compress import adaptive_bits, outside_bits, xz_bits
    from hybridna_core.data.corpus import load_species
    from hybridna_core.data.markov import MAX_ORDER, MarkovModel

    started = time.monotonic()
    if not 0 <= max_order <= MAX_ORDER:
        raise UsageError(f"is {max_order}, must be 0 to {MAX_ORDER}", where="--max-order")
    if max_bases is not None and max_bases < 1:
        raise UsageError(f"is {max_bases}, must be at least 1", where="--max-bases")
    if window is not None and window < 1:
        raise UsageError(f"is {window}, must be at least 1", where="--window")
    reading = {"rebuild_index": rebuild_index, "other_letters": other_letters, "rna": rna,
               "allow_missing_eof": allow_missing_eof}  # fmt: skip
    run = check_input(run, random_access=True)
    check_report(output, (run,), force)
    species = [load_species(s, **reading) for s in read_run(run, set).species]
    if not any(s.valid_bases for s in species):
        raise DataError("no known base is held out", where=run, hint="give a species `valid`")
    for one in species:
        if one.valid and not one.valid_bases:
            warn("nothing-measured", f"{one.name}: every held-out base is unknown; left out")
    if isinstance(model, str | os.PathLike):
        model = load_model(model, device=device, allow_nonfinite=allow_nonfinite)
    longest = model.config.bases_at_once
    if window is not None and window > longest:
        raise UsageError(f"is {window:,}, but this model reads {longest:,} bases at once", where="--window")
    window = window or longest
    markov = MarkovModel(max_order)
    for one in species:
        for stretch in one.train:
            markov.add(stretch.ids)
    sets, reading, tokens, done = [], 0.0, 0, 0
    held_out = [s for s in species if s.valid_bases]
    chosen = [choose_windows(one.valid, window, max_bases) for one in held_out]
    total = sum(len(places) for places in chosen)
    for one, places in zip(held_out, chosen, strict=True):
        found = []
        for stretch, at in places:
            begun = time.perf_counter()
            found.append(model_bits(model, one.valid[stretch].ids, at, window))
            reading += time.perf_counter() - begun
            tokens += min(window, len(one.valid[stretch].ids) - at)
            done += 1
            if progress:
                progress(done, total, note=one.name)
        found = np.concatenate(found)
        known = int(np.count_nonzero(~np.isnan(found)))
        if not known:
            warn("nothing-measured", f"{one.name}: no known base in the windows measured; left out")
            continue
        due = [
            np.nanmean(np.concatenate([markov_bits(markov, one.valid[w].ids, at, window, s) for w, at in places], 1), 1)
            for s in STRENGTHS
        ]
        per_order = tuple(float(bits) for bits in np.min(due, axis=0))
        measured = np.concatenate([counted_ids(one.valid[w].ids, at, window) for w, at in places])
        compressor, by = outside_bits(measured) or xz_bits(measured)
        adaptive = float(np.mean(adaptive_bits(measured)))
        sets.append(HeldOut(one.name, known, float(np.nanmean(found)), per_order, compressor, by, adaptive))
    rate = tokens / reading if reading else 0.0
    summary = GenomeEvaluation(model.name, model.digest, window, tuple(sets), rate, time.monotonic() - started)
    write_report(output, *summary.table(), force)
    return summary


def check_report(output, inputs, force):
    """Raise UsageError or SystemFault before any work if a table cannot be written to `output`; None is none."""
    if output is None:
        return
    check_output(output, inputs=inputs, force=force)
    if not is_stdout(output) and not str(output).endswith((".tsv", ".md")):
        raise UsageError("the name tells no table format", where=output, hint="end it in .tsv or .md")


def write_report(output, columns, rows, force=False):
    """Write a table of text cells, as Markdown if the name ends in .md, else as TSV."""
    if output is None:
        return
    if str(output).endswith(".md"):
        lines = [columns, ["---"] * len(columns), *rows]
        text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    else:
        text = "".join("\t".join(cells) + "\n" for cells in [columns, *rows])
    with open_output(output, force) as handle:
        handle.write(text.encode())


def choose_windows(stretches, window, max_bases=None):
    """List (stretch number, start) of windows at steps of half; with max_bases, about so many, spread evenly."""
    step = max(1, window // 2)
    places = []
    for number, stretch in enumerate(stretches):
        n = len(stretch.ids)
        places += [(number, at) for at in range(0, max(1, n - window + step), step) if n]
    if max_bases is None or len(places) * step <= max_bases:
        return places
    count = max(1, max_bases // step)
    return [places[i * len(places) // count] for i in range(count)]


def counted(start, length, window):
    """Return the half-open range of a stretch that the window at `start` counts."""
    end = min(start + window, length)
    # Of an odd window the smaller half is counted, so that no base counts twice.
    return (0 if start == 0 else min(start + window - max(1, window // 2), end)), end


def counted_ids(ids, start, window):
    """The bases of a stretch that the window at `start` counts. (n,) uint8"""
    first, end = counted(start, len(ids), window)
    return ids[first:end]


def model_bits(model, ids, start, window):
    """Bits of each base that the window at `start` counts; NaN at unknown ones."""
    import torch

    from hybridna_core.model.likelihood import read

    first, end = counted(start, len(ids), window)
    bos = model.config.bos_token_id
    tokens = torch.from_numpy(ids[start:end].astype(np.int64))
    tokens = tokens if bos is None else torch.cat([torch.tensor([bos]), tokens])
    log_probs, _ = read(model, tokens[None].to(model.device))
    log_probs = log_probs[0].cpu().numpy()[bos is not None :]
    return -log_probs[first - start :] / np.log(2)


def markov_bits(markov, ids, start, window, strength):
    """Bits of the same bases by the Markov models of every order, which read the same window. (order + 1, bases)"""
    first, end = counted(start, len(ids), window)
    return -markov.log2_probs(ids[start:end], strength)[:, first - start :]


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


def count_background(paths, fasta_ref, reading):
    """Count a Markov model of order 5 on FASTA files and on the training bases of run files (.toml)."""
    from hybridna_core.data.corpus import load_species
    from hybridna_core.data.genome import open_genome
    from hybridna_core.data.markov import MarkovModel

    markov = MarkovModel(MARKOV_ORDER)
    for path in paths:
        if str(path).endswith(".toml"):
            for config in read_run(path).species:
                species = load_species(config, **reading)
                if species.train and os.path.samefile(config.fasta, fasta_ref):
                    warn("trained-on", f"{path} trains on {fasta_ref}, so this is no test on a genome unseen")
                for stretch in species.train:
                    markov.add(stretch.ids)
            continue
        if os.path.samefile(path, fasta_ref):
            raise UsageError("is the genome that is measured", where=path, hint="give other genomes as --background")
        with open_genome(path, **reading) as genome:
            for contig, length in genome.contigs.items():
                markov.add(genome.ids(contig, 0, length))
    return markov


def markov_llr(markov, variant, genome, plan):
    """Log-likelihood ratio of a single-base change by a Markov model, mean of both directions; nats."""
    from hybridna_core.data.variants import compare

    _, comparisons = compare(variant, genome, *plan)
    ratios = []
    for one in comparisons:
        before = one.prefix[-markov.order :] if markov.order else one.prefix[:0]
        # Further on both read the same.
        bits = [
            markov.log2_probs(np.concatenate([before, suffix[: markov.order + 1]]))[-1, len(before) :]
            for suffix in (one.alternative, one.reference)
        ]
        ratios.append(np.nansum(bits[0] - bits[1]) * np.log(2))
    return float(np.mean(ratios))


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


class Kept:
    """What was scored before a run was stopped, kept beside an output and read again by the same call.

    rows  one text per change, in order
    """

    def __init__(self, output, facts):
        self.path = None if output is None or is_stdout(output) else f"{os.fspath(output)}.part"
        self.key = hashlib.sha256(repr(facts).encode()).hexdigest()
        self.rows, self.handle = [], None

    def __enter__(self):
        if self.path is None:
            return self
        lines, size = [], 0
        if os.path.exists(self.path):
            with open(self.path, "rb") as handle:
                lines = [line for line in handle if line.endswith(b"\n")]
        if lines and lines[0].decode("ascii", "replace").strip() == self.key:
            self.rows = [line.decode("ascii").strip() for line in lines[1:]]
            size = sum(map(len, lines))
        elif lines:
            warn("other-run", f"{self.path} is of another run; starting anew")
        self.handle = open(self.path, "ab")
        # A line that was cut when the run ended is done again.
        self.handle.truncate(size)
        if not size:
            self.handle.write(f"{self.key}\n".encode())
        return self

    def __exit__(self, *_):
        if self.handle is not None:
            self.handle.close()

    def add(self, row):
        self.rows.append(row)
        if self.handle is not None:
            self.handle.write(f"{row}\n".encode())
            self.handle.flush()

    def finish(self):
        """Remove the file, as the output is whole."""
        if self.path is not None:
            os.unlink(self.path)


def read_number(text):
    """Return a kept score, or None for a reason why there is none."""
    try:
        return float(text)
    except ValueError:
        return None
