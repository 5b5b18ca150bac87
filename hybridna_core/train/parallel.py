"""Several processes that train one model: who is there, what each holds, sums over all of them.

torchrun's environment -> process group -> World -> sharded model and optimiser -> sums of gradients -> whole tensors
"""

import contextlib
import os
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

from hybridna_core.checkpoint import choose_device, empty_model
from hybridna_core.errors import Elsewhere, HybriDNAError, SystemFault, UsageError
from hybridna_core.train.optim import optimizer_tensors

SHARDS = ("none", "optim", "full")
# Elements that one message carries at most: gradients travel in buckets.
BUCKET = 2**24
# Seconds that the others have to say that they live, when one process has found that something is wrong.
GRACE = 2.0


class World:
    """The processes of one run, as one of them sees them; with a single one nothing is exchanged.

    rank, size  number of this process, how many there are
    device      where this process keeps its tensors
    shard       what is split among processes: none, optim (the optimiser's state) or full (weights and gradients too)
    """

    def __init__(self, device="cpu", *, rank=0, size=1, shard="none", store=None, control=None):
        self.device, self.rank, self.size = torch.device(device), rank, size
        self.shard = shard if size > 1 else "none"
        self._store, self._control = store, control
        self._meetings, self._where = 0, "start"

    @property
    def is_first(self):
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def gradient_factor(self):
        """What a rank's loss is multiplied by, so that gradients come out as sums: FSDP takes means."""
        return self.size if self.shard == "full" else 1

    # Exchanges. A process that is dead or stands still fails them on all others.

    def gather(self, value):
        """Give every process the list of all their values, in order of rank."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        with self._meeting():
            dist.all_gather_object(found, value, group=self._control)
        return found

    def gather_numbers(self, *numbers):
        """Give every process the tuples of all numbers, in order of rank; one message, where `gather` takes two."""
        if self.size == 1:
            return [numbers]
        mine = torch.tensor(numbers, dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with self._meeting():
            dist.all_gather(found, mine, group=self._control)
        return [tuple(theirs.tolist()) for theirs in found]

    def share(self, value):
        """Give every process the first one's value."""
        return self.gather(value if self.is_first else None)[0]

    def sum(self, number):
        """Add one number per process, in order of rank, so that all come to the same sum."""
        total = sum(value for (value,) in self.gather_numbers(number))
        return type(number)(total)

    @contextlib.contextmanager
    def together(self):
        """Do a piece of work on every process; if it fails on any, all stop and the first of those says why.

        raises  the process's own error, or Elsewhere
        """
        mine = None
        try:
            yield
        except HybriDNAError as error:
            if self.size == 1 or isinstance(error, Elsewhere):
                raise
            mine = error
        codes = [int(code) for (code,) in self.gather_numbers(0 if mine is None else mine.exit_code)]
        failed = [rank for rank, code in enumerate(codes) if code]
        if not failed:
            return
        if self.rank != failed[0]:
            raise Elsewhere(codes[failed[0]]) from None
        if self.rank:
            mine.where = f"rank {self.rank}" if mine.where is None else f"rank {self.rank}, {mine.where}"
        raise mine

    def in_turn(self, work):
        """Call a function on the first process, then on all others; return what it gave here.

        For work that leaves something behind which the next caller finds, such as an index.
        """
        found = None
        for turn in (self.is_first, not self.is_first):
            with self.together():
                if turn:
                    found = work()
        return found

    def spoken(self, error):
        """Return an error that all processes met alike: itself on the first, Elsewhere on the others."""
        return error if self.is_first else Elsewhere(error.exit_code)

    def at(self, where):
        """Note where the run is, such as `step 12`, for what is said when a process is lost."""
        self._where = where

    @contextlib.contextmanager
    def _meeting(self):
        """Count the exchanges that this process came to, so that the one that is missing can be named."""
        self._meetings += 1
        self._store.set(f"hybridna/met/{self.rank}", str(self._meetings))
        with self.watch():
            yield

    @contextlib.contextmanager
    def watch(self):
        """Turn the failure of an exchange into a SystemFault that names the process that is missing."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_lost(error):
                raise
            lost = self._find_lost()
            names = ", ".join(f"rank {rank}" for rank in lost) or "a rank that cannot be told"
            what = f"{names} died or stands still ({str(error).splitlines()[0][:200]})"
            hint = "its own messages say more; the same command goes on from the last snapshot"
            # One of those that live speaks for all.
            if self.rank != min(set(range(self.size)) - set(lost), default=self.rank):
                raise Elsewhere(SystemFault.exit_code) from None
            raise SystemFault(what, where=self._where, hint=hint) from None

    def _find_lost(self):
        """Return the ranks that came to fewer exchanges than this one, else those that do not say that they live."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"hybridna/alive/{self.rank}", "1")
            met = [int(self._store.get(f"hybridna/met/{rank}")) for rank in range(self.size)]
            behind = [rank for rank, count in enumerate(met) if count < self._meetings]
            if behind:
                return behind
            time.sleep(GRACE)
            return [rank for rank in range(self.size) if not self._store.check([f"hybridna/alive/{rank}"])]
        return []

    # What each process holds.

    def shard_model(self, model):
        """Split a model's weights among the processes, block by block, when `full` is asked for."""
        if self.shard != "full":
            return model
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # Nothing here changes a block's output in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def shard_optimizer(self, optimizer):
        """Leave each process its share of the parameters to update, when `optim` is asked for; whole ones, so that
        an update may look at a whole matrix."""
        if self.shard == "optim":
            for group in optimizer.param_groups:
                group["hybridna_all"] = list(group["params"])
            for owner, parameters in enumerate(self._owned(optimizer)):
                if owner != self.rank:
                    others = {id(p) for p in parameters}
                    for group in optimizer.param_groups:
                        group["params"] = [p for p in group["params"] if id(p) not in others]
        return optimizer

    def _owned(self, optimizer):
        """List the parameters that each process updates: the largest first, each to the one that has least."""
        everything = [p for group in optimizer.param_groups for p in group.get("hybridna_all", group["params"])]
        owned, load = [[] for _ in range(self.size)], [0] * self.size
        for parameter in sorted(everything, key=lambda p: -p.numel()):
            owner = load.index(min(load))
            owned[owner].append(parameter)
            load[owner] += parameter.numel()
        return owned

    # One step.

    def sum_gradients(self, model):
        """Add the gradients of all processes, where that was not done on the way back already."""
        if self.size == 1 or self.shard == "full":
            return
        with self._meeting():
            for bucket in _buckets([p.grad for p in model.parameters() if p.grad is not None]):
                flat = torch.cat([g.reshape(-1) for g in bucket])
                dist.all_reduce(flat)
                _copy_back(flat, bucket)

    @torch.no_grad()
    def spread_weights(self, optimizer):
        """Give everyone the weights that one process has updated."""
        if self.shard != "optim":
            return
        with self._meeting():
            for owner, parameters in enumerate(self._owned(optimizer)):
                for bucket in _buckets(parameters):
                    flat = torch.cat([p.reshape(-1) for p in bucket])
                    dist.broadcast(flat, src=owner)
                    if owner != self.rank:
                        _copy_back(flat, bucket)

    # Snapshots are the same for every number of processes and every way to split.

    @torch.no_grad()
    def whole_weights(self, model):
        """Return {name: whole tensor} of what is trained, in main memory; on the first process only, else empty."""
        self._settle(model)
        return self._whole({name: p for name, p in model.named_parameters() if p.requires_grad})

    @torch.no_grad()
    def whole_moments(self, optimizer, model):
        """Return {name: whole tensor} of the optimiser's state, in main memory; on the first process only."""
        self._settle(model)
        mine = optimizer_tensors(optimizer, model)
        if self.shard != "optim":
            return self._whole(mine)
        found = {}
        for owner, theirs in enumerate(self.gather({n: (tuple(t.shape), t.dtype) for n, t in mine.items()})):
            for name, (shape, dtype) in theirs.items():
                value = mine[name] if owner == self.rank else torch.empty(shape, dtype=dtype, device=self.device)
                # A copy, as some optimisers keep their count of steps in main memory.
                value = value.to(self.device, copy=True)
                with self._meeting():
                    dist.broadcast(value, src=owner)
                if self.is_first:
                    found[name] = value.cpu()
        return found

    def _settle(self, model):
        """Let go of weights that were gathered for a pass without a way back, as validation makes them."""
        if self.shard == "full":
            model.reshard()

    def _whole(self, tensors):
        found = {}
        with self._meeting() if self.shard == "full" else contextlib.nullcontext():
            for name, value in tensors.items():
                value = value.full_tensor() if hasattr(value, "full_tensor") else value
                if self.is_first:
                    found[name] = value.detach().cpu()
        return found

    def whole_model(self, model):
        """Return a model that can be saved: itself, or one in main memory put together from all shares.

        Every process calls it; the first one alone gets a model where weights are split.
        """
        if self.shard != "full":
            return model
        weights = self.whole_weights(model)
        if not self.is_first:
            return None
        if model.config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        whole = empty_model(model.config, torch.float32)
        whole.load_state_dict(weights, assign=True)
        whole.tokenizer, whole.name = model.tokenizer, model.name
        return whole

    def own_weight(self, value, parameter):
        """Return what this process holds of a whole tensor that is to be put into a parameter."""
        if not hasattr(parameter, "full_tensor"):
            return value
        from torch.distributed.tensor import distribute_tensor

        with self._meeting():
            return distribute_tensor(value.to(self.device), parameter.device_mesh, parameter.placements)

    def own_moments(self, tensors, optimizer, model):
        """Return what this process holds of an optimiser's whole state, by the names of `optimizer_tensors`.

        tensors  yields (name, whole tensor), in the same order on every process
        """
        if self.shard == "none":
            return dict(tensors)
        parameters = dict(model.named_parameters())
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found = {}
        for name, value in tensors:
            key, weight = name.split(".", 1)
            if id(parameters[weight]) in mine:
                # A count of steps belongs to every share.
                found[name] = value if key == "step" else self.own_weight(value, parameters[weight])
        return found


ALONE = World()


@contextlib.contextmanager
def join(device="auto", *, shard="none", timeout=600.0):
    """Join the processes that torchrun started and give a World; a process of its own is a World of one.

    device   auto, cpu or cuda (each process of a machine then takes the device of its number there), or cuda:n
    timeout  seconds that one exchange may take before the run is given up
    raises   UsageError for a shard that there is not, SystemFault when the others cannot be met
    """
    if shard not in SHARDS:
        raise UsageError(f"shard {shard!r} is unknown", hint=f"one of {', '.join(SHARDS)}")
    size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if size == 1:
        yield World(choose_device(device))
        return
    place = choose_device(device)
    if place.type == "cuda" and place.index is None:
        place = choose_device(f"cuda:{_number('LOCAL_RANK', 0)}")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    limit = timedelta(seconds=timeout)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        dist.init_process_group(
            "nccl" if place.type == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=limit
        )
        control = dist.new_group(backend="gloo", timeout=limit)
    except (RuntimeError, ValueError, OSError) as error:
        what = f"rank {rank} could not meet the others ({str(error).splitlines()[0][:200]})"
        raise SystemFault(
            what, hint="start it with torchrun; MASTER_ADDR and MASTER_PORT must lead to rank 0"
        ) from None
    store.set(f"hybridna/met/{rank}", "0")
    yield World(place, rank=rank, size=size, shard=shard, store=store, control=control)
    # After an error the others may be gone, and taking leave would wait for them.
    dist.destroy_process_group()


def _number(name, otherwise):
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else otherwise


def _is_lost(error):
    """Say whether a RuntimeError is an exchange that failed, rather than a fault in the work itself."""
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text.lower() or "Connection" in text or "Timed out" in text


def _buckets(tensors):
    """Yield lists of tensors of one dtype, of BUCKET elements or a single tensor each."""
    bucket, held = [], 0
    for tensor in tensors:
        if bucket and (held + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.numel()
    if bucket:
        yield bucket


def _copy_back(flat, tensors):
    """Copy one long tensor back into those that it was made of."""
    at = 0
    for tensor in tensors:
        tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
        at += tensor.numel()
