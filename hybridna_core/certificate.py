"""What each generated sequence is certified to be: the fields behind its name in a FASTA, and a row of a table.

designs of one prompt, constraints, reference -> counted and compared -> Certificate -> FASTA record, line of TSV
"""

import itertools
import re
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from hybridna_core.constraints import Constraints, count_sites, find_broken, longest_run
from hybridna_core.data.writers import fasta_record
from hybridna_core.errors import GuardError
from hybridna_core.metrics import nearest
from hybridna_core.tokenizer import reverse_complement

# Columns of the table; those of the settings follow before `model`.
COLUMNS = (
    "name", "status", "label", "log_prob", "posterior", "length", "gc", "longest_homopolymer", "forbidden_sites",
    "nearest_design", "design_distance", "nearest_reference", "reference_distance", "prompt_bases",
)  # fmt: skip
SETTINGS = (
    "method", "num_beams", "beam_groups", "diversity_penalty", "seed", "temperature", "top_k", "top_p", "gc_range",
    "max_homopolymer", "forbid", "template", "require",
)  # fmt: skip


class Design(NamedTuple):
    """One generated sequence.

    sequence      prompt and generated bases
    log_prob      of the generated bases, given label and prompt, nats, renormalised over A, C, G, T
    gc            share of G and C in the whole sequence
    label         label digits or None
    prompt_bases  bases of the sequence that were given
    posterior     probability of the label given the generated bases, over the labels of the model's training, or None
    """

    sequence: str
    log_prob: float
    gc: float
    label: str | None
    prompt_bases: int
    posterior: float | None = None


class Reference:
    """Sequences that designs are compared with, each also from the other strand. named: list of (name, bases)"""

    def __init__(self, named):
        self.named = named
        self.both = [bases for _, bases in named] + [reverse_complement(bases) for _, bases in named]

    def nearest(self, sequence):
        """Return the name of the sequence most like this one, on either strand, and their edit distance."""
        index, distance = nearest(sequence, self.both)
        return self.named[index % len(self.named)][0], distance


class Certificate(NamedTuple):
    """A Design with its name, and what was counted on it; `fields` is {column: value}, missing ones left out."""

    name: str
    sequence: str
    fields: dict

    def to_record(self):
        """Return the FASTA record; blanks within a value are written as in a URL (%20)."""
        fields = {key: re.sub(r"[\s%]", _escape, _spell(key, value)) for key, value in self.fields.items()}
        return fasta_record(self.name, self.sequence, fields)

    def to_row(self, model_digest):
        """Return the line of the table; a value that there is none of is a point."""
        values = {"name": self.name, "sequence": self.sequence, **self.fields}
        if "model" in values:
            values["model_sha256"] = model_digest
        return "\t".join(_spell(key, values[key]) if key in values else "." for key in table_columns()) + "\n"


def table_columns():
    """Return the names of the table's columns, in order."""
    return [*COLUMNS, *SETTINGS, "model", "model_sha256", "sequence"]


def certify(name, designs, constraints, reference, how):
    """Return a Certificate for each design of one prompt, named NAME_1, NAME_2 and so on.

    constraints  Constraints or None; every design is held against them once more
    reference    Reference or None
    how          settings of the run, {column: value}

    Neighbours among the designs are those of the same prompt. Raises GuardError for a broken constraint.
    """
    constraints = Constraints() if constraints is None else constraints
    names = [f"{name}_{i + 1}" for i in range(len(designs))]
    sequences = [design.sequence for design in designs]
    found = []
    for i, design in enumerate(designs):
        option = find_broken(design.sequence, design.prompt_bases, constraints)
        if option is not None:
            raise GuardError(f"does not satisfy {option}", where=names[i], hint="please report this")
        fields = {
            "status": "ok", "label": design.label, "log_prob": design.log_prob, "posterior": design.posterior,
            "length": len(design.sequence), "gc": design.gc, "longest_homopolymer": longest_run(design.sequence),
            "forbidden_sites": count_sites(design.sequence, constraints.forbid),
        }  # fmt: skip
        if len(designs) > 1:
            index, distance = nearest(design.sequence, sequences, skip=i)
            fields |= {"nearest_design": names[index], "design_distance": distance}
        if reference is not None:
            near, distance = reference.nearest(design.sequence)
            fields |= {"nearest_reference": near, "reference_distance": distance}
        fields |= {"prompt_bases": design.prompt_bases or None, **how}
        found.append(Certificate(names[i], design.sequence, {k: v for k, v in fields.items() if v is not None}))
    return found


def read_certificates(lines):
    """Yield the Certificate of each record of a FASTA; values stay text, and words without `=` are left out."""
    head, parts = None, []
    for line in itertools.chain(lines, [">"]):
        if not line.startswith(">"):
            parts.append(line.strip())
            continue
        if head is not None:
            name, *words = head.split() or [""]
            fields = {key: unquote(value) for key, found, value in (word.partition("=") for word in words) if found}
            yield Certificate(name, "".join(parts), fields)
        head, parts = line[1:], []


def _escape(match):
    return "".join(f"%{byte:02X}" for byte in match.group().encode())


_DIGITS = {"log_prob": "{:.4f}", "gc": "{:.3f}", "posterior": "{:.4g}"}


def _spell(key, value):
    return _DIGITS.get(key, "{}").format(value) if isinstance(value, float | np.floating) else str(value)
