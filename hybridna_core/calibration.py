"""Calibrations: scores of matched alleles, and where a score lies among those of its class.

file -> facts of its run, class -> sorted scores -> compared with a run's settings
variant, score -> class -> percentile, phred
"""

import hashlib
import math
import os

import numpy as np

from hybridna_core.data.inputs import check_input, printable, read_chunks, read_lines
from hybridna_core.data.matched import classify
from hybridna_core.data.vcf import Header, to_text
from hybridna_core.errors import DataError, ModelError, UsageError
from hybridna_core.score_fields import read_runs

COLUMNS = ("#chrom", "pos", "ref", "alt", "class", "llr")


class Calibration:
    """Scores of matched alleles, from a file that `hybridna calibrate` wrote.

    path    of the file
    facts   of its run line, text
    scores  class -> scores in ascending order, float32
    digest  SHA-256 of the file's text, decompressed
    """

    def __init__(self, path, allow_missing_eof=False):
        self.path = check_input(path)
        lines, found, sha256 = [], {}, hashlib.sha256()
        for number, raw, ended in read_lines(read_chunks(self.path, allow_missing_eof=allow_missing_eof), self.path):
            sha256.update(raw + b"\n")
            if raw.startswith(b"#"):
                lines.append(to_text(raw))
                continue
            if not lines or tuple(lines[-1].split("\t"))[: len(COLUMNS)] != COLUMNS:
                raise self._foreign()
            words = to_text(raw).split("\t")
            try:
                score = np.float32(words[COLUMNS.index("llr")])
            except (IndexError, ValueError):
                score = np.nan
            if not np.isfinite(score) or not ended:
                raise DataError(f"no score: {printable(raw)!r}", where=f"{self.path}:{number}", hint="make it anew")
            found.setdefault(words[COLUMNS.index("class")], []).append(score)
        header = Header(lines)
        runs = [run for run in read_runs(header) if "PerClass" in run]
        if not runs:
            raise self._foreign()
        self.facts, self.digest = runs[0], sha256.hexdigest()
        self.scores = {name: np.sort(np.array(values, dtype=np.float32)) for name, values in found.items()}
        due = {d.fields.get("ID"): d.fields.get("Count") for d in header.declarations("hybridna_class")}
        if due != {name: str(len(values)) for name, values in self.scores.items()}:
            what = "the scores are not those that its header counts"
            raise DataError(what, where=self.path, hint="was it cut or edited? hybridna calibrate makes it anew")

    def _foreign(self):
        return DataError("is no calibration", where=self.path, hint="hybridna calibrate makes one")

    def describe(self):
        """Return the facts of a run that uses it."""
        return {"Calibration": os.path.basename(self.path), "CalibrationSHA256": self.digest}

    def check_plan(self, plan):
        """Raise UsageError where window, horizon or stride are not those of the calibration."""
        for option, value in plan._asdict().items():
            self._check_option(option, self.facts.get(option.capitalize()), value)

    def _check_option(self, option, there, value):
        if there != str(value):
            what = f"the calibration was made with --{option} {there}, this run has {value}"
            raise UsageError(what, where=self.path, hint="score with the same, or calibrate anew")

    def check_model(self, model):
        """Raise ModelError for another model, UsageError for another precision."""
        self._check_option("dtype", self.facts.get("Precision"), str(model.dtype).removeprefix("torch."))
        if model.digest != self.facts.get("ModelSHA256"):
            there = f"{self.facts.get('Model')} (SHA-256 {self.facts.get('ModelSHA256')})"
            what = f"the calibration was made with model {there}, this run has {model.name} ({model.digest})"
            raise ModelError(what, where=self.path, hint="give that --model, or calibrate anew")

    def check_reference(self, genome):
        """Raise UsageError for a genome without the contigs that the calibration was drawn from."""
        for pair in self.facts.get("ReferenceMD5", "").split():
            name, _, digest = pair.rpartition(":")
            if name not in genome.contigs or genome.digest(name) != digest:
                state = "is another sequence in" if name in genome.contigs else "is not in"
                what = f"{name}, which the calibration was drawn from ({self.facts.get('Reference')}), {state}"
                raise UsageError(f"{what} {genome.path}", where=self.path, hint="calibrate anew with this reference")

    def rank(self, variant, score, genome):
        """Return percentile and phred of a variant's score among matched alleles; two None where there are none.

        With n matched alleles, r of which score as low or lower, the share is (r + 1) / (n + 1); the percentile is 100
        times that, phred -10 log10 of it.
        """
        scores = self.scores.get(classify(variant, genome))
        if scores is None:
            return None, None
        lower = int(np.searchsorted(scores, np.float32(score), side="right"))
        share = (lower + 1) / (len(scores) + 1)
        return 100 * share, abs(10 * math.log10(share))
