"""Genotypes: the sample columns of a VCF line as bytes, what they call, and values added behind.

FORMAT and samples -> GT of each -> Call -> alleles per haplotype, by the rule for unphased ones
SampleColumns + values per sample -> the same columns with further keys
"""

import functools
import re
from typing import NamedTuple

PHASES = {
    "a": "as is, 0/1 like 0|1",
    "m": "merge into one haplotype, 0/1 and 1|2 like 1",
    "r": "require phased ones",
    "R": "no reference beside an ALT, 0/1 like 1|1",
    "s": "skip unphased ones",
}

_GENOTYPE = re.compile(rb"[|/]?(?:\.|[0-9]{1,9})(?:[|/](?:\.|[0-9]{1,9}))*")


class Call(NamedTuple):
    """A genotype.

    alleles    number of the allele on each haplotype, 0 for REF, None where it is missing
    is_phased  no `/` stands between them
    """

    alleles: tuple
    is_phased: bool

    @property
    def alt(self):
        """The first alternative allele, None without any."""
        return next((allele for allele in self.alleles if allele), None)

    @property
    def is_heterozygous(self):
        """Whether alleles differ; a missing one differs from all others."""
        return len(set(self.alleles)) > 1


@functools.lru_cache(4096)
def read_call(text):
    """Read a GT value, bytes; return its Call, or None for what is no genotype."""
    if not _GENOTYPE.fullmatch(text):
        return None
    # VCF 4.4 allows a separator before the first allele.
    alleles = re.split(rb"[|/]", text[1:] if text[:1] in b"|/" else text)
    return Call(tuple(None if allele == b"." else int(allele) for allele in alleles), b"/" not in text)


def place_alleles(call, phase):
    """Return the allele on each haplotype of a call with an ALT; None where the rule has it skipped or refused.

    phase  a letter of PHASES: what becomes of heterozygous calls that are not phased, and with m of all
    """
    if phase == "m":
        return (call.alt,)
    if call.is_phased or not call.is_heterozygous or phase == "a":
        return call.alleles
    if phase == "R":
        return tuple(call.alt if allele == 0 else allele for allele in call.alleles)
    return None


class SampleColumns:
    """FORMAT and the samples of a record.

    text  the columns from the ninth on, as they stand
    """

    def __init__(self, text):
        layout, *self.samples = text.split(b"\t")
        self.keys = layout.split(b":")

    def values(self, key):
        """Return a key's value of every sample, b"." where it is dropped; an empty list when FORMAT lacks the key."""
        if key not in self.keys:
            return []
        at = self.keys.index(key)
        if at == 0:
            return [sample.partition(b":")[0] for sample in self.samples]
        return [fields[at] if at < len(fields) else b"." for fields in (s.split(b":") for s in self.samples)]

    def without(self, keys):
        """Return the text without some keys and their values."""
        kept = [at for at, key in enumerate(self.keys) if key not in keys]
        if len(kept) == len(self.keys):
            return b"\t".join([b":".join(self.keys), *self.samples])
        lists = [self.keys, *(sample.split(b":") for sample in self.samples)]
        return b"\t".join(b":".join(fields[at] for at in kept if at < len(fields)) or b"." for fields in lists)

    def extended(self, keys, values):
        """Return the text with further keys; samples without values stay as they are, which VCF reads as missing.

        values  dict: number of a sample -> a value for each of the keys, bytes
        """
        samples = list(self.samples)
        for number, added in values.items():
            fields = samples[number].split(b":")
            fields += [b"."] * (len(self.keys) - len(fields))
            samples[number] = b":".join([*fields, *added])
        return b"\t".join([b":".join([*self.keys, *keys]), *samples])
