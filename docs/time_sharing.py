"""Time the scorer beside two full passes per allele: the same model, the same scores, in turn.

demo chromosome -> single-base changes, apart or side by side -> Scorer, and each allele read whole -> ratio of seconds

Both ways must agree before either is timed. Lone changes and saturation keep the horizon of half a window; the last
lines compare the saturation of a shorter horizon, which is another score, with two full passes of the whole window.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

import torch
from time_variants import name_cpu

from hybridna_core.checkpoint import load_model
from hybridna_core.data.genome import open_genome
from hybridna_core.slow_ways import SCORE_CASES, time_scores

ROOT = Path(__file__).resolve().parent.parent
# Of the ratio, by case. Saturation at a horizon of 256 and a stride of 8 reads at most 12.0 times fewer tokens, so that
# its aim is held against a stride of 64.
AIMS = {"lone changes": 1.15, "saturation": 3, "saturation, horizon 1/8, stride 64": 12}


def compare_ways(model, genome, case, window, repeats):
    """Return a row of the table: seconds (median, least, most) of both ways, the ratio, that of the tokens read."""
    timing, plan, tokens_ratio = time_scores(model, genome, case, window, repeats)
    return {
        "case": timing.case, "alleles": timing.count, "window": window, "horizon": plan.horizon, "stride": plan.stride,
        "shared_s": timing.hybridna, "full_s": timing.other, "ratio": timing.ratio, "tokens_ratio": tokens_ratio,
        "aim": AIMS.get(timing.case), "largest_difference": timing.difference,
    }  # fmt: skip


def spell(seconds):
    return "{:.2f} s ({:.2f}-{:.2f})".format(*seconds)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base", help="bundled model or folder")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--window", type=int, default=2048, help="bases of prefix and horizon")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats, both ways in turn")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where an aim is missed")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    model = load_model(options.model, device="cpu")
    with open_genome(ROOT / "demo" / "yeast_chrI.fa.gz") as genome:
        rows = [compare_ways(model, genome, case, options.window, options.repeats) for case in SCORE_CASES]
    print("| case | alleles | shared | two full passes | ratio | in tokens | aim |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['case']} | {row['alleles']} | {spell(row['shared_s'])} | {spell(row['full_s'])} "
            f"| {row['ratio']:.2f} | {row['tokens_ratio']:.2f} | {row['aim'] or ''} |"
        )
    if options.json:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
        table = {
            "model": model.name, "model_sha256": model.digest, "threads": options.threads, "cpu": name_cpu(),
            "torch": torch.__version__, "date": datetime.date.today().isoformat(),
            "commit": commit.stdout.strip() or "unknown", "rows": rows,
        }  # fmt: skip
        options.json.write_text(json.dumps(table, indent=2) + "\n")
    missed = [row["case"] for row in rows if row["aim"] and row["ratio"] < row["aim"]]
    if options.check and missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
