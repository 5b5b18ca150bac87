"""What an evaluation leaves behind: a table as TSV or Markdown, and rows that outlive a run that is stopped.

columns, rows of cells as text -> file; rows one by one -> FILE.part -> read again by the same call
"""

import hashlib
import os

from hybridna_core.data.inputs import warn
from hybridna_core.data.writers import check_output, is_stdout, open_output
from hybridna_core.errors import UsageError


def check_report(output, inputs, force):
    """Raise UsageError or SystemFault before any work if a table cannot be written to `output`; None is none."""
    if output is None:
        return
    check_output(output, inputs=inputs, force=force)
    if not is_stdout(output) and not str(output).endswith((".tsv", ".md")):
        raise UsageError("the name tells no table format", where=output, hint="end it in .tsv or .md")


def write_report(output, columns, rows, force=False):
    """Write a table of text cells, as Markdown if the name ends in .md, else as TSV."""
    if output is None:
        return
    if str(output).endswith(".md"):
        lines = [columns, ["---"] * len(columns), *rows]
        text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    else:
        text = "".join("\t".join(cells) + "\n" for cells in [columns, *rows])
    with open_output(output, force) as handle:
        handle.write(text.encode())


class Kept:
    """What was scored before a run was stopped, kept beside an output and read again by the same call.

    rows  one text per change, in order
    """

    def __init__(self, output, facts):
        self.path = None if output is None or is_stdout(output) else f"{os.fspath(output)}.part"
        self.key = hashlib.sha256(repr(facts).encode()).hexdigest()
        self.rows, self.handle = [], None

    def __enter__(self):
        if self.path is None:
            return self
        lines, size = [], 0
        if os.path.exists(self.path):
            with open(self.path, "rb") as handle:
                lines = [line for line in handle if line.endswith(b"\n")]
        if lines and lines[0].decode("ascii", "replace").strip() == self.key:
            self.rows = [line.decode("ascii").strip() for line in lines[1:]]
            size = sum(map(len, lines))
        elif lines:
            warn("other-run", f"{self.path} is of another run; starting anew")
        self.handle = open(self.path, "ab")
        # A line that was cut when the run ended is done again.
        self.handle.truncate(size)
        if not size:
            self.handle.write(f"{self.key}\n".encode())
        return self

    def __exit__(self, *_):
        if self.handle is not None:
            self.handle.close()

    def add(self, row):
        self.rows.append(row)
        if self.handle is not None:
            self.handle.write(f"{row}\n".encode())
            self.handle.flush()

    def finish(self):
        """Remove the file, as the output is whole."""
        if self.path is not None:
            os.unlink(self.path)
