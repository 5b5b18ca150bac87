"""A step recorded as a CUDA graph: its kernels start one after the other without being launched one by one.

step over tensors that stay where they are -> warmed up -> captured -> a function that replays it
"""

import torch

from hybridna_kernels import dispatch

# Runs before the capture: kernels are compiled and libraries set up, which a capture does not allow.
WARM_UPS = 2


def refuse(device):
    """Say why steps on a torch.device are not recorded as things stand, or None."""
    asked = dispatch.forced().get("decode")
    if asked not in (None, "graph"):
        return f"HYBRIDNA_KERNELS asks for {asked}"
    if device.type != "cuda":
        return "needs CUDA"
    return None if asked == "graph" else "it has not run on a GPU; HYBRIDNA_KERNELS can name it"


def wanted(device):
    """Say whether steps on a torch.device are recorded; raise KernelError if that was asked for and cannot be."""
    reason = refuse(device)
    if reason is not None and dispatch.forced().get("decode") == "graph":
        raise dispatch.KernelError(f"decode: backend 'graph' refuses: {reason}")
    return reason is None


def record(step, device):
    """Run a step on a CUDA device a few times, capture it, and return a function that does it again.

    It takes no arguments and returns nothing: what it reads and writes are tensors that stay where they are, and their
    contents are changed by the runs before the capture.
    """
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    return graph.replay
