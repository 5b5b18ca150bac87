"""Time the beam search of `generate`: seconds, peak of memory, and beside it two other ways to the same beams.

model -> search_beams, as it is | every candidate read from the start at each step | transformers' generate on the same
weights in its Bamba -> seconds, peak, ratios, whether the sequences are the same
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from hybridna_core.checkpoint import load_model
from hybridna_core.generation import start_tokens
from hybridna_core.memory import forget_peak, keep_freed_memory, peak_bytes, used_bytes
from hybridna_core.model.likelihood import base_log_probs, read
from hybridna_core.search import Beams, count_bytes, count_slice, search_beams
from hybridna_core.tokenizer import BASE_IDS, N, decode

ROOT = Path(__file__).resolve().parent.parent


def go_apart(way, size, options):
    """Go one way once in a process of its own, since memory freed by another way would hide what this one takes.

    returns  {"bytes", "seconds", "sequences", "log_probs"}
    """
    command = [sys.executable, __file__, "--one", way, "--sizes", size, "--model", options.model]
    command += ["--threads", str(options.threads)] + (["--label", options.label] if options.label else [])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def search(model, head, length, width):
    """Search as `generate` does; return sequences, best first, and their log-probabilities."""
    beams = Beams(width)
    at_once = count_slice(model.config, model.device, model.dtype, len(head), length, beams)
    _, reading = read(model, torch.from_numpy(head)[None])
    found = search_beams(model, reading, length, beams, rows_at_once=at_once)
    return [decode(ids) for ids in found.ids], found.log_probs


@torch.no_grad()
def reread(model, head, length, width, rows_at_once=256):
    """Search with every candidate read from the start at each step; return as `search`."""
    ids, sums = torch.empty(1, 0, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    for _ in range(length):
        # Each beam with each base is a candidate of its own, and none of them has a state to go on from.
        candidates = torch.cat([ids.repeat_interleave(4, 0), torch.tensor(BASE_IDS).repeat(len(ids))[:, None]], dim=1)
        rows = torch.cat([torch.from_numpy(head).expand(len(candidates), -1), candidates], dim=1)
        parts = [read(model, part)[0][:, len(head) :].sum(dim=1) for part in rows.split(rows_at_once)]
        sums = torch.cat(parts)
        best = torch.sort(sums, descending=True, stable=True).indices[:width]
        ids, sums = candidates[best], sums[best]
    return [decode(row.numpy()) for row in ids], sums.numpy()


def make_oracle(model):
    """Return transformers' Bamba with the weights of a model, held to A, C, G and T; None without transformers."""
    try:
        import transformers
    except ImportError:
        return None
    sys.path.insert(0, str(ROOT / "tests"))
    from bamba import make_bamba

    oracle = make_bamba(model.config, chunk_size=64)
    missing = oracle.load_state_dict(model.state_dict(), strict=False)
    if missing.missing_keys or missing.unexpected_keys:
        sys.exit(f"Bamba has other tensors: {missing}")

    class Renormalized(transformers.LogitsProcessor):
        # Beam search sums log-softmax over the whole vocabulary; ours is over the four bases.
        def __call__(self, tokens, scores):
            found = torch.full_like(scores, -torch.inf)
            found[:, BASE_IDS[0] : N] = base_log_probs(scores)
            return found

    return oracle, transformers.LogitsProcessorList([Renormalized()])


@torch.no_grad()
def search_with_transformers(oracle, head, length, width):
    """Search with transformers' own beam search; return as `search`."""
    model, processors = oracle
    found = model.generate(
        torch.from_numpy(head)[None], attention_mask=torch.ones(1, len(head), dtype=torch.int64), do_sample=False,
        max_new_tokens=length, min_new_tokens=length, num_beams=width, num_return_sequences=width,
        length_penalty=0.0, logits_processor=processors, pad_token_id=N, eos_token_id=None, output_scores=True,
        return_dict_in_generate=True, use_cache=True,
    )  # fmt: skip
    return [decode(row[len(head) :].numpy()) for row in found.sequences], found.sequences_scores.double().numpy()


def compare(ours, other):
    """Say how many of the other's sequences are among ours, and how far log-probabilities of those differ at most."""
    scores = dict(zip(*other, strict=True))
    shared = [(score, scores[text]) for text, score in zip(*ours, strict=True) if text in scores]
    return len(shared), float(max((abs(a - b) for a, b in shared), default=np.nan))


def make_ways(model, head, length, width, oracle):
    """Return {name: function of no arguments}; each gives sequences and log-probabilities."""
    ways = {"ours": lambda: search(model, head, length, width), "reread": lambda: reread(model, head, length, width)}
    if oracle is not None:
        ways["transformers"] = lambda: search_with_transformers(oracle, head, length, width)
    return ways


def measure(model, size, oracle, options):
    """Return one row of the table."""
    width, length = (int(part) for part in size.split("x"))
    head = start_tokens(model.config, model.tokenizer, options.label, "")
    limits = {"reread": options.reread_limit, "transformers": options.transformers_limit}
    ways = make_ways(model, head, length, width, oracle)
    ways = {name: way for name, way in ways.items() if width <= limits.get(name, width)}
    found, seconds = {}, {name: [] for name in ways}
    timed = [name for name in ways if name != "reread"]
    # In turn, so that other work on the machine falls on all of them.
    for _ in range(options.repeats if len(timed) > 1 else 1):
        for name in timed:
            began = time.perf_counter()
            found[name] = ways[name]()
            seconds[name].append(time.perf_counter() - began)
    apart = {name: go_apart(name, size, options) for name in ways}
    for name, once in apart.items():
        # Where a go takes many minutes, one is enough.
        if not seconds[name]:
            found[name], seconds[name] = (once["sequences"], once["log_probs"]), [once["seconds"]]
    per_row, fixed = count_bytes(model.config, model.device, model.dtype, len(head), length, Beams(width))
    row = {"beams": width, "bases": length, "mib_estimated_at_least": (fixed + width * per_row) / 2**20}
    for name in ways:
        row |= {f"{name}_seconds": min(seconds[name]), f"{name}_mib": apart[name]["bytes"] / 2**20}
        if name != "ours":
            row[f"{name}_ratio"] = row[f"{name}_seconds"] / row["ours_seconds"]
            row[f"{name}_same"], row[f"{name}_differs_by"] = compare(found["ours"], found[name])
    # Four candidates of each beam, each read whole at each step, against one base of each beam.
    tokens = 4 * sum(min(width, 4**step) * (len(head) + step + 1) for step in range(length))
    row["reread_tokens_ratio"] = tokens / sum(min(width, 4 ** (step + 1)) for step in range(length - 1))
    return row


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base", help="bundled model or folder")
    parser.add_argument("--label", help="label that the sequences follow")
    parser.add_argument("--sizes", nargs="+", default=["256x80", "2500x200"], help="BEAMSxBASES")
    parser.add_argument("--reread-limit", type=int, default=256, help="most beams to read every candidate again for")
    parser.add_argument("--transformers-limit", type=int, default=256, help="most beams for transformers")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="times that each way but reread is gone in turn, the fastest counts; 0: once, each in its own process",
    )
    parser.add_argument("--limit", type=float, help="exit with 1 if transformers takes less than this many times ours")
    parser.add_argument(
        "--one", choices=("ours", "reread", "transformers"), help="go one way once, print what came of it"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    # As `generate` does, for all ways.
    keep_freed_memory()
    model = load_model(options.model, device="cpu")
    oracle, rows = make_oracle(model) if options.one in (None, "transformers") else None, []
    if options.one is not None:
        width, length = (int(part) for part in options.sizes[0].split("x"))
        head = start_tokens(model.config, model.tokenizer, options.label, "")
        ways = make_ways(model, head, length, width, oracle)
        # Loading torch and the model takes more than a small search.
        forget_peak()
        before, began = used_bytes("cpu"), time.perf_counter()
        sequences, log_probs = ways[options.one]()
        seconds = time.perf_counter() - began
        print(json.dumps({"bytes": peak_bytes() - before, "seconds": seconds, "sequences": sequences,
                          "log_probs": [float(value) for value in log_probs]}))  # fmt: skip
        return
    for size in options.sizes:
        rows.append(measure(model, size, oracle, options))
        for name, value in rows[-1].items():
            print(f"{size}\t{name}\t{value:.6g}", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    table = {"model": model.name, "model_sha256": model.digest, "threads": options.threads,
             "torch": torch.__version__, "commit": commit.stdout.strip() or "unknown", "rows": rows}  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")
    ratios = [row["transformers_ratio"] for row in rows if "transformers_ratio" in row]
    if options.limit is not None and ratios and min(ratios) < options.limit:
        sys.exit(f"transformers takes {min(ratios):.2f} times as long, at least {options.limit:g} are wanted")


if __name__ == "__main__":
    main()
