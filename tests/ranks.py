"""Ranks of a training run as processes of this machine, each started in a moment.

forkserver that has imported torch -> one process per rank, in the environment that torchrun sets -> exit codes, stderr
"""

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "torch.distributed.fsdp", "ranks", "toys"])


def start(size, folder, work, *args):
    """Start `work(*args)` on so many ranks, in a folder; return the processes. rank-N.err there gets what they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        CONTEXT.Process(target=_be_rank, args=(rank, size, port, str(folder), work, args)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def run(size, folder, work, *args, seconds=60):
    """Run `work(*args)` on so many ranks; return exit codes and what each said. Those that stand still are killed."""
    processes = start(size, folder, work, *args)
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    said = [(Path(folder) / f"rank-{rank}.err").read_text() for rank in range(size)]
    return [process.exitcode for process in processes], said


def _be_rank(rank, size, port, folder, work, args):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        HYBRIDNA_KERNELS="reference",
    )  # fmt: skip
    os.chdir(folder)
    sys.stdout = sys.stderr = open(f"rank-{rank}.err", "w", buffering=1)  # noqa: SIM115
    import torch

    torch.set_num_threads(1)
    work(*args)


# --- What ranks do ---------------------------------------------------------------------------------------------------


def command(words, spoil=None, at=0):
    """Run a command line; on rank 1, `spoil` happens in its loss number `at`."""
    from hybridna_cli.app import main
    from hybridna_core.train import loop

    calls, honest = [], loop.loss_sum

    def spoilt(*args):
        calls.append(1)
        total, count = honest(*args)
        if len(calls) == at and os.environ["RANK"] == "1":
            if spoil == "nan":
                total = total * float("nan")
            elif spoil == "gradient":
                # The slope of the square root at 0 is infinite, and 0 times that is not a number.
                total = total + (args[0].lm_head.weight.sum() * 0).sqrt()
            elif spoil == "memory":
                raise MemoryError
            else:
                os.kill(os.getpid(), getattr(signal, spoil))
        return total, count

    loop.loss_sum = spoilt
    main(words)


def take_steps(config, shards, count, path):
    """Train a toy in each way to split it, through a snapshot and the next way in the middle; note each step's loss."""
    import json

    from hybridna_core.train.parallel import World, join
    from hybridna_core.train.snapshots import restore_snapshot, save_snapshot

    with join("cpu") as met:
        found = {}
        for number, shard in enumerate(shards):
            world = World("cpu", rank=met.rank, size=met.size, shard=shard, store=met._store, control=met._control)
            model, optimizer = _begin(config, world)
            losses = [step_of(model, optimizer, step, world) for step in range(count // 2)]
            folder = Path(path) / shard
            if world.is_first:
                folder.mkdir(parents=True)
            world.share(None)
            saved = world.share(save_snapshot(folder, model, optimizer, {"step": count // 2}, keep=2, world=world))
            other = World("cpu", rank=met.rank, size=met.size, shard=shards[number - 1], store=met._store,
                          control=met._control)  # fmt: skip
            model, optimizer = _begin(config, other)
            restore_snapshot(saved, model, optimizer, other)
            losses += [step_of(model, optimizer, step, other) for step in range(count // 2, count)]
            save_snapshot(folder, model, optimizer, {"step": count}, keep=2, world=other)
            found[shard] = losses
        if met.is_first:
            (Path(path) / "losses.json").write_text(json.dumps(found))


def _begin(config, world):
    from toys import SMALL

    from hybridna_core.model.hybrid import HybridLM
    from hybridna_core.train.optim import make_optimizer

    model = world.shard_model(HybridLM(SMALL, seed=0))
    return model, world.shard_optimizer(make_optimizer(model, config))


def step_of(model, optimizer, step, world):
    """Take one step over this rank's rows of two; return bits, bases and gradient norm."""
    import torch

    from hybridna_core.train.loop import count_bases, train_step

    tokens = torch.randint(6, 11, (2, 21), generator=torch.Generator().manual_seed(step))
    tokens[0, :8] = 6
    mine = tokens[world.rank :: world.size]
    result = train_step(
        model, optimizer, mine, lr=1e-3, clip=1.0, microbatch_tokens=21, bases=world.sum(count_bases(mine)), world=world
    )
    return result[:3]
