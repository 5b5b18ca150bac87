"""The letters of a genome file: which are bases, which read as N, and what to say of the others.

bytes without line ends -> first letter that cannot be read, or letters over A, C, G, T, N in their own case
"""

from hybridna_core.errors import DataError

FINE = b"ACGTNacgtn"
IUPAC = b"RYKMSWBDHV"
_LETTERS = bytes(b for b in range(65, 123) if bytes([b]).isalpha())
# Every letter that is no base, as N of its own case.
_TO_N = bytes.maketrans(_LETTERS, bytes(b if b in FINE else ord("n" if b >= 97 else "N") for b in _LETTERS))


def mend_letters(raw, where, first, *, other_letters=None, rna=False):
    """Turn letters that are no base into N, U into T with `rna`; return the letters and which became N, as text.

    raw    bytes without line ends; case is kept
    where  what messages put before the position of a letter
    first  position of the first letter, for messages
    Raises DataError for what cannot be read as a base.
    """
    if rna:
        raw = raw.replace(b"U", b"T").replace(b"u", b"t")
    bad = first_bad(raw, other_letters, rna)
    if bad is not None:
        what, hint = explain_letter(raw.upper()[bad])
        raise DataError(what, where=f"{where}{first + bad}", hint=hint)
    found = "".join(sorted(set(raw.translate(None, FINE).upper().decode("ascii"))))
    return raw.translate(_TO_N), found


def _is_other_letter(byte):
    return 65 <= (byte & 0xDF) <= 90


def first_bad(raw, other_letters, rna):
    """Index of the first byte that cannot be read as a base, or None. `raw` without line ends."""
    fine = FINE + IUPAC + IUPAC.lower() + (b"Uu" if rna else b"")
    rest = raw.translate(None, fine)
    if other_letters:
        # U without --rna stays an error: N would hide that all is RNA.
        rest = bytes(b for b in rest if not _is_other_letter(b) or b in b"Uu")
    return min((raw.index(bytes([b])) for b in set(rest)), default=None)


def explain_letter(byte):
    """What to say about a byte that is no base: (what, hint)."""
    if byte in b"Uu":
        return "U, so this looks like RNA", "give --rna to read U as T"
    if _is_other_letter(byte):
        return f"the letter {chr(byte)!r} is no nucleotide", "a protein? or give --other-letters n to read it as N"
    if byte in b" \t" or 33 <= byte < 127:
        return f"{chr(byte)!r} inside a sequence", "a sequence holds letters only"
    return f"binary content (byte {byte})", "is this FASTA?"
