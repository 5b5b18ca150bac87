"""Benchmark tasks of variants with classes: scored as the model stands, and by a head on the vectors of both alleles.

table of variants, genome -> alleles -> HD_LLR -> AUROC, AUPRC; windows of both alleles -> vectors side by side -> head
"""

import hashlib
import logging
import time
from typing import NamedTuple

import numpy as np

from hybridna_core.data.benchmarks import VALID_SHARE, read_variant_table
from hybridna_core.data.inputs import warn
from hybridna_core.data.labelled import UNUSABLE_LIMIT, Row, Scheme
from hybridna_core.data.variants import Allele, Piece, Variant
from hybridna_core.errors import DataError
from hybridna_core.hf_peer import Peer
from hybridna_core.scoring import Scorer, make_plan
from hybridna_core.task_files import identify
from hybridna_core.task_metrics import interval, measure_one
from hybridna_core.tokenizer import encode

log = logging.getLogger("hybridna")
SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}


class AllelePairs(NamedTuple):
    """A task of variants as it is learned: the windows of both alleles, and what else is told of them.

    pairs    {set: list of (reference window, alternative window)}
    tissues  {set: (n, tissues) float32}, no column where the table names none
    """

    name: str
    protocol: object
    scheme: Scheme
    rows: dict
    targets: dict
    shared: int
    digest: str
    metric: str
    pairs: dict
    tissues: dict

    def baseline_input(self):
        """What simple models see: the alternative allele in its window."""
        return {name: [alt for _, alt in pairs] for name, pairs in self.pairs.items()}

    def features(self, runner, reading):
        """Return {set: (n, 2 * hidden + tissues) float32}."""
        found = {}
        for name, pairs in self.pairs.items():
            sides = [runner.vectors([pair[side] for pair in pairs], reading) for side in (0, 1)]
            found[name] = np.concatenate([*sides, self.tissues[name]], axis=1).astype(np.float32)
        return found


class VariantTask:
    """One of LRB's tables of variants, compared with the genome.

    window  bases of each allele's window
    limit   training rows at most
    """

    def __init__(self, name, path, protocol, genome, model, window, limit):
        self.name, self.protocol, self.genome, self.model, self.window = name, protocol, genome, model, window
        self.metric, self.shared = protocol.metric, 0
        self.room = None if isinstance(model, Peer) else model.config.bases_at_once
        if self.room is not None and window > self.room:
            warn("window", f"--window: this model reads {self.room:,} bases at once, not {window:,}; they are taken")
            self.window = self.room
        self.variants = {"train": [], "valid": [], "test": []}
        missing = 0
        table = read_variant_table(path)
        for one in table:
            if one.split not in SPLITS:
                raise DataError(f"split {one.split!r} is unknown", where=f"{path}:{one.line}",
                                hint=f"known are {', '.join(SPLITS)}")  # fmt: skip
            contig = genome.resolve(one.contig) or genome.alias(one.contig)
            start = one.pos - 1
            fits = contig is not None and start >= 0 and start + len(one.ref) <= genome.contigs[contig]
            if not fits or genome.fetch(contig, start, start + len(one.ref)).upper() != one.ref:
                missing += 1
                warn(
                    "ref_mismatch", f"{path}:{one.line}: {one.contig}:{one.pos} {one.ref} is not what the genome holds"
                )
                continue
            if self._width(one) < 1:
                what = f"an allele is longer than the {self.room:,} bases that this model reads"
                raise DataError(what, where=f"{path}:{one.line}", hint="leave it out")
            self.variants[SPLITS[one.split]].append(one._replace(contig=contig))
        if missing > UNUSABLE_LIMIT * len(table):
            what = f"{missing:,} of {len(table):,} variants are not those of this genome"
            raise DataError(what, where=path, hint="is it the right assembly?")
        train = self.variants["train"]
        if limit is not None and len(train) > limit:
            chosen = np.sort(np.random.default_rng(0).permutation(len(train))[:limit])
            self.variants["train"] = [train[i] for i in chosen]
        self._hold_out()
        if not self.variants["test"]:
            raise DataError("no row is for the test", where=path)
        facts = [self.window, self.variants, [genome.digest(c) for c in sorted(self._contigs())]]
        # Windows that the model has cut are none of the table's.
        if any(self._width(one) < self.window for some in self.variants.values() for one in some):
            facts.append(self.room)
        facts = repr(tuple(facts))
        self.digest = hashlib.sha256(facts.encode()).hexdigest()
        self.rows = self.variants

    def _contigs(self):
        return {one.contig for some in self.variants.values() for one in some}

    def _hold_out(self):
        """Take validation rows from training where there are none; variants of one place stay together."""
        train = self.variants["train"]
        if not train or self.variants["valid"]:
            return
        kept = {"train": [], "valid": []}
        for one in train:
            number = int.from_bytes(hashlib.sha256(f"{one.contig}:{one.pos}".encode()).digest()[:4], "big")
            kept["valid" if number < VALID_SHARE * 2**32 else "train"].append(one)
        if not all(kept.values()):
            raise DataError(f"{len(train):,} rows are too few to hold some out", where=self.name)
        self.variants |= kept

    def zero_shot(self, store, progress):
        """Return what rows of the table differ in: AUROC and AUPRC of the score as it is, of the test variants.

        -HD_LLR takes what the model finds unlikely for harmful; |HD_LLR| takes any change for an effect (which of them
        the paper means it does not say).
        """
        if isinstance(self.model, Peer):
            return []
        variants = self.variants["test"]
        plan = make_plan(self.model.config, min(self.window, self.room), None, 1)

        def make(_):
            begun, found = time.monotonic(), []
            scorer = Scorer(self.model, self.genome, plan)
            for number, one in enumerate(variants):
                start = one.pos - 1
                pieces = (Piece(0, len(one.alt), ids=encode(one.alt)),)
                score = scorer.score(Allele("ok", Variant(one.contig, start, start + len(one.ref), pieces)))
                found.append(np.nan if score.llr is None else score.llr)
                if progress is not None:
                    progress(number + 1, len(variants), note="zero-shot")
            return {"seconds": time.monotonic() - begun}, {"llr": np.array(found)}

        facts = {"what": "zero-shot", "data": self.digest, "model": identify(self.model), "plan": list(plan)}
        record, outputs = store.unit(facts, make)
        llr, labels = outputs["llr"], np.array([one.label for one in variants])
        known = np.isfinite(llr)
        lost = f"{(~known).sum():,} without a score" if not known.all() else ""
        rows = []
        for word, scores in (("-HD_LLR", -llr[known]), ("|HD_LLR|", np.abs(llr[known]))):
            # Ranks, as probabilities of large scores would all be 1.
            ranks = np.unique(scores, return_inverse=True)[1] / max(1, len(scores))
            outputs = np.stack([np.zeros(len(ranks)), ranks], axis=1)
            for metric in ("auroc", "auprc"):
                row = {"method": f"zero-shot, {word}", "metric": metric, "seconds": record["seconds"], "chosen": lost}
                if len(np.unique(labels[known])) < 2:
                    rows.append({**row, "why": "one class in the test rows"})
                    continue
                value = measure_one("classification", metric, labels[known], outputs)
                low, high = interval("classification", metric, labels[known], [outputs])
                rows.append({**row, "test": value, "low": low, "high": high})
        return rows

    def prepare(self):
        """Return AllelePairs, or None where nothing can be learned as there are no training rows."""
        if not self.variants["train"]:
            return None
        labels = {part: np.array([one.label for one in some]) for part, some in self.variants.items()}
        if len(np.unique(labels["train"])) < 2:
            raise DataError("one class only in the training rows", where=self.name)
        tissues = sorted({one.tissue for one in self.variants["train"]} - {""})
        pairs = {part: [self._windows(one) for one in some] for part, some in self.variants.items()}
        columns = {
            part: np.array([[one.tissue == tissue for tissue in tissues] for one in some], np.float32).reshape(
                len(some), len(tissues)
            )
            for part, some in self.variants.items()
        }
        rows = {
            part: [Row(f"{ref} {alt}", (str(one.label), one.tissue)) for (ref, alt), one in zip(
                pairs[part], some, strict=True)]
            for part, some in self.variants.items()
        }  # fmt: skip
        places = {(one.contig, one.pos, one.ref, one.alt) for one in self.variants["train"]}
        shared = sum((one.contig, one.pos, one.ref, one.alt) in places for one in self.variants["test"])
        if shared:
            warn("shared", f"{self.name}: {shared:,} of {len(rows['test']):,} variants stand in training too")
        scheme = Scheme("classification", ("label",), ("0", "1"))
        return AllelePairs(
            self.name, self.protocol, scheme, rows, labels, shared, self.digest, self.metric, pairs, columns
        )

    def _width(self, one):
        """Return the window of a variant, less what its longer allele would have beyond what the model reads."""
        if self.room is None:
            return self.window
        return min(self.window, self.room + 1 - max(len(one.ref), len(one.alt)))

    def _windows(self, one):
        """Return the window of each allele, the variant in the middle; what lies beyond the contig is left out."""
        start, width = one.pos - 1, self._width(one)
        first = max(0, start - width // 2)
        last = min(self.genome.contigs[one.contig], start + len(one.ref) + (width - 1) // 2)
        left = self.genome.fetch(one.contig, first, start)
        right = self.genome.fetch(one.contig, start + len(one.ref), last)
        return left + one.ref + right, left + one.alt + right
