"""Write docs/cli.md from the commands' own help.

every command -> its --help, 80 columns wide -> Markdown, to the file named on the command line or to stdout
"""

import contextlib
import io
import os
import sys

import typer

from hybridna_cli.app import build_app, run


def list_commands(group, words=()):
    """Yield the words of every command, groups before what they hold."""
    yield words
    for name, command in getattr(group, "commands", {}).items():
        yield from list_commands(command, (*words, name))


def help_of(words):
    """Return what `hybridna WORDS --help` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run([*words, "--help"])
    return out.getvalue().rstrip()


def write_cli():
    """Return the text of docs/cli.md."""
    os.environ["COLUMNS"] = "80"
    parts = ["# Command line", "Made by `make docs` from the commands' own `--help`."]
    parts.append(
        "Data go to stdout or to `-o`, all else to stderr. An error is one line, "
        "`hybridna COMMAND: error: WHERE: WHAT; HINT`; `HYBRIDNA_DEBUG=1` adds the traceback.\n\n"
        "| exit code | meaning |\n|---|---|\n"
        "| 0 | done; every input record accounted for |\n"
        "| 1 | a fault in hybridna itself; the traceback is shown and saved |\n"
        "| 2 | wrong command line or configuration; nothing read or written |\n"
        "| 3 | input data wrong, or `--strict` and something was marked |\n"
        "| 4 | model missing, damaged, not fitting or not trusted |\n"
        "| 5 | environment: file not there, permission, disk, device, dependency |\n"
        "| 6 | stopped by a guard (numbers not finite, log-probabilities that do not hold) |\n"
        "| 130, 143 | stopped by SIGINT; by SIGTERM, SIGHUP or SIGUSR1 |\n"
        "| 137 | out of memory |\n"
        "| 141 | the reader of stdout went away |"
    )
    for words in list_commands(typer.main.get_command(build_app())):
        parts.append(f"## {' '.join(['hybridna', *words])}\n\n```text\n{help_of(words)}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    text = write_cli()
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
    else:
        sys.stdout.write(text)
