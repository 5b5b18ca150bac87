"""Which backend runs each op, and why the others do not.

op + arguments -> candidates in order -> the first that does not refuse -> its result
"""

import functools
import os
from types import MappingProxyType

import torch

from hybridna_kernels import cpu, installed, packages, reference, triton

# Per op: (backend name, function, refuse). `refuse(args, kwargs)` gives None or a short reason.
_CANDIDATES = {
    "ssd_scan": [
        ("triton", triton.ssd_scan, triton.refuse_ssd_scan),
        ("mamba_ssm", packages.ssd_scan, packages.refuse_ssd_scan),
        ("tiles", cpu.ssd_scan_tiles, cpu.refuse_ssd_scan_tiles),
        ("cpu", cpu.ssd_scan, cpu.refuse_ssd_scan),
        ("chunked", reference.ssd_scan, None),
        ("sequential", reference.ssd_scan_sequential, None),
    ],
    "ssd_step": [
        ("triton", triton.ssd_step, triton.refuse_ssd_step),
        ("mamba_ssm", packages.ssd_step, packages.refuse_ssd_step),
        ("cpu", cpu.ssd_step, cpu.refuse_ssd_step),
        ("reference", reference.ssd_step, None),
    ],
    "causal_conv1d": [
        ("triton", triton.causal_conv1d, triton.refuse_causal_conv1d),
        ("causal_conv1d", packages.causal_conv1d, packages.refuse_causal_conv1d),
        ("cpu", cpu.causal_conv1d, cpu.refuse_causal_conv1d),
        ("reference", reference.causal_conv1d, None),
    ],
    "attention": [
        ("flash_attn", packages.attention, packages.refuse_attention),
        ("cpu", cpu.attention, cpu.refuse_attention),
        ("sdpa", installed.sdpa, installed.refuse_sdpa),
        ("reference", reference.attention, None),
    ],
    "gated_rms_norm": [
        ("triton", triton.gated_rms_norm, triton.refuse_gated_rms_norm),
        ("cpu", cpu.gated_rms_norm, cpu.refuse_gated_rms_norm),
        ("reference", reference.gated_rms_norm, None),
    ],
}
OPS = tuple(_CANDIDATES)
# Ways of matrix products with weights on CPU, among which `gemm` chooses.
PRODUCTS = "tiles", "vectors", "onednn", "torch"
# Ways of one-token steps, see `graphs`.
STEPS = "graph", "eager"
_WAYS = {"product": PRODUCTS, "decode": STEPS}

# Backends that run unasked only where they were tested, and what says so of the arguments.
_UNTESTED = {
    "triton": lambda args, kwargs: triton.untested(args[0].device),
    "sdpa": installed.untested,
    **dict.fromkeys(packages.SERVED, packages.untested),
}

# What `reference` means where no backend has that name.
_REFERENCES = {"ssd_scan": "chunked", "product": "onednn", "decode": "eager"}


class KernelError(Exception):
    """A backend was asked for by name and cannot run, or is unknown."""


def forced():
    """Backends that $HYBRIDNA_KERNELS asks for, as {op: backend}.

    `HYBRIDNA_KERNELS=reference` names one backend for every op that has it (`reference` is plain torch for every op);
    `ssd_scan=sequential,attention=reference` names them one by one. Raises KernelError for unknown names.
    """
    return _parse(os.environ.get("HYBRIDNA_KERNELS", ""))


@functools.lru_cache(maxsize=64)
def _parse(text):
    """Read what $HYBRIDNA_KERNELS says; kept, as every op of every layer asks."""
    chosen = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        if item == "auto":
            continue
        op, _, backend = item.rpartition("=")
        targets = [op] if op else [o for o in (*OPS, *_WAYS) if backend in _names(o)]
        if not targets or any(backend not in _names(o) for o in targets):
            raise KernelError(f"HYBRIDNA_KERNELS: no backend {item!r}; known: {_spell()}")
        chosen.update(dict.fromkeys(targets, backend))
        if item == "reference":
            chosen.update(_REFERENCES)
    return MappingProxyType(chosen)


def run(op, *args, **kwargs):
    """Run an op on the first backend that does not refuse these arguments; raise KernelError if a forced one does."""
    wanted = forced().get(op)
    for name, function, refuse in _CANDIDATES[op]:
        if wanted not in (None, name):
            continue
        reason = _reason(name, refuse, args, kwargs, asked=wanted == name)
        if reason is None:
            return function(*args, **kwargs)
        if wanted == name:
            raise KernelError(f"{op}: backend {name!r} refuses: {reason}")
    raise KernelError(f"{op}: every backend refuses")


def _reason(name, refuse, args, kwargs, asked):
    """Say why a backend does not run, or None. asked: it was named, so that it need not have been tested here"""
    if name in packages.SERVED and not asked:
        # Not even imported.
        return _UNTESTED[name](args, kwargs)
    reason = refuse(args, kwargs) if refuse else None
    if reason is None and name in _UNTESTED and not asked:
        return _UNTESTED[name](args, kwargs)
    return reason


def refusal(op, backend, args, kwargs):
    """Say why a backend, by its name, would not run these arguments as things stand, or None."""
    wanted = forced().get(op)
    if wanted not in (None, backend):
        return f"HYBRIDNA_KERNELS asks for {wanted}"
    (refuse,) = [refuse for name, _, refuse in _CANDIDATES[op] if name == backend]
    return _reason(backend, refuse, args, kwargs, asked=wanted == backend)


def backends(op):
    """List an op's backends as (name, function, refuse), in the order of preference."""
    return list(_CANDIDATES[op])


def report(device="cpu", dtype=torch.float32):
    """List (op, backend, state) for `doctor`; state is "in use", "usable" or the reason for refusing.

    A backend that depends on the arguments is judged on a plain forward pass on that device, in that dtype. Products
    with weights have rows of their own, and so have recorded steps, and what reads whole blocks in one call; refused,
    blocks are read op by op.
    """
    from hybridna_kernels import gemm, graphs, parity

    rows = []
    for op in OPS:
        args, kwargs = parity.example(op, device=device, dtype=dtype)
        first = True
        for name, _, _ in _CANDIDATES[op]:
            # One that was not asked for is not looked at, so that forcing another never compiles anything.
            reason = refusal(op, name, args, kwargs)
            rows.append((op, name, reason or ("in use" if first else "usable")))
            first = first and reason is not None
    reasons = [gemm.refuse_product(way, device, dtype) for way in PRODUCTS]
    first = reasons.index(None) if None in reasons else None
    rows += [
        ("product", way, reason or ("in use" if i == first else "usable"))
        for i, (way, reason) in enumerate(zip(PRODUCTS, reasons, strict=True))
    ]
    rows.append(("decode", "graph", graphs.refuse(torch.device(device)) or "in use"))
    for kind in parity.BLOCKS:
        x, state, block = parity.example_block(kind, device=device, dtype=dtype)
        rows.append((kind, "cpu", gemm.refuse_block(x, state, cpu.LaidOut(block)) or "in use"))
    # What cannot be imported says so, wherever the arguments lie.
    absent = {(op, name): reason for op, name, reason in packages.absent()}
    return [(op, name, absent.get((op, name), state)) for op, name, state in rows]


def _names(op):
    return _WAYS[op] if op in _WAYS else [name for name, _, _ in _CANDIDATES.get(op, ())]


def _spell():
    return ", ".join(f"{op}={'|'.join(_names(op))}" for op in (*OPS, *_WAYS))


def check_parity(device="cpu"):
    """Compare each usable backend with its definition: rows (op, backend, error, limit), see `parity.check`."""
    from hybridna_kernels import parity

    return parity.check(device)
