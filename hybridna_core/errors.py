"""The errors a user can cause, each with a place, a hint and an exit code.

core function -> raise HybriDNAError kind -> hybridna_cli.app.main -> one line on stderr + exit code
"""


class HybriDNAError(Exception):
    """A fault that a user can mend; `str()` of it is `WHERE: WHAT; HINT`.

    what   what is wrong, without a final full stop
    where  file:line, contig:pos, tensor or step; left out when None
    hint   how to mend it; left out when None
    """

    exit_code = 1

    def __init__(self, what, *, where=None, hint=None):
        self.what, self.where, self.hint = str(what), where, hint
        super().__init__(what)

    def __str__(self):
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        text = text if self.hint is None else f"{text}; {self.hint}"
        return " ".join(text.split())


class UsageError(HybriDNAError):
    """Wrong command line or configuration; nothing was read or written."""

    exit_code = 2


class DataError(HybriDNAError):
    """Input data are wrong."""

    exit_code = 3


class ModelError(HybriDNAError):
    """A model or checkpoint is missing, damaged, not fitting or not trusted."""

    exit_code = 4


class SystemFault(HybriDNAError):
    """The environment fails: file not there, permission, disk, device, dependency."""

    exit_code = 5


class GuardError(HybriDNAError):
    """A guard stopped the run (non-finite numbers, dead beams); the last checkpoint is good."""

    exit_code = 6


class OutOfMemory(HybriDNAError):
    """Memory ran out after backing off."""

    exit_code = 137


class Stopped(HybriDNAError):
    """A signal ended the run; work so far is kept and the same command resumes it."""

    def __init__(self, what, *, signal_number, where=None, hint=None):
        super().__init__(what, where=where, hint=hint)
        self.exit_code = 130 if signal_number == 2 else 143


class Elsewhere(HybriDNAError):
    """Another process of the same run stopped it and says why; this one leaves with the same code, in silence."""

    def __init__(self, exit_code):
        super().__init__("stopped by another process of this run")
        self.exit_code = exit_code


def nearest(word, known):
    """Return the member of `known` most like `word`, or None when nothing is close."""
    import difflib

    found = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return found[0] if found else None
