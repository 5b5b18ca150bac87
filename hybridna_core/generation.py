"""One prompt's designs: what is asked for is checked, searched for, and read again in one plain pass.

numbers -> Plan; label, prompt -> tokens -> Reading -> draws or beams within an Automaton -> read again -> Design
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from hybridna_core.certificate import Design
from hybridna_core.constraints import Constraints, compile_constraints, parse_constraints
from hybridna_core.data.inputs import warn
from hybridna_core.errors import GuardError, UsageError
from hybridna_core.memory import spell_bytes
from hybridna_core.model.decode import make_graph
from hybridna_core.model.labels import label_posterior
from hybridna_core.model.likelihood import read
from hybridna_core.search import SAMPLE_ROWS, Beams, Found, Sampling, count_slice, draw_block, search_beams
from hybridna_core.task_files import read_labels
from hybridna_core.tokenizer import decode, encode

LENGTH_LIMIT = 10**9
DEFAULT_LENGTH, DEFAULT_COUNT = 200, 10


class Plan(NamedTuple):
    """What is to be made of each prompt: `count` sequences of `length` bases after it.

    beams        Beams, or None for sampling
    constraints  Constraints or None
    """

    count: int
    length: int
    sampling: Sampling
    beams: Beams | None
    constraints: Constraints | None

    def to_fields(self):
        """Return the settings as written behind each name."""
        if self.beams is None:
            fields = {"method": "sample", **self.sampling._asdict()}
        else:
            fields = {"method": "beam", "num_beams": self.beams.width}
            if self.beams.groups > 1:
                fields |= {"beam_groups": self.beams.groups, "diversity_penalty": self.beams.penalty}
        fields |= {} if self.constraints is None else self.constraints.to_fields()
        return {key: value for key, value in fields.items() if value is not None}


def make_plan(
    n, length, num_beams, beam_groups, diversity_penalty, temperature, top_k, top_p, seed, gc=None,
    max_homopolymer=None, forbid=None, template=None, require=None,
):  # fmt: skip
    """Return the Plan of options; raise UsageError for a number out of range or options that contradict."""
    constraints = parse_constraints(gc, max_homopolymer, forbid, template, require)
    if length is None:
        length = DEFAULT_LENGTH if template is None else len(constraints.template)
    _check_sampling(num_beams, temperature, top_k, top_p, seed)
    _check_size(n, length)
    beams = _make_beams(n, length, num_beams, beam_groups, diversity_penalty)
    count = n or (DEFAULT_COUNT if beams is None else min(DEFAULT_COUNT, num_beams))
    return Plan(count, length, Sampling(temperature, top_k, top_p, seed), beams, constraints)


def _check_size(n, length):
    if length < 1:
        raise UsageError(f"is {length}, must be at least 1", where="--length")
    if length > LENGTH_LIMIT:
        what = f"is {length:,}, at most {LENGTH_LIMIT:,} bases are generated"
        raise UsageError(what, where="--length", hint=f"the tokens alone would take {spell_bytes(8 * length)}")
    if n is not None and n < 1:
        raise UsageError(f"is {n}, must be at least 1", where="--num-sequences")
    if n is not None and n * length > LENGTH_LIMIT:
        what = f"{n:,} sequences of {length:,} bases are over {LENGTH_LIMIT:,} bases in all"
        raise UsageError(what, where="--num-sequences", hint="run it several times, with another --seed each")


def _check_sampling(num_beams, temperature, top_k, top_p, seed):
    if not 0 <= seed < 2**64:
        raise UsageError(f"is {seed}, must be 0 to 2^64 - 1", where="--seed")
    if temperature is not None and not (0 < temperature < math.inf):
        hint = "--num-beams 1 takes the likeliest base at each step"
        raise UsageError(f"is {temperature}, must be above 0 and finite", where="--temperature", hint=hint)
    if top_k is not None and top_k < 1:
        raise UsageError(f"is {top_k}, must be at least 1", where="--top-k")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"is {top_p}, must be above 0 and at most 1", where="--top-p")
    for name, value in (("--temperature", temperature), ("--top-k", top_k), ("--top-p", top_p)):
        if value is not None and num_beams is not None:
            hint = "leave --num-beams out to sample, or this option out to search"
            raise UsageError("is for sampling, but --num-beams asks for beam search", where=name, hint=hint)


def _make_beams(n, length, num_beams, groups, penalty):
    """Return Beams, or None for sampling."""
    for name, value in (("--beam-groups", groups), ("--diversity-penalty", penalty)):
        if value is not None and num_beams is None:
            raise UsageError("is for beam search", where=name, hint="give --num-beams")
    if penalty is not None and not 0 <= penalty < math.inf:
        raise UsageError(f"is {penalty}, must be 0 or more, and finite", where="--diversity-penalty")
    if penalty is not None and groups is None:
        raise UsageError("is between groups of beams", where="--diversity-penalty", hint="give --beam-groups")
    if num_beams is None:
        return None
    if num_beams < 1:
        raise UsageError(f"is {num_beams}, must be at least 1", where="--num-beams")
    if length < 32 and num_beams > 4**length:
        what = f"is {num_beams:,}, but only {4**length:,} sequences of {length} bases exist"
        raise UsageError(what, where="--num-beams")
    if n is not None and n > num_beams:
        what = f"is {n}, but a search with {num_beams} beams returns at most {num_beams}"
        raise UsageError(what, where="--num-sequences", hint=f"--num-beams {n} or more")
    groups = 1 if groups is None else groups
    if groups < 1 or num_beams % groups:
        what = f"is {groups:,}, must divide the {num_beams:,} beams"
        raise UsageError(what, where="--beam-groups")
    return Beams(num_beams, groups, 1.0 if penalty is None else float(penalty))


def start_tokens(config, tokenizer, label, prompt):
    """Return the ids that every sequence begins with: start token, label, prompt. (n,) int64"""
    start = [] if config.bos_token_id is None else [config.bos_token_id]
    digits = [] if label is None else tokenizer.encode_label(label)
    return np.concatenate([np.array(start, dtype=np.int64), digits, encode(prompt)]).astype(np.int64)


def check_prompt(config, tokenizer, label, prompt, plan):
    """Raise UsageError for a label or prompt that cannot be continued as planned."""
    for i, letter in enumerate(prompt):
        if letter not in "ACGTacgt":
            raise UsageError(f"letter {letter!r} at position {i + 1} is not A, C, G or T", where="--prompt")
    given = len(start_tokens(config, tokenizer, label, prompt))
    if not given:
        what = "is empty, but this model has no start token to begin from"
        raise UsageError(what, where="--prompt", hint="give at least one base")
    if plan.length > _room(config, given):
        what = f"{plan.length:,} bases after {given:,} tokens are more than the model reads at once"
        raise UsageError(what, where="--length", hint=f"at most {_room(config, given):,} here")
    _compile(plan, prompt)


def why_unusable(config, tokenizer, label, prompt, plan):
    """Return the status word of a prompt of a file that cannot be continued as planned, or None."""
    if "N" in prompt:
        return "bad_prompt"
    if plan.length > _room(config, len(start_tokens(config, tokenizer, label, prompt))):
        return "too_long"
    try:
        _compile(plan, prompt)
    except UsageError:
        return "unsatisfiable"
    return None


def _room(config, given):
    return max(0, config.context_length - given)


def _compile(plan, prompt):
    """Return the Automaton of a prompt or None; raise UsageError for constraints that leave too few sequences."""
    if plan.constraints is None:
        return None
    automaton = compile_constraints(plan.constraints, prompt.upper(), plan.length)
    width = 1 if plan.beams is None else plan.beams.width
    count = automaton.count(width)
    if count < width:
        what = f"is {width:,}, but only {count:,} sequences satisfy the constraints"
        raise UsageError(what, where="--num-beams", hint=f"--num-beams {count} finds them all")
    return automaton


def make_designs(model, plan, label, prompt, progress=None):
    """Search for the sequences of one prompt, which `check_prompt` has passed; return a list of Design."""
    steps = plan.length * (1 if plan.beams is not None else -(-plan.count // SAMPLE_ROWS))

    finished = 0

    def advance(done):
        if progress is not None:
            progress(finished + done, steps)

    head, automaton = start_tokens(model.config, model.tokenizer, label, prompt), _compile(plan, prompt)
    _, reading = read(model, torch.from_numpy(head)[None].to(model.device))
    if plan.beams is None:
        blocks, graph = [], make_graph(model, reading.repeat(SAMPLE_ROWS))
        for first in range(0, plan.count, SAMPLE_ROWS):
            blocks.append(draw_block(model, reading, plan.length, first, plan.sampling, automaton, advance, graph))
            finished += plan.length
        found = Found(*(np.concatenate(part) for part in zip(*blocks, strict=True)))
    else:
        at_once = count_slice(model.config, model.device, model.dtype, len(head), plan.length, plan.beams)
        found = search_beams(model, reading, plan.length, plan.beams, automaton, advance, at_once)
    pairs = list(zip(found.ids, found.log_probs, strict=True))[: plan.count]
    designs = [_finish(model, head, ids, claimed, label, prompt) for ids, claimed in pairs]
    frequencies = None if label is None else read_labels(model)
    if frequencies is not None:
        designs = [design._replace(posterior=_posterior(model, design, frequencies)) for design in designs]
    # Beams whose sums differ only by rounding may change places once read again; Python's sort keeps ties in order.
    return designs if plan.beams is None else sorted(designs, key=lambda design: -design.log_prob)


def _posterior(model, design, frequencies):
    """Return the probability of a design's label given its sequence; 0 for a label that no row of training had."""
    labels = list(frequencies)
    if design.label not in labels:
        what = f"no sequence that the model was trained on has the label {design.label}; its posterior is 0"
        warn("unseen-label", what)
        return 0.0
    return float(label_posterior(model, design.sequence, frequencies)[0][labels.index(design.label)])


def _finish(model, head, ids, claimed, label, prompt):
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
