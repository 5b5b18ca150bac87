"""The log of a training run: JSON lines that always agree with the snapshots.

step -> line; snapshot -> fsync; resume -> lines after the snapshot's step are cut
"""

import contextlib
import json
import os

from hybridna_core.data.inputs import warn


class Log:
    """JSON lines beside the snapshots; on resume, lines after the snapshot's step are cut.

    A log that cannot be written costs a warning, never the run.
    """

    def __init__(self, path, step):
        self.path, self._valid = path, {}
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        kept = []
        for line in before.splitlines():
            entry = _parse_entry(line)
            if entry is not None and entry["step"] <= step:
                kept.append(line + "\n")
                self._remember(entry)
        if "".join(kept) != before:
            temporary = path.with_suffix(".partial")
            with temporary.open("w", encoding="utf-8") as handle:
                handle.writelines(kept)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        self._handle = path.open("a", encoding="utf-8")

    def _remember(self, entry):
        if "valid" in entry:
            self._valid = {entry["step"]: entry["valid"]}

    def valid_at(self, step):
        """Return what validation measured at the given step if that is the last one logged, else None."""
        return self._valid.get(step)

    def write(self, **entry):
        self._remember(entry)
        try:
            self._handle.write(json.dumps(entry) + "\n")
            self._handle.flush()
        except OSError as error:
            warn("log", f"{self.path}: a line could not be written: {error.strerror}")

    def sync(self):
        """Force the lines to disk, so that no snapshot is newer than its log."""
        with contextlib.suppress(OSError):
            os.fsync(self._handle.fileno())

    def close(self):
        with contextlib.suppress(OSError):
            self._handle.close()


def _parse_entry(line):
    """Return a log line as a dict, None when it is cut or is none of ours."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and type(entry.get("step")) is int else None
