"""Measured effects in a VCF's INFO: numbers, classes and groups of each alternative allele.

`KEY<=1e-5`, `KEY=A,B` -> Condition; Record, number of the allele -> text, number, or whether a Condition holds
"""

import math
import re
from typing import NamedTuple

from hybridna_core.data.inputs import printable
from hybridna_core.data.vcf import INFO_KEY, to_bytes
from hybridna_core.errors import DataError, UsageError

_CONDITION = re.compile(rf"({INFO_KEY.pattern})(!=|<=|>=|=|<|>)(.+)")
_COMPARE = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}


class Condition(NamedTuple):
    """What an INFO key is asked for: to be (or not to be) one of some texts, or to compare with a number."""

    text: str
    key: str
    sign: str
    value: float | frozenset

    def holds(self, record, index, path):
        """Return whether it holds for an allele, None where the key is missing."""
        if self.sign in _COMPARE:
            number = read_number(record, index, self.key, path)
            return None if number is None else _COMPARE[self.sign](number, self.value)
        text = read_text(record, index, self.key, path)
        return None if text is None else (text in self.value) == (self.sign == "=")


def read_condition(text, option):
    """Read `KEY=VALUE,VALUE`, `KEY!=VALUE` or `KEY<NUMBER` (also <= > >=); raise UsageError."""
    match = _CONDITION.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UsageError(f"is {text!r}", where=option, hint="KEY=VALUE, KEY!=VALUE or KEY<NUMBER (<= > >=)")
    key, sign, value = match.groups()
    if sign not in _COMPARE:
        return Condition(match[0], key, sign, frozenset(value.split(",")))
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UsageError(f"{text!r} compares with {value!r}, which is no number", where=option)
    return Condition(match[0], key, sign, number)


def read_text(record, index, key, path):
    """Return what INFO says under a key of the alternative allele of that number, None where it says nothing.

    A single value stands for all alleles. Raises DataError where there are neither one nor as many as alleles.
    """
    text = record.info(key)
    if text is None:
        return None
    values = text.split(",") if len(record.alts) > 1 else [text]
    if len(values) not in (1, len(record.alts)):
        what = f"{key} has {len(values)} values for {len(record.alts)} alternative alleles"
        raise DataError(what, where=f"{path}:{record.number}", hint="one for each, or one for all")
    value = values[index] if len(values) > 1 else values[0]
    return None if value in ("", ".") else value


def read_number(record, index, key, path):
    """Return the same as a number; raise DataError for text, NaN and infinities."""
    text = read_text(record, index, key, path)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = f"{key} is {printable(to_bytes(text))!r}, not a finite number"
        raise DataError(what, where=f"{path}:{record.number}", hint="write . where nothing was measured")
    return number
