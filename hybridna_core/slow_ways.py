"""Scores, embeddings and steps of a beam search beside the slow way to the same numbers.

model, size of the work -> our way and the slow one -> equal results, or GuardError -> both timed in turn -> Timing

Slow are: two full passes per allele; the kernels' plain torch; a state that is reordered first and updated then.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from hybridna_core.data.genome import open_genome
from hybridna_core.data.variants import Allele, Piece, Variant
from hybridna_core.errors import UsageError
from hybridna_core.memory import free_bytes, spell_bytes
from hybridna_core.model.embedding import Embedder
from hybridna_core.model.heads import Pool
from hybridna_core.model.likelihood import Reading, read
from hybridna_core.model.state import MambaState, ModelState, bytes_per_row
from hybridna_core.scoring import Plan, Scorer
from hybridna_core.search import Beams, count_slice, read_slices
from hybridna_core.timing import check_equal, forced_kernels, make_timing, take_peaks, take_turns
from hybridna_core.tokenizer import BASE_IDS, encode, reverse_complement
from hybridna_kernels import dispatch

# name, places side by side or apart, stride, bases of the horizon or None for half a window
SCORE_CASES = (
    ("lone changes", False, 1, None),
    ("saturation", True, 8, None),
    ("saturation, horizon 256", True, 8, 256),
)
LONE_PLACES = 12


# Scores


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


def share_prefixes(model, genome, changes, plan):
    """Return the scores of the changes, nats, as the commands make them, and the tokens read."""
    scorer = Scorer(model, genome, plan)
    found = [
        scorer.score(Allele("ok", Variant(contig, start, start + 1, (Piece(0, 1, ids=encode(alt)),)))).llr
        for contig, start, alt in changes
    ]
    return np.array(found), scorer.tokens


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
    return np.array(found), tokens


def time_scores(model, genome, case, window, repeats):
    """Compare the scorer with two full passes per allele in one of SCORE_CASES.

    returns  Timing, the Plan, and how many times fewer tokens the scorer reads. A horizon of less than half a window is
             another score: the same one is compared, but what is timed beside it is that of half a window
    """
    name, is_dense, stride, horizon = case
    changes = choose_changes(genome, window, max(stride, 16) if is_dense else LONE_PLACES, is_dense)
    whole = Plan(window, window // 2, stride)
    plan = whole if horizon is None else whole._replace(horizon=min(horizon, whole.horizon))
    ours, shared_tokens = share_prefixes(model, genome, changes, plan)
    others, _ = pass_twice(model, genome, changes, plan)
    difference = check_equal("scores", [ours], [others], 1e-4, name)
    tokens = []
    seconds = take_turns(
        [
            lambda: share_prefixes(model, genome, changes, plan),
            lambda: tokens.append(pass_twice(model, genome, changes, whole)[1]),
        ],
        repeats,
    )
    timing = make_timing(name, window, len(changes), seconds, difference)
    return timing, plan, tokens[-1] / shared_tokens


def time_all_scores(model, window, repeats):
    """Yield the Timing of each of SCORE_CASES, on random bases: no time depends on which they are."""
    letters = np.random.default_rng(0).choice(list("ACGT"), 2 * window * (LONE_PLACES + 2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.fa"
        path.write_text(f">random\n{''.join(letters)}\n")
        path.with_suffix(".fa.fai").write_text(f"random\t{len(letters)}\t8\t{len(letters)}\t{len(letters) + 1}\n")
        with open_genome(path) as genome:
            for case in SCORE_CASES:
                yield time_scores(model, genome, case, window, repeats)[0]


# Embeddings


def time_embedding(model, length, count, repeats):
    """Compare the kernels in use with plain torch on the mean vectors of so many regions; return a Timing."""
    regions = np.random.default_rng(length).choice(np.array(BASE_IDS), (count, length))

    def embed():
        return np.stack([vectors for _, vectors in Embedder(model, Pool("mean")).embed(enumerate(regions))])

    def embed_plainly():
        with forced_kernels("reference"):
            return embed()

    difference = check_equal("vectors", [embed()], [embed_plainly()], 1e-3, f"{length} bases")
    peaks = take_peaks([embed, embed_plainly])
    return make_timing("", length, count, take_turns([embed, embed_plainly], repeats), difference)._replace(peaks=peaks)


# Beams


def time_beams(model, length, count, repeats):
    """Yield two Timings of so many beams: one step of the model, and the update of one layer's state by itself.

    length  bases that each beam has read. Parents are drawn, rows lie in their order, in slices, as in a search
    Raises UsageError when there is too little memory.
    """
    check_memory(model.config, length, count)
    config, generator = model.config, torch.Generator().manual_seed(count)
    parents = torch.randint(count, (count,), generator=generator).sort().values
    ids = np.random.default_rng(count).choice(np.array(BASE_IDS), count)
    width = count_slice(config, "cpu", torch.float32, length, 1, Beams(count))
    first, rows = config.layer_types.index("mamba"), torch.arange(count).split(width)
    slices = [
        Reading(draw_state(config, length, len(part), generator), torch.zeros(len(part), config.vocab_size))
        for part in rows
    ]

    def step():
        found, _ = read_slices(model, list(slices), parents.numpy(), ids, width)
        # All layers' states of both ways would take more memory than either of them.
        return [tensor for part in found for tensor in (part.logits, part.state.layers[first].ssm)]

    yield _time_update("whole step", length, count, step, repeats)
    state = torch.cat([part.state.layers[first].ssm for part in slices])
    inputs = [draw_inputs(config, len(part), generator) for part in rows]

    def update():
        pairs = zip(inputs, rows, strict=True)
        return [found for x, part in pairs for found in dispatch.run("ssd_step", *x, state, rows=parents[part])]

    yield _time_update("state update of a layer", length, count, update, repeats)


def _time_update(case, length, count, function, repeats):
    def reorder_first():
        with forced_kernels("ssd_step=reference"):
            return function()

    difference = check_equal("states", function(), reorder_first(), 1e-3, case)
    peaks = take_peaks([function, reorder_first])
    timing = make_timing(case, length, count, take_turns([function, reorder_first], repeats), difference)
    return timing._replace(peaks=peaks)


def check_memory(config, length, count):
    """Raise UsageError when the states before and after a step, and the slow way's copies of a layer's, do not fit."""
    layer = 4 * config.mamba_n_heads * config.mamba_d_head * config.mamba_d_state
    needed, free = count * (2 * bytes_per_row(config, length) + 5 * layer), free_bytes("cpu")
    if free is not None and needed > free:
        what = f"{count:,} beams need about {spell_bytes(needed)}"
        raise UsageError(what, where="--count", hint=f"{spell_bytes(free)} are free")


def draw_state(config, length, count, generator):
    """Draw a state of so many rows that have each read so many bases of their own."""
    layers = []
    for layer in ModelState.start(config, count).layers:
        if isinstance(layer, MambaState):
            layers.append(MambaState(*(t.normal_(generator=generator) for t in layer[:2])))
        else:
            shape = count, length, *layer.keys.shape[2:]
            layers.append(layer._replace(keys=torch.randn(shape, generator=generator),
                                         values=torch.randn(shape, generator=generator)))  # fmt: skip
    return ModelState(tuple(layers), length)


def draw_inputs(config, count, generator):
    """Draw x, dt, A, B, C and D of one step, as `reference.ssd_step` takes them."""
    heads, groups = config.mamba_n_heads, config.mamba_n_groups
    x = torch.randn(count, heads, config.mamba_d_head, generator=generator)
    dt = torch.rand(count, heads, generator=generator) / 10 + 1e-3
    A, D = -1 - 15 * torch.rand(heads, generator=generator), torch.ones(heads)
    B, C = (torch.randn(count, groups, config.mamba_d_state, generator=generator) for _ in range(2))
    return x, dt, A, B, C, D
