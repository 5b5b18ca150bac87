"""Time the ways of matrix products with weights in turn: what a core gives, alone and beside a busy sibling.

random rows, a kept weight -> each of dispatch.PRODUCTS that runs here, compared with torch's -> GFLOP/s of each
"""

import argparse
import sys
import time

import torch
from time_variants import name_cpu

from hybridna_core.timing import spread
from hybridna_kernels import dispatch, gemm

# tokens, depth, outputs: the projections of a block of hidden size 256, and of 1,024
SHAPES = ((512, 256, 1288), (512, 512, 256), (512, 256, 512), (512, 1024, 4384))
LIMIT = 1e-4  # of the largest result


@torch.no_grad()
def measure(tokens, depth, outputs, repeats):
    """Return {way: GFLOP/s, median, slowest and fastest}; exit where a result differs."""
    x = torch.randn(tokens, depth)
    weight = torch.nn.Parameter(torch.randn(outputs, depth), requires_grad=False)
    ways = [way for way in dispatch.PRODUCTS if gemm.refuse_product(way) is None]
    due, seconds = x.double() @ weight.double().t(), {way: [] for way in ways}
    for way in ways:
        # Lays the weight out as the way reads it.
        error = float((gemm.multiply(way, x, weight) - due).abs().max() / due.abs().max())
        if not error < LIMIT:
            sys.exit(f"{way}: differs by {error:.1e}")
    for _ in range(repeats):
        for way in ways:
            begun = time.perf_counter()
            gemm.multiply(way, x, weight)
            seconds[way].append(time.perf_counter() - begun)
    work = 2e-9 * tokens * depth * outputs
    return {way: [work / each for each in spread(taken)] for way, taken in seconds.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=200, help="products of each way, in turn")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(f"{name_cpu()}, threads: {options.threads}; GFLOP/s: median (slowest to fastest)\n")
    print("| tokens x depth x outputs | way | GFLOP/s |\n|---|---|---|")
    for shape in SHAPES:
        for way, (middle, fastest, slowest) in measure(*shape, options.repeats).items():
            print(f"| {' x '.join(map(str, shape))} | {way} | {middle:.0f} ({slowest:.0f}-{fastest:.0f}) |", flush=True)


if __name__ == "__main__":
    main()
