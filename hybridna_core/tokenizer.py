"""Bases and label digits to token ids and back.

text -> bytes -> 256-entry lookup table -> uint8 ids; label digits -> ids from 12 on, position-major
"""

from dataclasses import asdict, dataclass

import numpy as np

from hybridna_core.config import build, read_json
from hybridna_core.errors import ModelError, UsageError

TOKENS = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
CLS, SEP, BOS, MASK, PAD, RESERVED, UNK, A, C, G, T, N = range(12)
BASE_IDS = (A, C, G, T)
FIRST_PROMPT_ID = len(TOKENS)

_ENCODE = np.full(256, N, dtype=np.uint8)
for _letter, _id in zip("ACGTU", (A, C, G, T, T), strict=True):
    _ENCODE[ord(_letter)] = _ENCODE[ord(_letter.lower())] = _id
_DECODE = np.full(256, ord("?"), dtype=np.uint8)
for _letter, _id in zip("ACGTN", (A, C, G, T, N), strict=True):
    _DECODE[_id] = ord(_letter)
_COMPLEMENT_IDS = np.arange(256, dtype=np.uint8)
_COMPLEMENT_IDS[[A, C, G, T]] = [T, G, C, A]
_COMPLEMENT_TEXT = str.maketrans("ACGTUNacgtun", "TGCAANtgcaan")


def encode(sequence):
    """Encode bases as ids; lower case as upper, U as T, every other letter as N.

    sequence  str or bytes of length n
    returns   (n,) uint8
    """
    raw = sequence.encode("latin-1", "replace") if isinstance(sequence, str) else bytes(sequence)
    return _ENCODE[np.frombuffer(raw, dtype=np.uint8)]


def decode(ids):
    """Decode base ids (any integer array) to upper-case text; ids that are no base become `?`."""
    return _DECODE[np.asarray(ids).astype(np.uint8)].tobytes().decode("ascii")


def complement_ids(ids):
    """Complement base ids, in place order; other ids stay. (n,) -> (n,) uint8"""
    return _COMPLEMENT_IDS[np.asarray(ids).astype(np.uint8)]


def reverse_complement_ids(ids):
    """Reverse complement of base ids. (n,) -> (n,) uint8, contiguous"""
    return np.ascontiguousarray(complement_ids(ids)[::-1])


def reverse_complement(sequence):
    """Reverse complement of text; case kept, N stays N."""
    return sequence.translate(_COMPLEMENT_TEXT)[::-1]


@dataclass(frozen=True)
class LabelPosition:
    """One digit of a label: what it says, and how many values it has (0 to digits - 1)."""

    name: str
    digits: int
    meaning: str = ""


@dataclass(frozen=True)
class Tokenizer:
    """Token ids of one model: the twelve published ones, then one per (label position, digit)."""

    label_positions: tuple[LabelPosition, ...] = ()
    version: int = 1
    tokens: tuple[str, ...] = TOKENS

    def __post_init__(self):
        if self.version > 1:
            raise ModelError(f"tokenizer version {self.version} is newer than 1", hint="upgrade hybridna")
        if tuple(self.tokens) != TOKENS:
            raise ModelError("the first twelve tokens are not the published ones", where="tokenizer.json: tokens")
        for position in self.label_positions:
            if not 1 <= position.digits <= 10:
                raise UsageError(f"is {position.digits}, must be 1 to 10", where=f"label {position.name}: digits")

    @property
    def vocab_size(self):
        return FIRST_PROMPT_ID + sum(p.digits for p in self.label_positions)

    def encode_label(self, label):
        """Turn a label such as `300` into prompt ids, one per digit; raise UsageError naming what is known."""
        if not self.label_positions:
            hint = "give --prompt with bases, or a --model that was fine-tuned on labels"
            raise UsageError(f"label {label!r}: this model knows no labels", hint=hint)
        scheme = self.describe_labels()
        if len(label) != len(self.label_positions) or not (label.isascii() and label.isdigit()):
            raise UsageError(f"label {label!r} does not fit this model", hint=f"labels are {scheme}")
        ids, first = [], FIRST_PROMPT_ID
        for digit, position in zip(label, self.label_positions, strict=True):
            if int(digit) >= position.digits:
                what = f"label {label!r}: digit {digit} for {position.name} is unknown"
                raise UsageError(what, hint=f"labels are {scheme}")
            ids.append(first + int(digit))
            first += position.digits
        return np.array(ids, dtype=np.int64)

    def describe_labels(self):
        """Say in one line which labels the model knows."""
        if not self.label_positions:
            return "none"
        parts = ", ".join(f"{p.name} 0-{p.digits - 1}" for p in self.label_positions)
        return f"{len(self.label_positions)} digits ({parts})"

    def to_dict(self):
        return asdict(self)


def read_tokenizer(path):
    """Read a `tokenizer.json` of our own folders; raise UsageError or ModelError."""
    return build(Tokenizer, read_json(path), str(path))
