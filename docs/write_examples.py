"""Put the real output of each README example below its command.

README.md -> console blocks -> each `$ command` run in the repository's root -> its stdout below it -> README.md
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def examples(text):
    """List (command, output as it stands) of every console block."""
    return re.findall(r"^```console\n\$ (.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)


def run_example(command, folder):
    """Return what a command prints on stdout in a folder; raise CalledProcessError when any part of it fails."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    # head closes the pipe early on purpose.
    line = f"set -o pipefail; {command} || test $? = 141"
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def write_examples(text, folder):
    """Return README text with the output of every example made anew."""
    for command, old in examples(text):
        block = f"```console\n$ {command}\n"
        text = text.replace(f"{block}{old}```", f"{block}{run_example(command, folder)}```")
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(write_examples(readme.read_text(encoding="utf-8"), ROOT), encoding="utf-8")
