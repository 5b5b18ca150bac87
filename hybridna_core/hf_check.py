"""Which reading of a published model fits DNA: a search that reports and never switches anything.

model, probes -> settings (groups, heads, letters, token before, target offset) -> nats per base of each -> verdict
"""

import csv
import itertools
import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from hybridna_core.checkpoint import BUNDLED
from hybridna_core.hf_structure import Facts, group_counts, head_layouts
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.model.likelihood import pick_log_probs
from hybridna_core.tokenizer import BASE_IDS, BOS, CLS, SEP

UNIFORM = math.log(4)
# Nats per base. Below it a difference may be chance (a few thousand bases are read) or rounding.
MARGIN = 0.01
# Nats per base within which two settings cannot be told apart on these few probes: attention heads cut otherwise gain
# up to 0.001 with `base`, while wrong groups of B and C cost it 0.0026. Set between these two after seeing them; a
# bound from the spread over more and longer probes should take its place.
CHANCE = 0.0015
# Mean difference in nats per base up to which a published log-likelihood counts as reproduced, on every probe.
REPRODUCED = 0.002
LETTERS = ("ACGT", *("".join(p) for p in itertools.permutations("ACGT") if "".join(p) != "ACGT"))
BEFORE = {"none": None, "[CLS]": CLS, "[BOS]": BOS, "[SEP]": SEP}
OFFSETS = (1, 0, 2, 3)
# Narrower attention heads than this are in no model, and slow.
NARROWEST_HEAD = 8


class Probe(NamedTuple):
    """A sequence with the log-likelihoods (nats, summed) published for the official sizes."""

    name: str
    element: str
    species: str
    sequence: str
    published: dict


class Setting(NamedTuple):
    """One reading of a model.

    letters  the bases that token ids 7, 8, 9, 10 stand for
    before   special token before the sequence
    offset   the logits at token t are taken to predict token t + offset
    """

    n_groups: int
    attention_heads: int
    letters: str = "ACGT"
    before: str = "none"
    offset: int = 1

    def differences(self, other):
        """Spell in what this setting differs from another."""
        return [f"{name} {value}" for name, value in self._asdict().items() if value != getattr(other, name)]


@dataclass
class Outcome:
    """What a setting gives: mean nats per base over A, C, G, T and over the whole vocabulary; nats per probe."""

    setting: Setting
    nats: float
    nats_vocabulary: float
    totals: dict = field(default_factory=dict)

    def to_dict(self):
        return {**self.setting._asdict(), "nats": self.nats, "nats_vocabulary": self.nats_vocabulary}


def read_probes(every=False, path=BUNDLED / "probes.tsv"):
    """Read the bundled probes: the default eight, or all of them."""
    with open(path, encoding="utf-8", newline="") as handle:
        rows = csv.DictReader((line for line in handle if not line.startswith("#")), delimiter="\t")
        return [
            Probe(
                row["probe"], row["element"], row["species"], row["sequence"],
                {size: float(row[f"log_p_{size}"]) for size in ("300M", "3B", "7B")},
            )
            for row in rows
            if every or row["default"] == "1"
        ]  # fmt: skip


def default_setting(config):
    """Return the setting that a model is loaded with."""
    return Setting(config.mamba_n_groups, config.num_attention_heads)


def factors(config):
    """Return per field of Setting the values that the shapes allow, the model's own first."""
    has_attention = "attention" in config.layer_types
    facts = Facts(
        layer_types=config.layer_types,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        kv_width=config.num_key_value_heads * config.head_dim if has_attention else None,
        mamba_n_heads=config.mamba_n_heads,
        mamba_width=config.mamba_width,
        state_total=config.mamba_n_groups * config.mamba_d_state,
        mamba_d_conv=config.mamba_d_conv,
    )
    own = default_setting(config)
    heads = [n for n, _ in head_layouts(facts) if config.hidden_size // n >= NARROWEST_HEAD]
    return {
        "n_groups": [own.n_groups, *(n for n in group_counts(facts) if n != own.n_groups)],
        "attention_heads": [own.attention_heads, *(n for n in heads if n != own.attention_heads)],
        "letters": list(LETTERS),
        "before": list(BEFORE),
        "offset": list(OFFSETS),
    }


def list_passes(config, exhaustive=False):
    """List the settings to read with, offset aside, since one pass serves every offset.

    One factor at a time from the model's own setting; the whole product when exhaustive.
    """
    choices = factors(config)
    own = default_setting(config)
    if exhaustive:
        product = itertools.product(choices["n_groups"], choices["attention_heads"], LETTERS, BEFORE)
        return [Setting(*values) for values in product]
    passes = [own]
    for name in ("n_groups", "attention_heads", "letters", "before"):
        passes += [own._replace(**{name: value}) for value in choices[name][1:]]
    return passes


def rebind(model, setting):
    """Return a model that shares the weights but reads them with another number of groups or heads."""
    config = model.config
    if (setting.n_groups, setting.attention_heads) == (config.mamba_n_groups, config.num_attention_heads):
        return model
    total = config.mamba_n_groups * config.mamba_d_state
    ratio = config.num_attention_heads // config.num_key_value_heads
    changed = replace(
        config, mamba_n_groups=setting.n_groups, mamba_d_state=total // setting.n_groups,
        num_attention_heads=setting.attention_heads, num_key_value_heads=setting.attention_heads // ratio,
    )  # fmt: skip
    other = HybridLM(changed, device="meta", dtype=model.dtype)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.requires_grad_(False).eval()


@torch.no_grad()
def measure(model, probes, setting, offsets=(1,)):
    """Read the probes in one setting; return an Outcome per offset.

    nats are means over all bases but the first three of a probe, so that every offset counts the same ones; `totals`
    are sums of log p over all bases that have something before them, over the whole vocabulary, as published.
    """
    model = rebind(model, setting)
    ids = {base: BASE_IDS[i] for i, base in enumerate(setting.letters)}
    first = BEFORE[setting.before]
    lead = int(first is not None)
    sums = {offset: [0.0, 0.0] for offset in offsets}
    totals, bases = {}, 0
    for probe in probes:
        tokens = [first] * lead + [ids[base] for base in probe.sequence]
        tokens = torch.tensor([tokens], device=model.device)
        logits = model.head(model(tokens)[0])
        n = tokens.shape[1]
        start = lead + max(OFFSETS)
        bases += n - start
        for offset in offsets:
            predicted, target = logits[:, start - offset : n - offset], tokens[:, start:]
            sums[offset][0] -= float(pick_log_probs(predicted, target).sum())
            sums[offset][1] -= float(pick_log_probs(predicted, target, renormalize=False).sum())
        if 1 in offsets:
            totals[probe.name] = float(pick_log_probs(logits[:, :-1], tokens[:, 1:], renormalize=False).sum())
    return [
        Outcome(setting._replace(offset=o), sums[o][0] / bases, sums[o][1] / bases, totals if o == 1 else {})
        for o in offsets
    ]


def search(model, probes, exhaustive=False, progress=None):
    """Measure every setting; return the Outcomes, the model's own first.

    Offsets other than 1 are tried on the model's own setting, or on all when exhaustive.
    """
    passes = list_passes(model.config, exhaustive)
    outcomes = []
    for i, setting in enumerate(passes):
        outcomes += measure(model, probes, setting, OFFSETS if exhaustive or i == 0 else (1,))
        if progress:
            progress(i + 1, len(passes))
    return outcomes


def compare_published(outcome, probes, size):
    """Return the largest difference to the published log-likelihoods of an official size, nats per base."""
    return max(abs(outcome.totals[p.name] - p.published[size]) / (len(p.sequence) - 1) for p in probes)


@dataclass
class Verdict:
    """What a search says. `closest` is (nats per base, setting) or None where nothing is published for the size."""

    default: Outcome
    best: Outcome
    echo: Outcome
    size: str | None
    default_difference: float | None
    closest: tuple | None

    @property
    def reproduced(self):
        """The published likelihoods come out in the model's own setting; None where there are none."""
        return None if self.default_difference is None else self.default_difference <= REPRODUCED

    @property
    def better_than_uniform(self):
        return self.best.nats < UNIFORM - MARGIN

    @property
    def suspicious(self):
        """Another setting reads DNA better than the model's own."""
        return self.best.nats < self.default.nats - MARGIN

    def lines(self):
        """Spell the verdict."""
        if self.size is None:
            yield "published likelihoods: none for a model of this size"
        else:
            found = "reproduced" if self.reproduced else "not reproduced"
            yield (
                f"published likelihoods of HybriDNA-{self.size}: {found} "
                f"(largest difference {self.default_difference:.4f} nats per base)"
            )
            distance, setting = self.closest
            if not self.reproduced and distance <= REPRODUCED:
                yield f"they are reproduced with {', '.join(setting.differences(self.default.setting))}"
        state = "better" if self.default.nats < UNIFORM - MARGIN else "not better"
        yield f"own setting: {self.default.nats:.4f} nats per base, {state} than a uniform guess ({UNIFORM:.4f})"
        if self.suspicious:
            changes = ", ".join(self.best.setting.differences(self.default.setting))
            gain = self.default.nats - self.best.nats
            state = "better" if self.better_than_uniform else "still not better"
            yield f"best: {self.best.nats:.4f} with {changes}, {gain:.4f} below, {state} than a uniform guess"
        elif self.better_than_uniform:
            yield "no other setting tried does better: the model is read as it was trained"
        else:
            yield "no setting tried does better than a uniform guess"
        if self.echo.nats < min(self.best.nats, UNIFORM) - MARGIN:
            yield f"offset 0 gives {self.echo.nats:.4f}: the logits repeat their own input, which is no likelihood"
        yield "nothing was changed"

    def to_dict(self):
        """Return the machine form."""
        distance, setting = self.closest or (None, None)
        return {
            "size": self.size,
            "published_reproduced": self.reproduced,
            "published_largest_difference": self.default_difference,
            "published_closest": None if setting is None else {**setting._asdict(), "difference": distance},
            "default": self.default.to_dict(),
            "best": self.best.to_dict(),
            "best_differs_in": self.best.setting.differences(self.default.setting),
            "better_than_uniform": self.better_than_uniform,
            "suspicious": self.suspicious,
            "uniform": UNIFORM,
        }


def judge(outcomes, probes, size=None):
    """Turn the outcomes of a search into a Verdict.

    size  official size whose published numbers apply, None for other models
    """
    default = outcomes[0]
    # A model that repeats its input needs to know nothing of DNA, so offset 0 cannot win.
    best = min((o for o in outcomes if o.setting.offset != 0), key=lambda o: o.nats)
    if default.nats - best.nats <= CHANCE:
        best = default
    echo = min((o for o in outcomes if o.setting.offset == 0), key=lambda o: o.nats)
    difference, closest = None, None
    if size is not None:
        comparable = [o for o in outcomes if o.totals and o.setting.before == "none"]
        found = [(compare_published(o, probes, size), o.setting) for o in comparable]
        difference, closest = found[0][0], min(found)
    return Verdict(default, best, echo, size, difference, closest)
