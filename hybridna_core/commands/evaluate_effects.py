"""How well scores of variants go with measured effects, beside simple scores of the same alleles.

VCF, genome -> alleles with what was measured of them -> Scorer, or scores that INFO holds -> Spearman's correlation and
AUROC with bootstrap intervals, over all, within groups and of each group
"""

import collections
import os
import time
from typing import NamedTuple

import numpy as np

from hybridna_core.baselines import count_background, gc_change, is_transition, markov_llr
from hybridna_core.data.genome import open_genome, read_renames
from hybridna_core.data.inputs import check_input
from hybridna_core.data.judging import GUARD_RECORDS, check_contigs, guard, judge
from hybridna_core.data.measured import read_condition, read_number, read_text
from hybridna_core.data.variants import SCORED, Allele
from hybridna_core.data.vcf import INFO_KEY, VcfReader
from hybridna_core.data.writers import check_output, open_output
from hybridna_core.errors import DataError, UsageError, nearest
from hybridna_core.reports import Kept, check_report, write_report

# HD_LLR and its directions, as score-variants names them.
MODEL_SCORES = ("HD_LLR", "HD_FWD", "HD_REV")


class Measure(NamedTuple):
    """How well one score goes with one thing measured.

    score      with its sign: -HD_LLR counts up where HD_LLR falls, |HD_LLR| is its size
    statistic  spearman or auroc
    against    what was measured: an INFO key, its size |KEY|, or the condition of the positives
    scope      all: all alleles together; within: compared only within groups; group: one group alone
    group      its name, of the last kind
    value      None where `reason` says why there is none
    low, high  bounds of the 95 % bootstrap interval, `clusters` drawn whole: groups, else places; of one group places
    """

    score: str
    statistic: str
    against: str
    scope: str
    group: str
    value: float | None
    low: float | None
    high: float | None
    alleles: int
    positives: int | None
    clusters: int
    reason: str


class EffectsEvaluation(NamedTuple):
    """How well a model and simple scores go with measured effects.

    model       None where the scores are those of the VCF
    records, alleles  of the VCF; `measured` of the alleles were used, `places` are where they lie
    left_out    reason -> alleles
    seconds_per_allele, tokens_per_second  of those that the model scored in this call
    """

    model: str | None
    model_sha256: str | None
    window: int
    horizon: int
    stride: int
    records: int
    alleles: int
    measured: int
    places: int
    groups: int | None
    left_out: dict
    measures: tuple[Measure, ...]
    seconds_per_allele: float | None
    tokens_per_second: float | None
    seconds: float

    def to_dict(self):
        return {**self._asdict(), "measures": [one._asdict() for one in self.measures]}

    def table(self):
        """Return column names and rows of cells as text."""
        rows = [["NA" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in one]
                for one in self.measures]  # fmt: skip
        return list(Measure._fields), rows


class Row(NamedTuple):
    """One allele and what was measured of it; `scores` are those that INFO holds."""

    contig: str
    pos: int
    ref: str
    alt: str
    group: str | None
    effect: float | None
    is_positive: bool | None
    scores: tuple
    allele: Allele

    @property
    def place(self):
        return f"{self.contig}:{self.pos}"


class Question(NamedTuple):
    """What is to be read of each allele, checked: an INFO key or Condition each, None where nothing is asked."""

    effect: str | None
    positive: object
    negative: object
    where: tuple
    group: str | None
    scores: tuple


def evaluate_effects(
    vcf, fasta_ref, output=None, *, model="base", effect=None, positive=None, negative=None, where=(), group=None,
    each_group=False, score=(), variants=None, background=(), sites=None, draws=1000, window=1024, horizon=None,
    stride=1, seed=0, rename_chrs=None, device="auto", dtype="float32", force=False, rebuild_index=False,
    other_letters=None, rna=False, allow_missing_eof=False, allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Measure how well scores go with effects that were measured: Spearman's correlation, AUROC, or both.

    vcf         VCF or BCF whose INFO holds what was measured; `-` for standard input
    fasta_ref   the genome, plain or bgzip
    output      file for the table, TSV or Markdown (.md); `-` is standard output, None: not written
    effect      INFO key of a number: correlated with the scores, and its size with their sizes
    positive    condition (data.measured.read_condition) of the alleles that AUROC tells from the others; `negative`: of
                these, else from all that do not meet it
    where       conditions that an allele must meet to be used
    group       INFO key of groups, also compared within; each_group: and each alone
    score       INFO keys of scores that the VCF holds already; no model is read then
    variants    file for one line per allele, TSV; while it is made, `variants` with .part behind it keeps the scores so
                far, and the same call goes on from there
    background  FASTA or run files that the Markov model of order 5 counts, or a MarkovModel; without, no such row
    sites       places drawn, all alleles of each; all places when None
    draws       of each bootstrap
    window, horizon, stride  as score_variants has them
    Returns an EffectsEvaluation; raises HybriDNAError kinds.
    """
    from hybridna_core.checkpoint import load_model
    from hybridna_core.scoring import Scorer, make_plan, read_config

    started = time.monotonic()
    question = check_question(effect, positive, negative, where, group, each_group, score)
    for name, value, least in (("--sites", sites, 1), ("--draws", draws, 1), ("--seed", seed, 0)):
        if value is not None and value < least:
            raise UsageError(f"is {value:,}, must be at least {least}", where=name)
    files = background if isinstance(background, list | tuple) else ()
    inputs = [check_input(path, random_access=path is not vcf) for path in (vcf, fasta_ref, *files)]
    check_report(output, inputs, force)
    if variants is not None:
        check_output(variants, inputs=[*inputs, *([] if output is None else [output])], force=force)
    reading = {"rebuild_index": rebuild_index, "other_letters": other_letters, "rna": rna,
               "allow_missing_eof": allow_missing_eof}  # fmt: skip
    plan = make_plan(read_config(model), window, horizon, stride)
    renames = read_renames(rename_chrs) if rename_chrs is not None else {}
    with open_genome(fasta_ref, **reading) as genome:
        rows, records, left_out = read_rows(vcf, genome, renames, question, plan, allow_missing_eof)
        alleles = len(rows) + left_out.total()
        rows = draw_places(rows, sites, seed, left_out)
        markov = background
        if isinstance(background, list | tuple):
            markov = count_background(background, fasta_ref, reading) if background else None
        scores = {key: [row.scores[i] for row in rows] for i, key in enumerate(question.scores)}
        scorer, facts, rates = None, [], (None, None)
        if not scores:
            if isinstance(model, str | os.PathLike):
                model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
            scorer = Scorer(model, genome, plan)
            names = list(dict.fromkeys(row.contig for row in rows))
            facts = [model.digest, str(model.dtype), *plan, *((name, genome.digest(name)) for name in names)]
            facts += [row[:4] for row in rows]
        with Kept(variants if scorer else None, facts) as kept:
            if scorer:
                numbers, rates = score_rows(rows, scorer, kept, progress)
                left_out.update(status for status in numbers if isinstance(status, str))
                chosen = [i for i, one in enumerate(numbers) if not isinstance(one, str)]
                rows = [rows[i] for i in chosen]
                scores = dict(zip(MODEL_SCORES, zip(*(numbers[i] for i in chosen), strict=True), strict=False))
            if not rows:
                raise nothing_left(vcf, left_out)
            if markov is not None:
                scores["markov"] = [markov_llr(markov, row.allele.variant, genome, plan) for row in rows]
            scores["gc_change"] = [gc_change(row.allele.variant, genome) for row in rows]
            scores["transition"] = [is_transition(row.allele.variant, genome) for row in rows]
            genome.check_unchanged()
            scores = {name: np.array(values, dtype=np.float64) for name, values in scores.items()}
            measures = measure_all(rows, scores, question, each_group, draws, seed)
            summary = EffectsEvaluation(
                model.name if scorer else None, model.digest if scorer else None, *plan, records, alleles, len(rows),
                len({row.place for row in rows}), len({row.group for row in rows}) if group else None,
                dict(left_out.most_common()), tuple(measures), *rates, time.monotonic() - started,
            )  # fmt: skip
            write_report(output, *summary.table(), force)
            if variants is not None:
                write_rows(variants, rows, scores, question, force)
            kept.finish()
    return summary


def check_question(effect, positive, negative, where, group, each_group, score):
    """Check what is asked for; return the Question."""
    if effect is None and positive is None:
        what = "nothing to compare the scores with"
        raise UsageError(what, where="--effect", hint="give --effect KEY, or --positive KEY=VALUE")
    if negative is not None and positive is None:
        raise UsageError("needs --positive", where="--negative")
    if each_group and group is None:
        raise UsageError("needs --group", where="--each-group")
    for option, key in (("--effect", effect), ("--group", group), *(("--score", key) for key in score)):
        if key is not None and not INFO_KEY.fullmatch(key):
            raise UsageError(f"{key!r} is no key of INFO", where=option)
    positive = positive and read_condition(positive, "--positive")
    negative = negative and read_condition(negative, "--negative")
    where = tuple(read_condition(text, "--where") for text in where)
    return Question(effect, positive, negative, where, group, tuple(dict.fromkeys(score)))


# From records to rows


def read_rows(vcf, genome, renames, question, plan, allow_missing_eof):
    """Return Rows of what was measured and can be scored, the number of records, and the other alleles by reason."""
    rows, left_out, records = [], collections.Counter(), 0
    with VcfReader(vcf, allow_missing_eof=allow_missing_eof) as reader:
        check_contigs(reader.header, genome, renames, None, False, vcf)
        judged = list(judge(reader.records(), genome, vcf, renames, "w", plan.horizon))
        ahead = judged[:GUARD_RECORDS]
        guard(ahead, len(ahead) < GUARD_RECORDS, reader.header, genome, renames, vcf)
        records, declared = len(judged), reader.header.ids("INFO")
    for record, alleles in judged:
        for index, allele in enumerate(alleles):
            row = read_row(record, index, allele, question, vcf) if allele.status in SCORED else allele.status
            if isinstance(row, str):
                left_out[row] += 1
            else:
                rows.append(row)
    if not rows:
        raise nothing_left(vcf, left_out, question, declared)
    return rows, records, left_out


def read_row(record, index, allele, question, path):
    """Return the Row of an allele, or why it is not used."""
    if not all(condition.holds(record, index, path) for condition in question.where):
        return "not_wanted"
    effect = is_positive = group = None
    if question.effect is not None:
        effect = read_number(record, index, question.effect, path)
    if question.positive is not None:
        is_positive = question.positive.holds(record, index, path)
        if not is_positive and question.negative is not None:
            is_positive = False if question.negative.holds(record, index, path) else None
    if effect is None and is_positive is None:
        return "not_measured"
    if question.group is not None:
        group = read_text(record, index, question.group, path)
        if group is None:
            return "no_group"
    scores = tuple(read_number(record, index, key, path) for key in question.scores)
    if None in scores:
        return "no_score"
    place = (allele.variant.contig, record.pos, record.ref.upper(), record.alts[index].upper())
    return Row(*place, group, effect, is_positive, scores, allele)


def nothing_left(path, left_out, question=None, declared=()):
    """Return the DataError for a file of which no allele can be used."""
    counts = ", ".join(f"{reason} {count:,}" for reason, count in left_out.most_common()) or "no records"
    hint = None
    if question is not None:
        asked = [question.effect, question.group, *question.scores]
        asked += [c.key for c in (question.positive, question.negative, *question.where) if c is not None]
        unknown = [key for key in asked if key is not None and key not in declared]
        if unknown:
            close = nearest(unknown[0], declared)
            hint = f"its header has no INFO {unknown[0]}{f'; did you mean {close}?' if close else ''}"
    return DataError(f"no allele is left to measure ({counts})", where=path, hint=hint)


def draw_places(rows, count, seed, left_out):
    """Keep the rows of so many places, drawn evenly, in their order."""
    places = sorted({row.place for row in rows})
    if count is None or count >= len(places):
        return rows
    drawn = {places[i] for i in np.random.default_rng(seed).choice(len(places), count, replace=False)}
    kept = [row for row in rows if row.place in drawn]
    left_out["not_drawn"] += len(rows) - len(kept)
    return kept


def score_rows(rows, scorer, kept, progress):
    """Return of each row its three numbers, or the status of one without; and seconds per allele, tokens per second.

    Alleles that stand in several rows are scored once. A direction that counts no base stands as 0.
    """
    found, made, begun = [], {}, time.perf_counter()
    for number, row in enumerate(rows):
        if number >= len(kept.rows):
            if row[:4] not in made:
                score = scorer.score(row.allele)
                numbers = (score.llr, score.forward or 0.0, score.reverse or 0.0)
                made[row[:4]] = score.status if score.llr is None else " ".join(map(repr, numbers))
            kept.add(made[row[:4]])
        text = kept.rows[number]
        found.append(tuple(map(float, text.split())) if " " in text else text)
        if progress is not None:
            progress(number + 1, len(rows))
    taken = time.perf_counter() - begun
    return found, (taken / len(made), scorer.tokens / taken) if made else (None, None)


# From rows to measures


def measure_all(rows, scores, question, each_group, draws, seed):
    """Yield a Measure for each score, thing measured and scope.

    Correlated are scores with effects and their sizes with sizes; AUROC is that of the scores turned round, as what is
    damaging should be found less likely, and of their sizes.
    """
    from hybridna_core import metrics

    groups = np.array([row.group or "" for row in rows])
    places = np.array([row.place for row in rows])
    sizes = {f"|{name}|": np.abs(values) for name, values in scores.items()}
    tasks = []
    if question.effect is not None:
        effects = np.array([np.nan if row.effect is None else row.effect for row in rows])
        used = ~np.isnan(effects)
        tasks.append(("spearman", question.effect, effects, used, scores))
        tasks.append(("spearman", f"|{question.effect}|", np.abs(effects), used, sizes))
    if question.positive is not None:
        used = np.array([row.is_positive is not None for row in rows])
        positive = np.array([row.is_positive is True for row in rows])
        against = question.positive.text + (f" / {question.negative.text}" if question.negative else "")
        turned = {f"-{name}": -values for name, values in scores.items()}
        tasks.append(("auroc", against, positive, used, {**turned, **sizes}))
    scopes = [("all", "", np.full(len(rows), True))]
    if question.group is not None:
        scopes.append(("within", "", scopes[0][2]))
    if each_group:
        scopes += [("group", name, groups == name) for name in dict.fromkeys(groups.tolist())]
    of = {"spearman": (metrics.spearman, metrics.spearman_interval), "auroc": (metrics.auroc, metrics.auroc_interval)}
    for statistic, against, truth, used, named in tasks:
        for scope, group, here in scopes:
            here = here & used
            strata = groups[here] if scope == "within" else None
            clusters = places[here] if scope == "group" or question.group is None else groups[here]
            count = len(np.unique(clusters))
            positives = int(truth[here].sum()) if statistic == "auroc" else None
            for name, values in named.items():
                reason = find_reason(statistic, values[here], truth[here])
                numbers = [None] * 3
                if not reason:
                    value, interval = of[statistic]
                    numbers[0] = value(values[here], truth[here], strata=strata)
                    if np.isnan(numbers[0]):
                        numbers[0], reason = None, "no group in which both vary"
                    elif count > 1:
                        numbers[1:] = interval(
                            values[here], truth[here], clusters, strata=strata, draws=draws, seed=seed
                        )
                yield Measure(
                    name, statistic, against, scope, group, *numbers, int(here.sum()), positives, count, reason
                )


def find_reason(statistic, values, truth):
    """Return why a score cannot be measured against what is true of the alleles, "" where it can."""
    if statistic == "auroc" and not truth.any():
        return "no positives"
    if statistic == "auroc" and truth.all():
        return "no negatives"
    if len(values) < 3 and statistic == "spearman":
        return "fewer than 3 alleles"
    if np.ptp(values) == 0:
        return "constant score"
    return "constant effect" if statistic == "spearman" and np.ptp(truth) == 0 else ""


def write_rows(path, rows, scores, question, force):
    """Write one line per allele: where and what it is, what was measured, then the scores."""
    columns = ["contig", "pos", "ref", "alt", "group", "effect", "positive", *scores]
    lines = [columns]
    for number, row in enumerate(rows):
        measured = [row.group, row.effect, None if row.is_positive is None else int(row.is_positive)]
        cells = ["" if value is None else str(value) for value in measured]
        lines.append([row.contig, str(row.pos), row.ref, row.alt, *cells,
                      *(f"{values[number]:.9g}" for values in scores.values())])  # fmt: skip
    with open_output(path, force) as handle:
        handle.write("".join("\t".join(cells) + "\n" for cells in lines).encode())
