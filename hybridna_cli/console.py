"""Progress, warnings and the closing summary; everything on stderr.

core -> progress(done, total) -> bar on a terminal, else a line now and then
core -> logging -> `hybridna CMD: warning: ...`, ten of a kind, then a count
core -> summary -> one closing line, and --summary-json
"""

import collections
import json
import logging
import os
import sys
import time
from contextlib import contextmanager

LOGGER = logging.getLogger("hybridna")
WARNINGS_OF_A_KIND = 10
SECONDS_BETWEEN_LINES = 30.0


def say(command, text):
    """Print one line about a command on stderr."""
    name = f"hybridna {command}" if command else "hybridna"
    print(f"{name}: {' '.join(str(text).split())}", file=sys.stderr, flush=True)


class Warnings(logging.Handler):
    """Prints what the core logs: warnings, ten of a kind and then a count, and plain information."""

    def __init__(self, command):
        super().__init__(logging.INFO)
        self.command, self.seen = command, collections.Counter()

    def emit(self, record):
        if record.levelno < logging.WARNING:
            say(self.command, record.getMessage())
            return
        kind = getattr(record, "kind", record.msg)
        self.seen[kind] += 1
        if self.seen[kind] <= WARNINGS_OF_A_KIND:
            say(self.command, f"warning: {record.getMessage()}")

    def close_counts(self):
        """Say how many warnings of each kind were not printed."""
        for kind, count in self.seen.items():
            if count > WARNINGS_OF_A_KIND:
                say(self.command, f"warning: {count - WARNINGS_OF_A_KIND:,} more of this kind: {kind}")
        self.seen.clear()


def spell_time(seconds):
    """Spell a duration: 42 s, 7 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Lines:
    """Progress for a log: a line now and then, with rate and time left."""

    def __init__(self, command, clock=time.monotonic):
        self.command, self.clock = command, clock
        self.start = self.last = clock()
        self.first = None

    def __call__(self, done, total=None, note=""):
        now = self.clock()
        if self.first is None:
            # A run that goes on from a snapshot does not begin at 0, and loading is no part of the rate.
            self.first, self.start = done, now
        if now - self.last < SECONDS_BETWEEN_LINES or now == self.start:
            return
        self.last = now
        rate = (done - self.first) / (now - self.start)
        text = f"{done:,}" if total is None else f"{done:,} of {total:,} ({100 * done / max(total, 1):.0f} %)"
        text += f", {rate:,.3g}/s"
        if total is not None and rate > 0:
            text += f", {spell_time((total - done) / rate)} left"
        say(self.command, f"{text}, {note}" if note else text)

    def close(self):
        pass


class Bar:
    """Progress for a terminal: one bar that rich draws."""

    def __init__(self, command):
        from rich import progress as rich_progress
        from rich.console import Console

        self.command = command
        self.bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"), rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(), rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task(f"hybridna {command}", total=None)
        self.bar.start()

    def __call__(self, done, total=None, note=""):
        self.bar.update(self.task, completed=done, total=total, description=f"hybridna {self.command} {note}".strip())

    def close(self):
        self.bar.stop()


def start_progress(command):
    """Return a progress callable that suits stderr."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Bar(command)
    return Lines(command)


class Report:
    """What a command shows while it runs: `progress` for the core, `summary` for the end."""

    def __init__(self, progress):
        self.progress, self.summary = progress, None


@contextmanager
def reporting(command, quiet=False, summary_json=None):
    """Give a command its progress callable; when it ends well, print its summary and write --summary-json.

    with reporting("embed", quiet, summary_json) as report:
        report.summary = embed(..., progress=report.progress)
    """
    LOGGER.setLevel(logging.WARNING if quiet else logging.INFO)
    if summary_json is not None:
        check_json(summary_json)
    progress = None if quiet else start_progress(command)
    report = Report(progress)
    try:
        yield report
    finally:
        if progress is not None:
            progress.close()
    for handler in LOGGER.handlers:
        if isinstance(handler, Warnings):
            handler.close_counts()
    if report.summary is None:
        return
    table = report.summary if isinstance(report.summary, dict) else report.summary.to_dict()
    if not quiet:
        say(command, spell_summary(table))
    if summary_json is not None:
        write_json(table, summary_json)


def spell_summary(table):
    """Spell a summary in one line: `records 510, ok 498, ref_mismatch 12, seconds 3.1`.

    Nested counts of 0 are left out, and so are lists, which are for --summary-json.
    """
    parts = []
    for key, value in table.items():
        if isinstance(value, dict):
            parts += [f"{k} {_spell_value(v)}" for k, v in value.items() if v not in (0, None)]
        elif value is not None and not isinstance(value, list | tuple):
            parts.append(f"{key} {_spell_value(value)}")
    return ", ".join(parts)


def _spell_value(value):
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def check_json(path):
    """Raise before any work if `path` cannot take a JSON file: an earlier one may be replaced, other files not."""
    from hybridna_core.data.writers import check_output
    from hybridna_core.errors import UsageError

    check_output(path, force=True)
    if os.path.isfile(path) and os.path.getsize(path):
        with open(path, "rb") as handle:
            if handle.read(1) != b"{":
                raise UsageError("is there already and is no JSON", where=path, hint="give another name")


def write_json(table, path):
    """Write a table as JSON; `-` is stdout. Unlike data, an earlier JSON file is replaced without asking."""
    from hybridna_core.data.writers import open_output

    # Again, since the command may have made this very file.
    check_json(path)
    with open_output(path, force=True) as handle:
        handle.write((json.dumps(table, indent=2, default=str) + "\n").encode())
