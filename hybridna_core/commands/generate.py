"""Generate DNA after a label or a prompt, by sampling or by beam search.

label, prompt -> tokens -> Reading -> draws or beams (Reading.select) -> read again in one pass -> FASTA
"""

import collections
import math
import os
import time
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch

from hybridna_core.checkpoint import load_model
from hybridna_core.data.genome import open_genome
from hybridna_core.data.writers import check_output, fasta_record, open_output
from hybridna_core.errors import DataError, GuardError, UsageError
from hybridna_core.memory import free_bytes, spell_bytes
from hybridna_core.model.likelihood import read
from hybridna_core.model.state import bytes_per_row
from hybridna_core.tokenizer import BASE_IDS, decode, encode

LENGTH_LIMIT = 10**9
DEFAULT_LENGTH, DEFAULT_COUNT = 200, 10
# Rows per pass when sampling: always as many, sequence i always in row i % 16, so that results do not depend on n.
SAMPLE_ROWS = 16


class Design(NamedTuple):
    """One generated sequence.

    sequence      prompt and generated bases
    log_prob      of the generated bases, given label and prompt, nats, renormalised over A, C, G, T
    gc            share of G and C in the whole sequence
    label         label digits or None
    prompt_bases  bases of the sequence that were given
    """

    sequence: str
    log_prob: float
    gc: float
    label: str | None
    prompt_bases: int


@dataclass(frozen=True)
class Summary:
    """What a run of `generate` wrote; `marked` counts prompts without sequences, by reason."""

    sequences: int
    marked: dict
    bases: int
    mean_log_prob: float
    seconds: float
    output: str
    model: str

    def to_dict(self):
        return asdict(self)


def generate(
    output="-", *, model="base", label=None, prompt="", prompts=None, num_sequences=None, length=DEFAULT_LENGTH,
    num_beams=None, temperature=None, top_k=None, top_p=None, seed=0, device="auto", dtype="float32", force=False,
    rebuild_index=False, rna=False, allow_missing_eof=False, allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Generate sequences and write them as FASTA; return a Summary.

    output   FASTA to write, `-` for standard output
    model    name, folder, or a loaded model
    prompts  FASTA of many prompts instead of one; each gives num_sequences, as if it were alone
    rebuild_index, rna, allow_missing_eof: as `open_genome` has them, for that FASTA

    The other keywords are those of `generate_sequences`, num_sequences being its n. A prompt in a file that holds
    other letters than A, C, G, T or is too long stays in the output as it is, with a status word.
    """
    start = time.monotonic()
    check_numbers(num_sequences, length, num_beams, temperature, top_k, top_p, seed)
    if prompts is not None and prompt:
        raise UsageError("one of --prompt and --prompts, not both", where="--prompts")
    check_output(output, inputs=(prompts,), force=force)
    reading = {"rebuild_index": rebuild_index, "rna": rna, "allow_missing_eof": allow_missing_eof}
    named = [("design", prompt)] if prompts is None else read_prompts(prompts, **reading)
    if isinstance(model, str | os.PathLike):
        model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
    how = describe(num_beams, temperature, top_k, top_p, seed)
    how["model"] = f"{model.name}:{model.digest[:12]}"
    marked, log_probs, bases = collections.Counter(), [], 0
    with open_output(output, force) as handle:
        for i, (name, given) in enumerate(named):
            if prompts is not None and (reason := why_unusable(model, label, given, length)):
                marked[reason] += 1
                if sum(marked.values()) == len(named):
                    what = f"none of {len(named)} prompts can be used ({reason})"
                    raise DataError(what, where=prompts)
                handle.write(fasta_record(name, given, {"status": reason}).encode())
                continue
            designs = generate_sequences(
                model, label=label, prompt=given, n=num_sequences, length=length, num_beams=num_beams,
                temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, progress=share(progress, i, len(named)),
            )  # fmt: skip
            for k, design in enumerate(designs):
                handle.write(fasta_record(f"{name}_{k + 1}", design.sequence, fields_of(design) | how).encode())
                log_probs.append(design.log_prob)
                bases += len(design.sequence)
    mean = sum(log_probs) / len(log_probs)
    return Summary(len(log_probs), dict(marked), bases, mean, time.monotonic() - start, str(output), how["model"])


def read_prompts(path, **reading):
    """Return (name, bases) of each record of a FASTA; letters other than A, C, G, T come as N.

    reading  options of `open_genome`
    """
    with open_genome(path, other_letters="n", **reading) as genome:
        return [(name, genome.fetch(name, 0, length)) for name, length in genome.contigs.items()]


def why_unusable(model, label, prompt, length):
    """Return the status word of a prompt that cannot be continued, or None."""
    if "N" in prompt:
        return "bad_prompt"
    return "too_long" if length > room_after(model, len(start_tokens(model, label, prompt))) else None


def share(progress, i, count):
    """Return a progress callable for the i-th of `count` equal parts, or None."""
    if progress is None:
        return None
    return lambda done, total: progress(i * total + done, count * total)


def generate_sequences(
    model, *, label=None, prompt="", n=None, length=DEFAULT_LENGTH, num_beams=None, temperature=None, top_k=None,
    top_p=None, seed=0, progress=None,
):  # fmt: skip
    """Generate n sequences after a label, a prompt, both or neither; return a list of Design.

    label        digits that the model's tokenizer knows, such as "300"
    prompt       bases that every sequence begins with
    n            how many; 10 when None, or the number of beams if that is less
    length       bases to generate after the prompt
    num_beams    None: sampling; 1: the likeliest base at each step; more: beam search, best first
    temperature  divides the log-probabilities before sampling, 1 when None
    top_k, top_p draw from the k likeliest bases, or from the fewest that reach a probability of p
    seed         of the draws: sequence i depends on seed and i alone, not on n

    Raises UsageError for what cannot be done, before anything is computed; GuardError when the numbers fail.
    """
    n = check_numbers(n, length, num_beams, temperature, top_k, top_p, seed)
    head = start_tokens(model, label, prompt)
    check_room(model, len(head), length, num_beams)
    steps = length if num_beams is not None else length * -(-n // SAMPLE_ROWS)

    def advance(done):
        if progress is not None:
            progress(done, steps)

    _, reading = read(model, torch.from_numpy(head)[None].to(model.device))
    if num_beams is None:
        drawn = np.concatenate(
            [
                draw_block(model, reading, length, first, seed, temperature, top_k, top_p, advance)
                for first in range(0, n, SAMPLE_ROWS)
            ]
        )
        ids, claimed = drawn["ids"][:n], drawn["log_prob"][:n]
    else:
        ids, claimed = search_beams(model, reading, length, num_beams, advance)
        ids, claimed = ids[:n], claimed[:n]
    designs = [finish(model, head, row, value, label, prompt) for row, value in zip(ids, claimed, strict=True)]
    # Beams whose sums differ only by rounding may change places once read again; Python's sort keeps ties in order.
    return designs if num_beams is None else sorted(designs, key=lambda design: -design.log_prob)


def check_numbers(n, length, num_beams, temperature, top_k, top_p, seed):
    """Raise UsageError for a number out of range or options that contradict; return n with its default."""
    if length < 1:
        raise UsageError(f"is {length}, must be at least 1", where="--length")
    if length > LENGTH_LIMIT:
        what = f"is {length:,}, at most {LENGTH_LIMIT:,} bases are generated"
        raise UsageError(what, where="--length", hint=f"the tokens alone would take {spell_bytes(8 * length)}")
    if not 0 <= seed < 2**64:
        raise UsageError(f"is {seed}, must be 0 to 2^64 - 1", where="--seed")
    if n is not None and n < 1:
        raise UsageError(f"is {n}, must be at least 1", where="--num-sequences")
    if n is not None and n * length > LENGTH_LIMIT:
        what = f"{n:,} sequences of {length:,} bases are over {LENGTH_LIMIT:,} bases in all"
        raise UsageError(what, where="--num-sequences", hint="run it several times, with another --seed each")
    if temperature is not None and not (0 < temperature < math.inf):
        hint = "--num-beams 1 takes the likeliest base at each step"
        raise UsageError(f"is {temperature}, must be above 0 and finite", where="--temperature", hint=hint)
    if top_k is not None and top_k < 1:
        raise UsageError(f"is {top_k}, must be at least 1", where="--top-k")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"is {top_p}, must be above 0 and at most 1", where="--top-p")
    if num_beams is None:
        return DEFAULT_COUNT if n is None else n
    if num_beams < 1:
        raise UsageError(f"is {num_beams}, must be at least 1", where="--num-beams")
    if length < 32 and num_beams > 4**length:
        what = f"is {num_beams:,}, but only {4**length:,} sequences of {length} bases exist"
        raise UsageError(what, where="--num-beams")
    for name, value in (("--temperature", temperature), ("--top-k", top_k), ("--top-p", top_p)):
        if value is not None:
            hint = "leave --num-beams out to sample, or this option out to search"
            raise UsageError("is for sampling, but --num-beams asks for beam search", where=name, hint=hint)
    if n is not None and n > num_beams:
        what = f"is {n}, but a search with {num_beams} beams returns at most {num_beams}"
        raise UsageError(what, where="--num-sequences", hint=f"--num-beams {n} or more")
    return min(DEFAULT_COUNT, num_beams) if n is None else n


def start_tokens(model, label, prompt):
    """Return the ids that every sequence begins with: start token, label, prompt. (n,) int64, n >= 1"""
    for i, letter in enumerate(prompt):
        if letter not in "ACGTacgt":
            raise UsageError(f"letter {letter!r} at position {i + 1} is not A, C, G or T", where="--prompt")
    start = [] if model.config.bos_token_id is None else [model.config.bos_token_id]
    digits = [] if label is None else model.tokenizer.encode_label(label)
    head = np.concatenate([np.array(start, dtype=np.int64), digits, encode(prompt)]).astype(np.int64)
    if not len(head):
        what = "is empty, but this model has no start token to begin from"
        raise UsageError(what, where="--prompt", hint="give at least one base")
    return head


def room_after(model, given):
    """Return how many bases the model can still read after `given` tokens."""
    return max(0, model.config.context_length - given)


def check_room(model, given, length, num_beams):
    """Raise UsageError when the sequence is longer than the model reads, or the beams need more memory than is free.

    given  tokens before the first generated base
    """
    room = room_after(model, given)
    if length > room:
        what = f"{length:,} bases after {given:,} tokens are more than the model reads at once"
        raise UsageError(what, where="--length", hint=f"at most {room:,} here")
    rows = SAMPLE_ROWS if num_beams is None else num_beams
    item = torch.finfo(model.dtype).bits // 8
    # The old and the chosen state stand side by side, and one layer's update takes a few copies of its own.
    per_row = 3 * bytes_per_row(model.config, given + length, item)
    free = free_bytes(model.device)
    if free is not None and rows * per_row > free:
        option = "--length" if num_beams is None else "--num-beams"
        what = f"{rows:,} sequences of {length:,} bases need about {spell_bytes(rows * per_row)}"
        fits = f"{spell_bytes(free)} are free"
        if num_beams is not None:
            fits += f", enough for {free // per_row:,} beams"
        raise UsageError(what, where=option, hint=fits)


def draw_block(model, reading, length, first, seed, temperature, top_k, top_p, advance):
    """Sample one block of SAMPLE_ROWS sequences, the first with index `first`.

    returns  (SAMPLE_ROWS,) records of ids (length,) and log_prob, the model's own whatever the temperature
    """
    kind = np.dtype([("ids", np.int64, (length,)), ("log_prob", np.float64)])
    block = np.zeros(SAMPLE_ROWS, dtype=kind)
    draws = np.stack([uniforms(seed, first + i, length) for i in range(SAMPLE_ROWS)])
    reading = reading.repeat(SAMPLE_ROWS)
    rows = np.arange(SAMPLE_ROWS)
    for step in range(length):
        log_probs = next_log_probs(reading, step, "sequence", first)
        chosen = choose(log_probs, draws[:, step], temperature, top_k, top_p)
        block["ids"][:, step] = np.array(BASE_IDS)[chosen]
        block["log_prob"] += log_probs[rows, chosen]
        if step + 1 < length:
            reading = append(model, reading, block["ids"][:, step])
        advance(first // SAMPLE_ROWS * length + step + 1)
    return block


def uniforms(seed, index, count):
    """Return the random numbers of one sequence, in [0, 1): the t-th depends on (seed, index, t) alone.

    Philox counts, so the t-th number is a function of key and t; raw bits, as numpy promises only those.
    """
    raw = np.random.Philox(key=np.array([seed, index], dtype=np.uint64)).random_raw(count)
    return (raw >> np.uint64(11)) * 2.0**-53


def choose(log_probs, draws, temperature=None, top_k=None, top_p=None):
    """Pick one base per row by inverting the cumulative distribution over A, C, G, T.

    log_probs  (rows, 4)
    draws      (rows,) in [0, 1)
    returns    (rows,) 0 to 3
    """
    scaled = log_probs - log_probs.max(axis=1, keepdims=True)
    # A temperature close to 0 sends all but the likeliest to minus infinity.
    with np.errstate(over="ignore"):
        weights = np.exp(scaled / (temperature or 1))
    weights /= weights.sum(axis=1, keepdims=True)
    # Likeliest first; equal ones in the order A, C, G, T.
    order = np.argsort(-weights, axis=1, kind="stable")
    ranked = np.take_along_axis(weights, order, axis=1)
    if top_k is not None:
        ranked[:, top_k:] = 0
    if top_p is not None:
        # A base stays while those before it have not reached top_p together.
        before = np.cumsum(ranked, axis=1) - ranked
        ranked[before >= top_p] = 0
    np.put_along_axis(weights, order, ranked, axis=1)
    cumulative = np.cumsum(weights, axis=1)
    chosen = (cumulative <= (draws * cumulative[:, -1])[:, None]).sum(axis=1)
    # Rounding in the product could point past the last base that can be drawn.
    last = 3 - np.argmax(weights[:, ::-1] > 0, axis=1)
    return np.minimum(chosen, last)


def search_beams(model, reading, length, num_beams, advance):
    """Keep the `num_beams` likeliest partial sequences at each step.

    returns  ids (beams, length) and their log-probabilities (beams,), best first

    Equal sums are ordered by parent beam, then A, C, G, T.
    """
    ids = np.zeros((1, 0), dtype=np.int64)
    sums = np.zeros(1)
    for step in range(length):
        totals = (sums[:, None] + next_log_probs(reading, step, "beam")).ravel()
        kept = np.argsort(-totals, kind="stable")[:num_beams]
        parents, bases = kept // 4, np.array(BASE_IDS)[kept % 4]
        sums = totals[kept]
        ids = np.concatenate([ids[parents], bases[:, None]], axis=1)
        if step + 1 < length:
            # All come from one row at first: its keys are then stored once.
            if step == 0:
                reading = reading.repeat(len(kept))
            else:
                reading = reading.select(torch.from_numpy(parents).to(model.device))
            reading = append(model, reading, bases)
        advance(step + 1)
    return ids, sums


def next_log_probs(reading, step, name, first=0):
    """Return the next base's log-probabilities (rows, 4); raise GuardError for a row that is not finite."""
    log_probs = reading.next_log_probs().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(log_probs).all(axis=1))
    if len(bad):
        where = f"step {step + 1}, {name} {first + bad[0] + 1}"
        raise GuardError("the model's prediction is not finite", where=where, hint="check its weights")
    return log_probs


def append(model, reading, ids):
    """Read one more base per row. ids (rows,) int64"""
    return read(model, torch.from_numpy(ids)[:, None].to(model.device), reading)[1]


def finish(model, head, ids, claimed, label, prompt):
    """Read a finished sequence again in one plain pass, compare with the sum found on the way, and make a Design."""
    tokens = torch.from_numpy(np.concatenate([head, ids]))[None].to(model.device)
    log_probs, _ = read(model, tokens)
    log_prob = float(log_probs[0, len(head) :].sum())
    relative = 2e-5 if model.dtype in (torch.float32, torch.float64) else 2e-2
    if not abs(log_prob - claimed) <= 1e-3 + relative * abs(claimed):
        what = f"log-probability {claimed:.6f} while generating, {log_prob:.6f} when read again"
        raise GuardError(what, where="generate", hint="hybridna doctor checks the kernels")
    sequence = prompt.upper() + decode(ids)
    gc = (sequence.count("G") + sequence.count("C")) / len(sequence)
    return Design(sequence, log_prob, gc, label, len(prompt))


def describe(num_beams, temperature, top_k, top_p, seed):
    """Return the settings that made the sequences, as written behind each name."""
    if num_beams is not None:
        return {"method": "beam", "num_beams": num_beams}
    how = {"method": "sample", "seed": seed, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    return {key: value for key, value in how.items() if value is not None}


def fields_of(design):
    """Return what is written behind the name of one sequence."""
    fields = {"status": "ok", "log_prob": f"{design.log_prob:.4f}", "gc": f"{design.gc:.3f}"}
    if design.label is not None:
        fields["label"] = design.label
    if design.prompt_bases:
        fields["prompt_bases"] = design.prompt_bases
    return fields
