"""A published model's structure: from the shapes of its tensors, and from config.json only what they cannot give.

headers -> slots -> votes of all layers -> widths and counts; config.json -> groups, heads, eps, ASSUMED, CONFLICT
"""

import math
from collections import Counter, defaultdict
from typing import NamedTuple

from hybridna_core.config import ModelConfig
from hybridna_core.errors import ModelError, UsageError
from hybridna_core.hf_names import ATTENTION_SLOTS, CONFIG_SILENT, CONFIG_SPELLINGS, MAMBA_SLOTS, place

DEFAULT_HEADS = 32
DEFAULT_EPS = 1e-6
DEFAULT_CONTEXT = 131_072
LARGEST = 3.0e38


class Facts(NamedTuple):
    """What the shapes say. Widths in channels; `state_total` is groups times state size."""

    layer_types: tuple[str, ...]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    kv_width: int | None
    mamba_n_heads: int
    mamba_width: int
    state_total: int
    mamba_d_conv: int


def sort_names(headers):
    """Sort stored tensors into slots.

    returns  places: dict (layer, slot) -> dict part -> stored name; unknown names; ignored names
    A second tensor for a place that is taken counts as unknown.
    """
    places, unknown, ignored = defaultdict(dict), [], []
    for name in headers:
        where = place(name)
        if where == "ignored":
            ignored.append(name)
        elif where is None or where.part in places[where.layer, where.slot]:
            unknown.append(name)
        else:
            places[where.layer, where.slot][where.part] = name
    return {key: parts for key, parts in places.items() if parts}, unknown, ignored


def derive_facts(headers, places, folder):
    """Derive the structure from shapes; where layers disagree the majority counts. ModelError if it cannot be told."""
    layers = 1 + max((layer for layer, _ in places if layer is not None), default=-1)
    if layers == 0:
        raise ModelError("no layers found among the tensor names", where=folder, hint="is it a HybriDNA model?")

    def shapes(*slots):
        for (_, slot), parts in places.items():
            if slot in slots and "whole" in parts:
                yield headers[parts["whole"]].shape

    def most(what, votes):
        counts = Counter(votes)
        if not counts:
            raise ModelError(f"no tensor tells the {what}", where=folder, hint="is it a HybriDNA model?")
        return counts.most_common(1)[0][0]

    vectors = ("norm1", "norm2", "final")
    hidden = most("hidden size", (s[0] for s in shapes(*vectors) if len(s) == 1))
    matrices = [s for s in shapes("embed", "head") if len(s) == 2]
    vocab = most("vocabulary", [s[0] for s in matrices if s[1] == hidden] or [s[1] for s in matrices])

    def rows(*slots):
        return [s[0] for s in shapes(*slots) if len(s) == 2 and s[1] == hidden]

    def columns(*slots):
        return [s[1] for s in shapes(*slots) if len(s) == 2 and s[0] == hidden]

    mlp = rows("gate", "up") + [n // 2 for n in rows("gate_up")] + columns("down")
    kinds = tuple(_kind(places, layer) for layer in range(layers))
    kv = rows("k", "v") + [(n - hidden) // 2 for n in rows("qkv")]
    width = most("Mamba width", columns("out_proj") + [s[0] for s in shapes("norm") if len(s) == 1])
    convolved = [s[0] for s in shapes("conv_weight", "conv_bias") if len(s) in (1, 3)]
    state_total, odd = divmod(most("convolution width", convolved) - width, 2)
    heads = most("number of Mamba heads", (s[0] for s in shapes("A_log", "D", "dt_bias") if len(s) == 1))
    if state_total < 1 or odd:
        raise ModelError(f"convolution of {2 * state_total + odd + width} channels over {width} leaves no state",
                         where=folder)  # fmt: skip
    if width % heads:
        raise ModelError(f"{heads} Mamba heads do not divide {width} channels", where=folder)
    return Facts(
        layer_types=kinds,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=most("MLP width", mlp),
        kv_width=most("key width", kv) if "attention" in kinds else None,
        mamba_n_heads=heads,
        mamba_width=width,
        state_total=state_total,
        mamba_d_conv=most("convolution length", (s[-1] for s in shapes("conv_weight") if len(s) == 3)),
    )


def _kind(places, layer):
    attention = sum((layer, slot) in places for slot in ATTENTION_SLOTS)
    mamba = sum((layer, slot) in places for slot in MAMBA_SLOTS)
    return "attention" if attention > mamba else "mamba"


def group_counts(facts):
    """Return the numbers of groups that the shapes allow."""
    both = math.gcd(facts.state_total, facts.mamba_n_heads)
    return [n for n in range(1, both + 1) if both % n == 0]


def head_layouts(facts):
    """Return the (query heads, key/value heads) that the shapes allow."""
    if facts.kv_width is None or facts.hidden_size % facts.kv_width:
        return []
    ratio = facts.hidden_size // facts.kv_width
    return [(n * ratio, n) for n in range(1, facts.kv_width + 1) if facts.kv_width % n == 0]


class Notes:
    """What was assumed, what conflicts and what was given, for the report."""

    def __init__(self):
        self.assumed, self.conflicting, self.given = [], [], []

    def assume(self, field, value, why):
        self.assumed.append({"field": field, "value": value, "why": why})

    def conflict(self, field, said, used, why, blocking=False):
        self.conflicting.append({"field": field, "config": said, "used": used, "why": why, "blocking": blocking})

    @property
    def blocking(self):
        return [c for c in self.conflicting if c["blocking"]]


def look_up(table, field, notes):
    """Return what config.json says about a field, under any family's spelling, or None; (key, value)."""
    found = [(key, table[key]) for key in CONFIG_SPELLINGS[field] if table.get(key) is not None]
    for key, value in found[1:]:
        if value != found[0][1]:
            notes.conflict(key, value, found[0][1], f"{found[0][0]} says otherwise and counts")
    return found[0] if found else (None, None)


def choose_config(facts, table, notes, *, n_groups=None, attention_heads=None, context=None, tied=False):
    """Build the ModelConfig: shapes first, then config.json, then defaults, each with a note where it is a guess.

    table            parsed config.json, {} if there is none
    n_groups         given by the user, goes over everything
    attention_heads  query heads, likewise
    context          tokens, from the tokenizer's files, for when config.json is silent
    """
    _compare(facts, table, notes)
    groups, state = _choose_groups(facts, table, notes, n_groups)
    heads, kv_heads = _choose_heads(facts, table, notes, attention_heads)
    eps = _number(table, "rms_norm_eps", notes)
    if eps is None or not 0 < eps < 1:
        eps = DEFAULT_EPS
        notes.assume("rms_norm_eps", eps, "config.json does not say")
    length = _number(table, "max_position_embeddings", notes) or context
    if length is None or not 1 <= length <= 2**31:
        length = DEFAULT_CONTEXT
        notes.assume("max_position_embeddings", length, "neither config.json nor the tokenizer's files say")
    _check_meaning(facts, heads, table, notes)
    try:
        return ModelConfig(
            hidden_size=facts.hidden_size,
            intermediate_size=facts.intermediate_size,
            layer_types=facts.layer_types,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            mamba_n_heads=facts.mamba_n_heads,
            mamba_d_state=state,
            mamba_d_head=facts.mamba_width // facts.mamba_n_heads,
            mamba_n_groups=groups,
            mamba_d_conv=facts.mamba_d_conv,
            vocab_size=facts.vocab_size,
            max_position_embeddings=int(length),
            rms_norm_eps=float(eps),
            tie_word_embeddings=tied,
            # The released code reads without a start token.
            bos_token_id=None,
            eos_token_id=_token_id(table, "eos_token_id", facts, 1),
            pad_token_id=_token_id(table, "pad_token_id", facts, 4),
            time_step_limit=_choose_dt_limit(table, notes),
        )
    except UsageError as error:
        raise ModelError(f"no such model can be built: {error}", where="shapes") from None


def _number(table, field, notes):
    _, value = look_up(table, field, notes)
    return value if type(value) in (int, float) else None


def _token_id(table, key, facts, default):
    value = table.get(key, default)
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int and 0 <= value < facts.vocab_size else None


def _compare(facts, table, notes):
    """Note where config.json contradicts the shapes; the shapes win."""
    derived = {
        "num_hidden_layers": len(facts.layer_types),
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "vocab_size": facts.vocab_size,
        "mamba_n_heads": facts.mamba_n_heads,
        "mamba_d_head": facts.mamba_width // facts.mamba_n_heads,
        "mamba_d_conv": facts.mamba_d_conv,
        "mamba_expand": facts.mamba_width / facts.hidden_size,
    }
    for field, value in derived.items():
        key, said = look_up(table, field, notes)
        if key is not None and said not in (value, "auto"):
            notes.conflict(key, said, value, "the shapes say otherwise and count")
    said = attention_layers(table, len(facts.layer_types))
    found = [i for i, kind in enumerate(facts.layer_types) if kind == "attention"]
    if said is not None and said != found:
        notes.conflict("attention layers", said, found, "the tensor names say otherwise and count")


def attention_layers(table, layers):
    """Return the indices of attention layers that config.json names, or None."""
    if isinstance(table.get("attn_layer_indices"), list):
        return sorted(i for i in table["attn_layer_indices"] if type(i) is int)
    for key in ("layers_block_type", "layer_types"):
        if isinstance(table.get(key), list):
            # "attention", "full_attention" or "hybrid", beside "mamba" or "linear_attention".
            return [i for i, kind in enumerate(table[key]) if kind in ("attention", "full_attention", "hybrid")]
    period, offset = table.get("attn_layer_period"), table.get("attn_layer_offset")
    if type(period) is int and type(offset) is int and period > 0:
        return [i for i in range(layers) if i % period == offset]
    return None


def _choose_groups(facts, table, notes, given):
    """Return (groups, state size). The shapes give only their product."""
    total, allowed = facts.state_total, group_counts(facts)
    key, said = look_up(table, "mamba_n_groups", notes)
    state_key, state = look_up(table, "mamba_d_state", notes)
    if given is not None:
        if given not in allowed:
            raise UsageError(f"is {given}, the shapes allow {_spell(allowed)}", where="--n-groups")
        notes.given.append({"field": "mamba_n_groups", "value": given})
        said = given
    elif key is not None and said not in allowed:
        why = f"must divide {total} (groups times state) and {facts.mamba_n_heads} heads: {_spell(allowed)}"
        notes.conflict(key, said, 1, why, blocking=True)
        said = 1
    elif key is None:
        said = 1
        other = total // state if type(state) is int and state > 0 and total % state == 0 else None
        if other not in (None, 1) and other in allowed:
            why = f"would mean {other} groups, and no group count is given; --n-groups settles it"
            notes.conflict(state_key, state, total, why, blocking=True)
            return said, total
        notes.assume("mamba_n_groups", 1, "config.json does not say, and the shapes give only groups times state")
    if state_key is not None and state != total // said:
        notes.conflict(state_key, state, total // said, "the shapes say otherwise and count")
    return said, total // said


def _choose_heads(facts, table, notes, given):
    """Return (query heads, key/value heads). The shapes give only their ratio."""
    layouts = head_layouts(facts)
    if facts.kv_width is None:
        return 1, 1
    if not layouts:
        what = f"key width {facts.kv_width} does not divide hidden size {facts.hidden_size}"
        raise ModelError(what, where="shapes")
    by_heads = dict(layouts)
    usual = max((n for n in by_heads if n <= DEFAULT_HEADS), default=min(by_heads))
    key, said = look_up(table, "num_attention_heads", notes)
    kv_key, kv = look_up(table, "num_key_value_heads", notes)
    if given is not None:
        if given not in by_heads:
            raise UsageError(f"is {given}, the shapes allow {_spell(by_heads)}", where="--attention-heads")
        notes.given.append({"field": "num_attention_heads", "value": given})
        return given, by_heads[given]
    if key is None and kv in by_heads.values():
        said = kv * facts.hidden_size // facts.kv_width
    elif key is None:
        notes.assume("num_attention_heads", usual, "config.json does not say, and the shapes give only a ratio")
        said = usual
    elif type(said) is not int or said not in by_heads:
        why = f"key width {facts.kv_width} at hidden size {facts.hidden_size} allows {_spell(by_heads)}"
        notes.conflict(key, said, usual, why, blocking=True)
        said = usual
    if kv_key is not None and kv != by_heads[said]:
        why = f"{said} query heads and key width {facts.kv_width} need {by_heads[said]}"
        notes.conflict(kv_key, kv, by_heads[said], why, blocking=True)
    return said, by_heads[said]


def _choose_dt_limit(table, notes):
    _, value = look_up(table, "time_step_limit", notes)
    if not (isinstance(value, list) and len(value) == 2):
        return None
    low, high = (_infinite(v) for v in value)
    if low is None or high is None or not 0 <= low < high:
        notes.conflict("time_step_limit", value, None, "no such range; dt is not clamped")
        return None
    return None if low == 0 and high > LARGEST else (low, min(high, LARGEST))


def _infinite(value):
    """Read a number as published configs write it; infinity may be spelt as a small table."""
    if isinstance(value, dict):
        return math.inf if value.get("__float__") == "Infinity" else None
    return float(value) if type(value) in (int, float) else None


def _check_meaning(facts, heads, table, notes):
    """Note settings that name another computation than ours; no shape shows them."""
    for key in CONFIG_SPELLINGS["activation"]:
        if table.get(key) not in (None, "silu", "swish"):
            notes.conflict(key, table[key], "silu", "another activation", blocking=True)
    rope = table.get("rope_parameters") if isinstance(table.get("rope_parameters"), dict) else {}
    share = rope.get("partial_rotary_factor", table.get("partial_rotary_factor"))
    if share is None and table.get("model_type") == "bamba":
        share = 0.5
    if (share or table.get("position_embedding_type") == "rope") and "attention" in facts.layer_types:
        said = table.get("position_embedding_type") or share
        notes.conflict("position code", said, None, "HybriDNA's attention has none", blocking=True)
    for key in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
        if table.get(key) not in (None, 1, 1.0):
            notes.conflict(key, table[key], 1.0, "another scale", blocking=True)
    scale, due = table.get("attention_multiplier"), (facts.hidden_size // heads) ** -0.5
    if type(scale) in (int, float) and "attention" in facts.layer_types and not math.isclose(scale, due, rel_tol=1e-6):
        notes.conflict("attention_multiplier", scale, due, "another scale", blocking=True)


def unread_keys(table):
    """Return the keys of config.json that nothing here reads, in order."""
    known = CONFIG_SILENT.union(*CONFIG_SPELLINGS.values())
    return [key for key in table if key not in known]


def _spell(numbers):
    return ", ".join(str(n) for n in numbers)
