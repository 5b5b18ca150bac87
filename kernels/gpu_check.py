"""The Triton kernels on a CUDA device: right, and how fast; and attention to earlier keys. Started by gpu_check.sh.

inputs of the presets' shapes -> kernels, plain torch, mamba-ssm where installed -> parity.json, time.json -> table.md
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from hybridna_kernels import installed, packages, reference
from hybridna_kernels import triton as ours
from hybridna_kernels.triton import setting

NO_DEVICE = 5

# Nanoseconds per token of one block of 300m in bfloat16 on one H200, written down before any was measured: bytes moved
# at 4.3 TB/s for all but the recurrence, which is given 30 % of 790 TFLOP/s. A step is per row.
PREDICTED = {
    "ssd_scan": 7.0, "ssd_scan_training": 42.0, "ssd_step": 600.0, "causal_conv1d": 2.7, "gated_rms_norm": 3.3,
    "add_rms_norm": 2.3, "cross_entropy": 0.8,
}  # fmt: skip

# Largest difference allowed, relative to the largest value. Plain TF32 would lose 1e-3.
LIMITS = {torch.float32: 5e-5, torch.bfloat16: 2e-2}

# heads, head_dim, groups, state_size of 300m
FULL = (32, 64, 1, 128)


def draw(length, heads, head_dim, groups, size, batch, device, dtype):
    """Draw inputs of every kernel; return a dict of op -> (tensors, tokens)."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    width = heads * head_dim
    channels = width + 2 * groups * size
    # x, B and C are slices of one tensor, as the model has them.
    mixed = normal(batch, length, channels)
    x, B, C = mixed.split([width, groups * size, groups * size], dim=-1)
    x = x.unflatten(-1, (heads, head_dim))
    B, C = (t.unflatten(-1, (groups, size)) for t in (B, C))
    dt = F.softplus(normal(batch, length, heads).float() - 3)
    A, D = -torch.exp(normal(heads).float()), normal(heads).float()
    state = normal(batch, heads, head_dim, size).float()
    rows, narrow = normal(batch, length, width), max(8, width // 2)
    target = torch.randint(12, (batch * length,), generator=generator).to(device)
    few = max(1, heads // 2)
    q, k, v = (normal(batch, n, h, 32) for n, h in ((length, heads), (length + 70, few), (length + 70, few)))
    return {
        "attention": (q, k, v, *(t[:1, :50] for t in (v, k))),
        "ssd_scan": (x, dt, A, B, C, D, state),
        "ssd_step": (x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state, torch.arange(batch - 1, -1, -1, device=device)),
        "causal_conv1d": (mixed, normal(channels, 4), normal(channels), normal(batch, 3, channels)),
        "gated_rms_norm": (rows, rows.flip(-1), normal(width).float()),
        "add_rms_norm": (rows[..., :narrow].contiguous(), rows[..., -narrow:].contiguous(), normal(narrow).float()),
        "cross_entropy": (rows.reshape(-1, width), normal(12, width), target),
    }


def plain_add_rms_norm(x, more, weight):
    total = x + more
    exact = reference.accumulation_dtype(x)
    return total, F.rms_norm(total.to(exact), total.shape[-1:], weight.to(exact), 1e-6).to(x.dtype)


def plain_cross_entropy(hidden, head, target):
    return F.cross_entropy((hidden @ head.t()).to(reference.accumulation_dtype(hidden)), target, reduction="none")


# op -> (kernel, plain torch), of the tensors that `draw` gives. Attention, to earlier and shared keys, is torch's own.
OPS = {
    "attention": tuple(
        lambda *t, f=f: f(*t[:3], shared_k=t[3], shared_v=t[4]) for f in (installed.sdpa, reference.attention)
    ),
    "ssd_scan": tuple(lambda *t, f=f: f(*t[:6], state=t[6]) for f in (ours.ssd_scan, reference.ssd_scan)),
    "ssd_step": tuple(lambda *t, f=f: f(*t[:7], rows=t[7]) for f in (ours.ssd_step, reference.ssd_step)),
    "causal_conv1d": tuple(
        lambda *t, f=f: f(*t[:3], state=t[3]) for f in (ours.causal_conv1d, reference.causal_conv1d)
    ),
    "gated_rms_norm": tuple(lambda *t, f=f: f(*t, 1e-6) for f in (ours.gated_rms_norm, reference.gated_rms_norm)),
    "add_rms_norm": (lambda *t: ours.add_rms_norm(*t, 1e-6), plain_add_rms_norm),
    "cross_entropy": (ours.cross_entropy, plain_cross_entropy),
}

# op -> (package, its adapter, what it refuses, how many of the tensors are positional, the name of the next one).
ADAPTERS = {
    "ssd_scan": ("mamba_ssm", packages.ssd_scan, packages.refuse_ssd_scan, 6, "state"),
    "ssd_step": ("mamba_ssm", packages.ssd_step, packages.refuse_ssd_step, 7, "rows"),
    "causal_conv1d": ("causal_conv1d", packages.causal_conv1d, packages.refuse_causal_conv1d, 3, "state"),
}


def adapters(op, tensors):
    """Return kernels of other packages that take these tensors, as {package: function}."""
    if op not in ADAPTERS:
        return {}
    package, adapter, refuse, count, name = ADAPTERS[op]
    if refuse(tensors[:count], {name: tensors[count]}) is not None:
        return {}
    return {package: lambda *t: adapter(*t[:count], **{name: t[count]})}


def results(function, tensors, backward):
    """Return the outputs, and the gradients of a fixed random sum of them."""
    leaves = [t.detach().requires_grad_(backward and t.is_floating_point()) for t in tensors]
    out = function(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    if not backward:
        return list(out)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, generator=generator).to(o.device, o.dtype) for o in out]
    total = sum((o * w).sum() for o, w in zip(out, weights, strict=True))
    return [o.detach() for o in out] + list(torch.autograd.grad(total, [t for t in leaves if t.requires_grad]))


def parity(device, lengths=(1, 63, 64, 65, 257, 4133), shapes=((4, 64, 1, 64), (8, 64, 2, 64), (4, 64, 1, 128))):
    """Compare each kernel, outputs and gradients, with plain torch in float64; return rows as dicts."""
    rows = []
    for dtype in LIMITS:
        for shape in shapes:
            if shape[3] > setting.LARGEST[dtype][1]:
                continue
            for length in lengths:
                for op, tensors in draw(length, *shape, 2, device, dtype).items():
                    kernel, plain = OPS[op]
                    about = {"op": op, "dtype": str(dtype), "shape": shape, "length": length, "limit": LIMITS[dtype]}
                    own = "sdpa" if op == "attention" else "triton"
                    for name, function in {own: kernel, **adapters(op, tensors)}.items():
                        row = {"kernel": name, **about}
                        try:
                            backward = op not in ("ssd_step", "attention")
                            found = results(function, tensors, backward)
                            exact = [t.double() if t.is_floating_point() else t for t in tensors]
                            due = results(plain, exact, backward)
                            row["error"] = max(_difference(f, d) for f, d in zip(found, due, strict=True))
                        except Exception as error:
                            # One kernel that fails must not hide what the others do.
                            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
                        row["ok"] = row.get("error", float("inf")) <= row["limit"]
                        rows.append(row)
    return rows


def _difference(found, due):
    worst = float((found.double() - due).abs().max() / due.abs().max().clamp_min(1e-3))
    return worst if worst == worst else float("inf")


def timed(functions, device, seconds):
    """Run the functions in turn for so long; return the median, least and greatest time of each in microseconds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    for function in functions.values():
        function()
    wait()
    taken = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(taken.values()):
        for name, function in functions.items():
            begin = time.perf_counter()
            if device.type == "cuda":
                first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                first.record()
                function()
                last.record()
                wait()
                taken[name].append(1000 * first.elapsed_time(last))
            else:
                function()
                taken[name].append(1e6 * (time.perf_counter() - begin))
    return {name: [statistics.median(t), min(t), max(t)] for name, t in taken.items()}


def _call(function, tensors, training):
    """Return what is timed: the forward pass, or with `training` the backward pass too."""
    if not training:
        return lambda: function(*tensors)
    leaves = [t.detach().requires_grad_() for t in tensors]
    weights = [torch.ones_like(o) for o in function(*leaves)]
    return lambda: torch.autograd.grad(function(*leaves), leaves, weights)


def _failure(function):
    """Call a function; return what it raised as a line, or None."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def timings(device, lengths=(2048, 8192, 32768, 131072), shape=FULL, tokens=65536, seconds=2.0):
    """Time each kernel beside plain torch and other packages, in bfloat16; return rows as dicts.

    tokens  per call: as many rows as give so many, at least one
    """
    rows = []
    for length in lengths:
        batch = max(1, tokens // length)
        for op, tensors in draw(length, *shape, batch, device, torch.bfloat16).items():
            if op not in PREDICTED:
                continue
            kernel, plain = OPS[op]
            for training in (False, True) if op == "ssd_scan" else (False,):
                made = {"triton": kernel, "torch": plain, **({} if training else adapters(op, tensors))}
                units = batch if op == "ssd_step" else batch * length
                row = {"op": op + "_training" * training, "length": length, "batch": batch, "units": units}
                try:
                    with torch.set_grad_enabled(training):
                        calls = {name: _call(function, tensors, training) for name, function in made.items()}
                        for name in set(calls) - {"triton", "torch"}:
                            if (reason := _failure(calls[name])) is not None:
                                del calls[name]
                                row.setdefault("peers_failed", {})[name] = reason
                        row["microseconds"] = timed(calls, device, seconds)
                    row["nanoseconds_per_unit"] = 1000 * row["microseconds"]["triton"][0] / units
                except Exception as error:
                    row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
                row["predicted"] = PREDICTED[row["op"]]
                rows.append(row)
    return rows


def table(folder):
    """Write table.md from what the other parts left in a folder; return its text."""
    lines = ["# Triton kernels on a device", ""]
    for part in ("parity", "time"):
        path = folder / f"{part}.json"
        if not path.exists():
            lines += [f"{part}: not run", ""]
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"## {part}", "", ", ".join(f"{k} {v}" for k, v in found["setting"].items()), ""]
        if part == "parity":
            lines += [
                "| op | kernel | dtype | checks | wrong | largest error | limit |",
                "|---|---|---|---|---|---|---|",
            ]
            for key in dict.fromkeys((r["op"], r["kernel"], r["dtype"]) for r in found["rows"]):
                own = [r for r in found["rows"] if (r["op"], r["kernel"], r["dtype"]) == key]
                wrong = [r for r in own if not r["ok"]]
                worst = max(r.get("error", float("inf")) for r in own)
                lines.append(f"| {' | '.join(key)} | {len(own)} | {len(wrong)} | {worst:.1e} | {own[0]['limit']:.0e} |")
            failed = dict.fromkeys(r["failed"] for r in found["rows"] if "failed" in r)
            lines += ["", *(f"- failed: {text}" for text in failed)]
        else:
            lines += ["Medians [least-greatest] in microseconds; ns per token or row beside what was predicted.", ""]
            lines += ["| op | length | rows | ns | predicted | times |", "|---|---|---|---|---|---|"]
            for r in found["rows"]:
                taken = [f"{n} {m:.0f} [{a:.0f}-{b:.0f}]" for n, (m, a, b) in r.get("microseconds", {}).items()]
                each = f"{r['nanoseconds_per_unit']:.1f}" if taken else "-"
                taken += [f"{name} failed: {reason}" for name, reason in r.get("peers_failed", {}).items()]
                text = ", ".join(taken) if "failed" not in r else r["failed"]
                lines.append(f"| {r['op']} | {r['length']} | {r['batch']} | {each} | {r['predicted']} | {text} |")
        lines.append("")
    text = "\n".join(lines)
    (folder / "table.md").write_text(text, encoding="utf-8")
    return text


def describe(device):
    """Name the device and the versions that the figures belong to."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    version, ptxas = setting.versions()
    return {"device": name, "torch": torch.__version__, "triton": version, "ptxas": ptxas}


def main(arguments=None):
    """Run the parts asked for, print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=main.__doc__)
    parser.add_argument("parts", nargs="*", metavar="parity|time|table", help="all when none is named")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for JSON and the table")
    options = parser.parse_args(arguments)
    known = ("parity", "time", "table")
    if unknown := set(options.parts) - set(known):
        parser.error(f"no part {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if not torch.cuda.is_available():
        print("gpu_check: error: no CUDA device that torch can use; run it on a CUDA machine", file=sys.stderr)
        return NO_DEVICE
    if setting.failure() is not None:
        print(f"gpu_check: error: Triton: {setting.failure()}; pip install triton", file=sys.stderr)
        return NO_DEVICE
    device = torch.device("cuda", torch.cuda.current_device())
    options.out.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for part in options.parts or known:
        if part == "table":
            print(table(options.out))
            continue
        rows = parity(device) if part == "parity" else timings(device)
        wrong += sum(not r["ok"] for r in rows) if part == "parity" else 0
        text = json.dumps({"setting": describe(device), "rows": rows}, indent=1)
        (options.out / f"{part}.json").write_text(text, encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
