"""Adapters to kernels that other packages bring: torch's SDPA, and what `doctor` knows of the optional ones.

(q, k, v) -> torch.nn.functional.scaled_dot_product_attention -> out
"""

import importlib

import torch
import torch.nn.functional as F

# Optional packages and the op that each would serve.
_OPTIONAL = {"mamba_ssm": "ssd_scan", "causal_conv1d": "causal_conv1d", "flash_attn": "attention"}


def refuse_sdpa(args, kwargs):
    """Say why torch's fused attention cannot take these arguments: its causal mask starts at the first key."""
    q, k = args[0], args[1]
    if kwargs.get("shared_k") is not None:
        return "no shared prefix"
    if q.shape[1] != k.shape[1]:
        return "no earlier keys"
    if q.dtype == torch.float64 and q.device.type != "cpu":
        return "no float64 on this device"
    return None


def sdpa(q, k, v, *, shared_k=None, shared_v=None):
    """Causal attention from the first token on; shapes as in `reference.attention`."""
    per_kv = q.shape[2] // k.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    # torch's grouped-query switch falls to a path that holds the square of scores on CPU; views of the keys do not.
    k, v = (t.repeat_interleave(per_kv, dim=1) if per_kv > 1 else t for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def absent():
    """List (package, op, reason) for each optional package: what its import raised, or that no adapter uses it yet.

    Importing one may run its whole package, so anything that it raises is caught and kept.
    """
    rows = []
    for package, op in _OPTIONAL.items():
        try:
            importlib.import_module(package)
            rows.append((package, op, "installed, no adapter in this version"))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            rows.append((package, op, f"{type(error).__name__}: {error}".splitlines()[0]))
    return rows
