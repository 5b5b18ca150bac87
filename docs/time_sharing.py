"""Time the scorer beside two full passes per allele: the same model, the same scores, in turn.

demo chromosome -> single-base changes, apart or side by side -> Scorer, and each allele read whole -> ratio of seconds

Both ways must agree before either is timed. Lone changes and saturation keep the horizon of half a window; the last
lines compare the saturation of a shorter horizon, which is another score, with two full passes of the whole window.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from time_variants import name_cpu

from hybridna_core.checkpoint import load_model
from hybridna_core.data.genome import open_genome
from hybridna_core.data.variants import Allele, Piece, Variant
from hybridna_core.model.likelihood import read
from hybridna_core.scoring import Plan, Scorer
from hybridna_core.tokenizer import encode, reverse_complement

ROOT = Path(__file__).resolve().parent.parent
# name, places side by side or apart, stride, horizon (None: half the window), aim of the ratio (None: none).
# A window of 2,048 with a horizon of 256 at a stride of 8 reads at most 12.0 times fewer tokens: the aim of 12 in time
# is held against a stride of 64.
CASES = (
    ("lone changes", False, 1, None, 1.15),
    ("saturation", True, 8, None, 3),
    ("saturation, horizon 256", True, 8, 256, None),
    ("saturation, horizon 256, stride 64", True, 64, 256, 12),
)


def choose_changes(genome, window, count, is_dense):
    """Return (contig, start, base) of single-base changes: all three at neighbouring places, or one at places apart."""
    contig, length = next(iter(genome.contigs.items()))
    step = 1 if is_dense else length // (count + 1)
    # So many places fill the groups that a stride makes of them.
    first = max(2 * window, step) // 64 * 64 + 1
    chosen = []
    for start in range(first, first + count * step, step):
        alts = "ACGT".replace(genome.fetch(contig, start, start + 1), "")
        chosen += [(contig, start, alt) for alt in (alts if is_dense else alts[:1])]
    return chosen


def share(model, genome, changes, plan):
    """Return the scores of the changes, nats, as the commands make them, and the tokens read."""
    scorer = Scorer(model, genome, plan)
    found = [
        scorer.score(Allele("ok", Variant(contig, start, start + 1, (Piece(0, 1, ids=encode(alt)),)))).llr
        for contig, start, alt in changes
    ]
    return found, scorer.tokens


def pass_twice(model, genome, changes, plan):
    """Return the scores of the changes, nats, each allele read from the start of its window to the end, and the tokens.

    Windows start where the strides of the plan put them, so that the scores are those of the shared way.
    """
    found, tokens = [], 0
    for contig, start, alt in changes:
        values = []
        for is_reverse in (False, True):
            length = genome.contigs[contig]
            change = length - 1 - start if is_reverse else start
            earliest = change - (plan.window - plan.horizon)
            if is_reverse:
                begin = length - (length - earliest) // plan.stride * plan.stride
            else:
                begin = -(-earliest // plan.stride) * plan.stride
            end = change + plan.horizon
            sums = []
            for base in (None, alt):
                if is_reverse:
                    text = genome.fetch(contig, length - end, length - begin)
                    at = start - (length - end)
                else:
                    text, at = genome.fetch(contig, begin, end), start - begin
                text = text if base is None else text[:at] + base + text[at + 1 :]
                text = reverse_complement(text) if is_reverse else text
                ids = np.concatenate([[model.config.bos_token_id], encode(text)]).astype(np.int64)
                log_probs, _ = read(model, torch.from_numpy(ids)[None])
                tokens += len(ids)
                sums.append(log_probs[0].numpy()[1 + change - begin :])
            values.append(float((sums[1] - sums[0]).sum()))
        found.append(sum(values) / 2)
    return found, tokens


def compare_ways(model, genome, case, window, repeats):
    """Return a row of the table: median seconds of both ways, their ratio, its range, the tokens of both."""
    name, is_dense, stride, horizon, aim = case
    changes = choose_changes(genome, window, max(stride, 16) if is_dense else 12, is_dense)
    shared_plan, full_plan = Plan(window, horizon or window // 2, stride), Plan(window, window // 2, stride)
    shared, shared_tokens = share(model, genome, changes, shared_plan)
    same, _ = pass_twice(model, genome, changes, shared_plan)
    apart = float(np.max(np.abs(np.subtract(shared, same))))
    if apart > 1e-4:
        sys.exit(f"{name}: the two ways differ by {apart:.2g} nats")
    seconds, full_tokens = [], 0
    for _ in range(repeats):
        begun = time.perf_counter()
        share(model, genome, changes, shared_plan)
        middle = time.perf_counter()
        _, full_tokens = pass_twice(model, genome, changes, full_plan)
        seconds.append((middle - begun, time.perf_counter() - middle))
    ratios = [full / ours for ours, full in seconds]
    return {
        "case": name, "alleles": len(changes), "window": window, "horizon": shared_plan.horizon, "stride": stride,
        "shared_s": statistics.median(ours for ours, _ in seconds), "full_s": statistics.median(f for _, f in seconds),
        "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
        "tokens_ratio": full_tokens / shared_tokens, "aim": aim, "largest_difference": apart,
    }  # fmt: skip


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
        rows = [compare_ways(model, genome, case, options.window, options.repeats) for case in CASES]
    print("| case | alleles | shared | two full passes | ratio | range | in tokens | aim |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['case']} | {row['alleles']} | {row['shared_s']:.2f} s | {row['full_s']:.2f} s "
            f"| {row['ratio']:.2f} | {row['least']:.2f}-{row['most']:.2f} | {row['tokens_ratio']:.2f} "
            f"| {row['aim'] or ''} |"
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
