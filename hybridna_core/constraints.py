"""What generated sequences must satisfy: parsed from the command line, compiled, and counted again on the results.

text -> Constraints -> compile_constraints (one Automaton per prompt, before the model loads) -> search;
finished sequence -> find_broken, by regular expressions and plain counts
"""

import itertools
import re
from fractions import Fraction
from typing import NamedTuple

from hybridna_core.automaton import Automaton, TooLarge
from hybridna_core.errors import UsageError, nearest

# IUPAC letters and the bases that each stands for.
IUPAC = {
    "A": "A", "C": "C", "G": "G", "T": "T", "U": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")
MOTIF_LIMIT = 1000


class Site(NamedTuple):
    """A site that must not occur on either strand: the name it was asked for by, and its IUPAC letters."""

    name: str
    motif: str


class Required(NamedTuple):
    """A motif that must occur, forward: at a position (`Required.position`), or anywhere when that is None.

    position  of its first base in the sequence as written, prompt included: 1 is the first base, -1 the last
    """

    motif: str
    position: int | None

    def __str__(self):
        return self.motif if self.position is None else f"{self.motif}@{self.position}"

    def start(self, length):
        """Return the 0-based place of its first base in a sequence of that length; it may lie outside."""
        return self.position - 1 if self.position > 0 else length + self.position


class Constraints(NamedTuple):
    """All constraints of a run; every one holds for the whole sequence, but the template for the generated bases.

    gc               lowest and highest share of G and C, as Fraction, or None
    max_homopolymer  longest run of one base, or None
    template         IUPAC letters, one for each generated base, or None
    """

    gc: tuple | None = None
    max_homopolymer: int | None = None
    forbid: tuple = ()
    template: str | None = None
    require: tuple = ()

    def parts(self):
        """Return {option as typed: Constraints of that one alone}."""
        found = {}
        if self.gc is not None:
            found[f"--gc {_spell(self.gc[0])}:{_spell(self.gc[1])}"] = Constraints(gc=self.gc)
        if self.max_homopolymer is not None:
            alone = Constraints(max_homopolymer=self.max_homopolymer)
            found[f"--max-homopolymer {self.max_homopolymer}"] = alone
        for site in self.forbid:
            found[f"--forbid {site.name}"] = Constraints(forbid=(site,))
        if self.template is not None:
            shown = self.template if len(self.template) <= 40 else f"{self.template[:37]}..."
            found[f"--template {shown}"] = Constraints(template=self.template)
        for required in self.require:
            found[f"--require {required}"] = Constraints(require=(required,))
        return found

    def to_fields(self):
        """Return them as written behind the name of a sequence."""
        fields = {
            "gc_range": self.gc and f"{_spell(self.gc[0])}:{_spell(self.gc[1])}",
            "max_homopolymer": self.max_homopolymer,
            "forbid": ",".join(site.name for site in self.forbid),
            "template": self.template,
            "require": ",".join(map(str, self.require)),
        }
        return {key: value for key, value in fields.items() if value}


def parse_constraints(gc=None, max_homopolymer=None, forbid=None, template=None, require=None):
    """Read constraints as a user types them; return Constraints, or None when there are none.

    gc               "0.4:0.6"
    max_homopolymer  at least 1
    forbid           "GAATTC,EcoRI": IUPAC sites and names of restriction enzymes, or a list of such texts
    template         "NNNTATAWNNN"
    require          "TATAWAW@-30,CCAAT", or a list of such texts

    Raises UsageError naming the option.
    """
    sites = [_parse_site(text) for text in _split(forbid)]
    found = Constraints(
        None if gc is None else _parse_gc(gc),
        max_homopolymer,
        tuple(dict.fromkeys(sites)),
        None if template is None else _parse_motif(template, "--template", limit=None),
        tuple(dict.fromkeys(_parse_required(text) for text in _split(require))),
    )
    if max_homopolymer is not None and max_homopolymer < 1:
        raise UsageError(f"is {max_homopolymer}, must be at least 1", where="--max-homopolymer")
    return None if found == Constraints() else found


def _split(texts):
    texts = [] if texts is None else [texts] if isinstance(texts, str) else texts
    return [part.strip() for text in texts for part in text.split(",")]


def _spell(fraction):
    return f"{float(fraction):g}"


def _parse_gc(text):
    low, colon, high = str(text).partition(":")
    try:
        found = Fraction(low), Fraction(high)
    except (ValueError, ZeroDivisionError):
        found = None
    if not colon or found is None:
        raise UsageError(f"is {text!r}, must be two shares", where="--gc", hint="such as 0.4:0.6")
    if not 0 <= found[0] <= found[1] <= 1:
        raise UsageError(f"is {text!r}, must be 0 <= lowest <= highest <= 1", where="--gc")
    return found


def _parse_motif(text, where, limit=MOTIF_LIMIT):
    motif = text.upper().replace("U", "T")
    if not motif:
        raise UsageError("a motif is empty", where=where, hint="such as GAATTC")
    for i, letter in enumerate(motif):
        if letter not in IUPAC:
            what = f"letter {text[i]!r} at position {i + 1} of {text[:40]!r} is no IUPAC letter"
            raise UsageError(what, where=where)
    if limit is not None and len(motif) > limit:
        raise UsageError(f"a motif of {len(motif):,} letters is over {limit:,}", where=where)
    return motif


def _parse_site(text):
    """Read one site: the exact name of a restriction enzyme first, else IUPAC letters."""
    from Bio.Restriction import AllEnzymes

    names = {str(enzyme) for enzyme in AllEnzymes}
    if text in names:
        motif = AllEnzymes.get(text).site.upper()
        return Site(text, _parse_motif(motif, "--forbid"))
    if text and not set(text.upper()) <= IUPAC.keys():
        close = {name.lower(): name for name in names}.get(text.lower()) or nearest(text, names)
        hint = f"did you mean {close}?" if close else "such as GAATTC or EcoRI"
        raise UsageError(f"{text[:40]!r} is neither IUPAC letters nor an enzyme", where="--forbid", hint=hint)
    site = _parse_motif(text, "--forbid")
    return Site(site, site)


def _parse_required(text):
    motif, at, place = text.partition("@")
    motif = _parse_motif(motif, "--require")
    if not at:
        return Required(motif, None)
    try:
        position = int(place)
    except ValueError:
        position = 0
    if position == 0:
        hint = "1 is the first base, -1 the last, as in TATAWAW@-30"
        raise UsageError(f"{text[:60]!r}: the position is a whole number other than 0", where="--require", hint=hint)
    return Required(motif, position)


def reverse_complement_motif(motif):
    """Return the IUPAC letters of the other strand."""
    return motif.translate(_COMPLEMENT)[::-1]


def compile_constraints(constraints, prompt, length):
    """Return the Automaton of constraints over `length` bases after a prompt.

    Raises UsageError when no sequence satisfies them, naming the fewest options that cannot be met together.
    """
    total = len(prompt) + length
    if constraints.template is not None and len(constraints.template) != length:
        what = f"has {len(constraints.template):,} letters, but {length:,} bases are generated"
        raise UsageError(what, where="--template", hint=f"--length {len(constraints.template)}")
    for required in constraints.require:
        start = 0 if required.position is None else required.start(total)
        if start < 0 or start + len(required.motif) > total:
            width = len(required.motif)
            what = f"{required} does not fit into {total:,} bases"
            hint = f"{width} letters may begin at 1 to {total - width + 1}, or at -{total} to -{width}"
            raise UsageError(what, where="--require", hint=hint if width <= total else None)
    automaton = _build(constraints, prompt, length)
    if automaton.is_satisfiable:
        return automaton
    core = constraints.parts()
    for option in reversed(list(core)):
        rest = {name: part for name, part in core.items() if name != option}
        if not _build(_merge(rest.values()), prompt, length).is_satisfiable:
            core = rest
    what = f"no sequence of {total:,} bases satisfies {' and '.join(core)}"
    after = f", which begins with the prompt {prompt[:30]}{'...' if len(prompt) > 30 else ''}" if prompt else ""
    raise UsageError(what + after, hint="loosen one of them" if len(core) > 1 else None)


def _merge(parts):
    found = Constraints()
    for part in parts:
        changes = {
            name: getattr(found, name) + value if isinstance(value, tuple) and name != "gc" else value
            for name, value in part._asdict().items()
            if value not in (None, ())
        }
        found = found._replace(**changes)
    return found


def _build(constraints, prompt, length):
    """Turn constraints into patterns, letters allowed per place and a range of G and C."""
    total = len(prompt) + length
    forbidden, anywhere = [], []
    for site in constraints.forbid:
        forbidden += {site.motif: None, reverse_complement_motif(site.motif): None}
    if constraints.max_homopolymer is not None and constraints.max_homopolymer < total:
        forbidden += [base * (constraints.max_homopolymer + 1) for base in "ACGT"]
    allowed = [set("ACGT") for _ in range(total)]
    for i, letter in enumerate(constraints.template or ""):
        allowed[len(prompt) + i] &= set(IUPAC[letter])
    for required in constraints.require:
        if required.position is None:
            anywhere.append(required.motif)
            continue
        for i, letter in enumerate(required.motif, start=required.start(total)):
            allowed[i] &= set(IUPAC[letter])
    counts = None
    if constraints.gc is not None:
        low, high = constraints.gc
        # The smallest and largest whole numbers inside the range; the largest may be below the smallest.
        counts = -(-low * total // 1), high * total // 1
    sets = [[IUPAC[letter] for letter in motif] for motif in itertools.chain(forbidden, anywhere)]
    try:
        return Automaton(sets, len(forbidden), allowed, counts, prompt)
    except TooLarge as error:
        hint = "fewer or shorter motifs, with fewer N"
        raise UsageError(f"the constraints take too much memory together ({error})", hint=hint) from None


def to_pattern(motif):
    """Return a compiled expression that finds every occurrence of IUPAC letters, overlapping ones too."""
    return re.compile("(?=" + "".join(f"[{IUPAC[letter]}]" for letter in motif) + ")")


def count_sites(sequence, sites):
    """Return how often forbidden sites occur in a sequence, on either strand; a palindrome counts once a place."""
    count = 0
    for site in sites:
        for motif in {site.motif, reverse_complement_motif(site.motif)}:
            count += sum(1 for _ in to_pattern(motif).finditer(sequence))
    return count


def longest_run(sequence):
    """Return the length of the longest run of one letter."""
    return max((len(list(run)) for _, run in itertools.groupby(sequence)), default=0)


def find_broken(sequence, prompt_bases, constraints):
    """Return the option that a finished sequence breaks, or None; nothing here shares code with the search."""
    gc = Fraction(sequence.count("G") + sequence.count("C"), len(sequence))
    if constraints.gc is not None and not constraints.gc[0] <= gc <= constraints.gc[1]:
        return "--gc"
    if constraints.max_homopolymer is not None and longest_run(sequence) > constraints.max_homopolymer:
        return "--max-homopolymer"
    if count_sites(sequence, constraints.forbid):
        return "--forbid"
    if constraints.template and not to_pattern(constraints.template).match(sequence, prompt_bases):
        return "--template"
    for required in constraints.require:
        places = {match.start() for match in to_pattern(required.motif).finditer(sequence)}
        if not places if required.position is None else required.start(len(sequence)) not in places:
            return "--require"
    return None
