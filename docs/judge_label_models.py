"""Generate with the bundled label models, hold the designs against oracles, and write docs/designs.md.

tables and models of make_label_models.py -> generate, finetune (an oracle), evaluate design -> tables -> page

Steps that are done are skipped, so the same command goes on after any stop.
"""

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
YEAST_LABELS, HUMAN_LABELS = ("00", "22", "44", "40", "04"), ("300", "030", "003")
HEAD = """# Designs of the bundled label models

Written by `make designs` (docs/judge_label_models.py); do not edit. Columns are those of `hybridna evaluate
design`, see [generate.md](generate.md).
"""
YEAST = """
## Yeast promoters

{count} sequences of 80 bp were drawn for each label. The oracle is a regression fine-tuned from `base` on a third
of the training groups, which the generator's fine-tuning has not read; `real` are promoters of groups that neither
fine-tuning has read (`base` has read the yeast genome, so the native ones among them are near to what it knows),
`blind` was drawn by the same training without labels. Activity is log expression in YPD and SC-Ura by the oracle.
`40` and `04` ask for what nature hardly does (the media agree with r 0.965, and the training has at most one sequence
of either), so these two rows are guesses and are shown for that. What a label does is the distance of `designs` from
`blind` towards `real` of the same label.
"""
HUMAN = """
## Simulated enhancers

**Simulated: nothing here was measured.** {count} sequences of 200 bp were drawn for each label. The oracle is the
assay's own function without noise; `real` are windows of the held-out megabase with planted motifs, as simulated
for all labels.
"""


class Steps:
    """Runs commands of this checkout in a folder, once each, and keeps what they were."""

    def __init__(self, out):
        self.out, self.commands = out, []

    def run(self, made, *words):
        """Run `hybridna WORDS` unless what it makes is there."""
        words = [str(word) for word in words]
        self.commands.append(f"hybridna {' '.join(words)}")
        if not (self.out / made).exists():
            done = subprocess.run([sys.executable, "-m", "hybridna_cli", *words], cwd=self.out)
            if done.returncode:
                sys.exit(f"exit {done.returncode}: hybridna {' '.join(words)}")

    def draw(self, model, label, count):
        name = f"{label}.fa"
        self.run(name, "generate", "-m", model, "--label", label, "-n", count, "-o", name)
        return name


def judge_yeast(steps, count):
    """Return the page's part on the yeast promoters."""
    steps.commands = []
    names = [steps.draw("yeast-promoters", label, count) for label in YEAST_LABELS]
    blind = ("-m", "yeast-promoters-blind", "-n", count, "--length", 80)
    steps.run("blind.fa", "generate", *blind, "-o", "blind.fa")
    columns = ("--label-column", "YPD", "--label-column", "SC-Ura", "--split-column", "split")
    trained = ("--epochs", 12, "--lr", "1e-3")
    steps.run("oracle", "finetune", "yeast.other.tsv", "-o", "oracle", "--task", "regression", *columns, *trained)
    real = ("--real", "yeast.tsv", "--split-column", "split", "--value-column", "YPD", "--value-column", "SC-Ura")
    steps.run(
        "yeast-designs.md", "evaluate", "design", *names, *real, "--oracle", "oracle", "-m", "yeast-promoters",
        "--beside", "blind=blind.fa", "-o", "yeast-designs.tsv", "--markdown", "yeast-designs.md",
    )  # fmt: skip
    return spell(YEAST, steps, count, "yeast-designs.md")


def judge_human(steps, count):
    """Return the page's part on the simulated enhancers."""
    steps.commands = []
    names = [steps.draw("human-enhancers-demo", label, count) for label in HUMAN_LABELS]
    real = ("--real", "human.tsv", "--split-column", "split")
    steps.run(
        "human-designs.md", "evaluate", "design", *names, *real, "--oracle", "simulated", "-o", "human-designs.tsv",
        "--markdown", "human-designs.md",
    )  # fmt: skip
    return spell(HUMAN, steps, count, "human-designs.md")


def spell(about, steps, count, table):
    commands = "\n".join(f"    {command}" for command in steps.commands)
    return "\n".join([about.format(count=count), commands, "", (steps.out / table).read_text().rstrip(), ""])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of make_label_models.py: tables, blind model")
    parser.add_argument("--count", type=int, default=100, help="designs per label")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "designs.md", help="page to write")
    options = parser.parse_args(argv)
    steps = Steps(options.out)
    parts = [judge_human(steps, options.count), judge_yeast(steps, options.count)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    made = f"\n{datetime.date.today().isoformat()}, commit {commit.stdout.strip() or 'unknown'}.\n"
    options.page.write_text("".join([HEAD, made, *parts]))


if __name__ == "__main__":
    main()
