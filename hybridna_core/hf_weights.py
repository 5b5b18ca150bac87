"""Published HybriDNA folders: plan from headers, report, then load; remote code is never run.

folder -> headers -> slots -> structure -> ModelConfig -> expected shapes -> Report -> tensors -> HybridLM
"""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hybridna_core.config import ModelConfig, read_json
from hybridna_core.errors import ModelError, UsageError
from hybridna_core.hf_names import IN_PROJ_ORDER, OUR_TOP, our_name
from hybridna_core.hf_structure import Facts, Notes, choose_config, derive_facts, sort_names, unread_keys
from hybridna_core.tokenizer import FIRST_PROMPT_ID, TOKENS, LabelPosition, Tokenizer
from hybridna_core.weight_files import check_finite, check_inside, hint_for, looks_like, open_tensors, read_headers

log = logging.getLogger("hybridna")

OFFICIAL_ELEMENTS = {297_534_688: "300M", 3_119_400_960: "3B", 6_253_397_504: "7B"}
STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
TOKENIZER_BYTES_LIMIT = 2**20


@dataclass
class Report:
    """What a published folder holds against what the network needs; `to_dict` is its machine form."""

    folder: str
    files: list = field(default_factory=list)
    dtypes: dict = field(default_factory=dict)
    elements: int = 0
    official: str | None = None
    config: dict = field(default_factory=dict)
    loaded: list = field(default_factory=list)
    missing: list = field(default_factory=list)
    unexpected: list = field(default_factory=list)
    mismatched: list = field(default_factory=list)
    assumed: list = field(default_factory=list)
    conflicting: list = field(default_factory=list)
    given: list = field(default_factory=list)
    ignored: list = field(default_factory=list)
    ignored_config: list = field(default_factory=list)
    code: list = field(default_factory=list)

    @property
    def fits(self):
        """Every tensor is there, known and of the right shape."""
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def blocking(self):
        """Conflicts that shapes cannot settle."""
        return [c for c in self.conflicting if c["blocking"]]

    def to_dict(self):
        return {**vars(self), "ok": self.fits and not self.blocking}

    def lines(self):
        """Spell the report for people, the loaded tensors as a count."""
        total = f"{self.elements:,} elements"
        yield f"{total}: matches official {self.official}" if self.official else f"{total}: none of the official sizes"
        stored = ", ".join(f"{STORED.get(k, k)} {n:,}" for k, n in self.dtypes.items())
        yield f"{len(self.loaded)} tensors fit; stored as {stored}"
        for item in self.given:
            yield f"GIVEN {item['field']} = {item['value']}"
        for item in self.assumed:
            yield f"ASSUMED {item['field']} = {item['value']} ({item['why']})"
        for item in self.conflicting:
            yield f"CONFLICT {item['field']}: config.json has {item['config']}, used {item['used']} ({item['why']})"
        for item in self.missing:
            yield f"MISSING {item['key']} {item['expected']}"
        for item in self.unexpected:
            yield f"UNEXPECTED {item['key']} {item['shape']}"
        for item in self.mismatched:
            yield f"MISMATCH {item['key']}: {item['shape']} there, {item['expected']} expected"
        if self.ignored:
            yield f"ignored buffers: {', '.join(self.ignored)}"
        if self.ignored_config:
            yield f"ignored in config.json: {', '.join(self.ignored_config)}"
        if self.code:
            yield f"never run: {', '.join(self.code)}"


@dataclass
class Plan:
    """How to fill our network from a published folder.

    sources  dict of our tensor name -> list of (stored name, first row, end row); rows None for a whole tensor
    rows     stored embedding row of each of our token ids, None when they agree
    """

    folder: Path
    headers: dict
    facts: Facts
    config: ModelConfig
    tokenizer: Tokenizer
    sources: dict
    rows: list | None
    report: Report


def read_published_config(folder):
    """Return the parsed config.json of a published folder, {} when there is none."""
    path = Path(folder) / "config.json"
    if not path.exists():
        return {}
    check_inside(path, folder)
    kind = looks_like(path)
    if kind:
        raise ModelError(f"looks like {kind}", where=path, hint=hint_for(kind))
    table = read_json(path, infinity=True)
    if not isinstance(table, dict):
        raise UsageError("must hold one table", where=path)
    return table


def plan_import(folder, *, n_groups=None, attention_heads=None):
    """Read headers and config.json of a published folder; return a Plan whose report tells all that does not fit.

    No weights are read. Raises ModelError when the structure cannot be told at all.
    """
    folder = Path(folder)
    headers = read_headers(folder)
    table = read_published_config(folder)
    places, unknown, ignored = sort_names(headers)
    facts = derive_facts(headers, places, folder)
    if facts.vocab_size < FIRST_PROMPT_ID:
        raise ModelError(f"{facts.vocab_size} vocabulary rows, HybriDNA has 12 or more", where=folder)
    notes = Notes()
    tied = _is_tied(places, headers, table, notes)
    letters, context = read_tokenizer_files(folder)
    config = choose_config(
        facts, table, notes, n_groups=n_groups, attention_heads=attention_heads, context=context, tied=tied
    )
    sources, shapes, taken = _find_sources(places, headers, facts, notes)
    rows = _order_rows(letters, facts.vocab_size, notes)
    report = Report(str(folder), assumed=notes.assumed, conflicting=notes.conflicting, given=notes.given)
    report.files = sorted({entry.file.name for entry in headers.values()})
    counts = Counter()
    for entry in headers.values():
        counts[entry.dtype] += entry.elements
    report.dtypes = dict(counts.most_common())
    report.elements = sum(counts.values())
    report.official = OFFICIAL_ELEMENTS.get(report.elements)
    report.config = config.to_dict()
    report.ignored, report.ignored_config = ignored, unread_keys(table)
    report.code = sorted(p.name for p in folder.glob("*.py"))
    _compare_shapes(report, config, headers, sources, shapes, unknown + taken)
    return Plan(folder, headers, facts, config, _tokenizer_for(facts.vocab_size), sources, rows, report)


def _is_tied(places, headers, table, notes):
    """Tell whether the head is the embedding."""
    said = table.get("tie_word_embeddings")
    if (None, "head") in places:
        if said is True and (None, "embed") in places:
            notes.conflict("tie_word_embeddings", True, False, "lm_head is stored and counts")
        return False
    if said is False:
        return False
    if said is None:
        notes.assume("tie_word_embeddings", True, "no lm_head is stored")
    return True


def _find_sources(places, headers, facts, notes):
    """Map our tensor names to stored ones.

    returns  sources as in Plan, the shape that each then has, and fused tensors whose place is taken
    """
    sources, shapes, taken = {}, {}, []
    fused = [(key, parts) for key, parts in places.items() if key[1] in ("qkv", "gate_up")]
    for (layer, slot), parts in places.items():
        if slot in ("qkv", "gate_up"):
            continue
        names = [parts[p] for p in IN_PROJ_ORDER if p in parts]
        ours = our_name(layer, slot)
        sources[ours] = [(name, None, None) for name in names]
        shapes[ours] = _stacked([headers[name].shape for name in names])
    for (layer, slot), parts in fused:
        name = parts["whole"]
        slots, sizes = _split_fused(slot, facts)
        targets = [our_name(layer, s) for s in slots]
        if any(target in sources for target in targets):
            taken.append(name)
            continue
        fits = headers[name].shape[0] == sum(sizes)
        start = 0
        for target, size in zip(targets, sizes, strict=True):
            sources[target] = [(name, start, start + size)]
            shapes[target] = (size, *headers[name].shape[1:]) if fits else headers[name].shape
            start += size
    for slot, order in (("qkv", "q, k, v"), ("gate_up", "gate, up")):
        if any(key[1] == slot for key, _ in fused):
            notes.assume(f"row order of fused {slot}", order, "shapes cannot tell")
    return sources, shapes, taken


def _split_fused(slot, facts):
    if slot == "qkv":
        return ("q", "k", "v"), (facts.hidden_size, facts.kv_width or 0, facts.kv_width or 0)
    return ("gate", "up"), (facts.intermediate_size, facts.intermediate_size)


def _stacked(shapes):
    if len(shapes) == 1:
        return shapes[0]
    if len({s[1:] for s in shapes}) != 1:
        return shapes[0]
    return (sum(s[0] for s in shapes), *shapes[0][1:])


def expected_shapes(config):
    """Return dict of our tensor name -> shape for a configuration, without allocating anything."""
    from hybridna_core.model.hybrid import HybridLM

    wanted = {name: tuple(t.shape) for name, t in HybridLM(config, device="meta").state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    return wanted


def _compare_shapes(report, config, headers, sources, shapes, unknown):
    wanted = expected_shapes(config)
    for key, expected in wanted.items():
        if key not in sources:
            report.missing.append({"key": key, "expected": list(expected)})
            continue
        stored = [name for name, _, _ in sources[key]]
        item = {"key": key, "stored": stored, "shape": list(shapes[key])}
        if shapes[key] == expected:
            report.loaded.append({**item, "dtype": headers[stored[0]].dtype})
        else:
            report.mismatched.append({**item, "expected": list(expected)})
    extra = [name for key, parts in sources.items() if key not in wanted for name, _, _ in parts]
    for name in sorted({*unknown, *extra}, key=list(headers).index):
        report.unexpected.append({"key": name, "shape": list(headers[name].shape)})


# --- Tokenizer files -------------------------------------------------------------------------------------------------


def read_tokenizer_files(folder):
    """Read what a published tokenizer's files say: dict token -> id (None if they are silent), context in tokens."""
    folder = Path(folder)
    vocabulary, context = None, None
    table = _small_json(folder / "tokenizer_config.json")
    length = table.get("model_max_length")
    if type(length) in (int, float) and 1 <= length <= 2**31:
        context = int(length)
    characters = table.get("characters")
    if isinstance(characters, list):
        vocabulary = {str(c): len(TOKENS) - 5 + i for i, c in enumerate(characters)}
    decoder = table.get("added_tokens_decoder")
    added = {}
    if isinstance(decoder, dict):
        added = {
            t["content"]: int(i) for i, t in decoder.items() if i.isdigit() and isinstance(t, dict) and "content" in t
        }
    model = _small_json(folder / "tokenizer.json").get("model")
    listed = model.get("vocab") if isinstance(model, dict) else None
    for found in (listed, _small_json(folder / "vocab.json") or None, _vocab_text(folder / "vocab.txt")):
        if isinstance(found, dict):
            vocabulary = {str(k): v for k, v in found.items() if type(v) is int}
            break
    if vocabulary is None and added:
        vocabulary = {}
    return (None if vocabulary is None else {**added, **vocabulary}), context


def _small_json(path):
    try:
        if not path.is_file() or path.stat().st_size > TOKENIZER_BYTES_LIMIT:
            return {}
        table = read_json(path, infinity=True)
    except (OSError, UsageError):
        return {}
    return table if isinstance(table, dict) else {}


def _vocab_text(path):
    try:
        if not path.is_file() or path.stat().st_size > TOKENIZER_BYTES_LIMIT:
            return None
        return {line: i for i, line in enumerate(path.read_text("utf-8").splitlines())}
    except (OSError, UnicodeDecodeError):
        return None


def _order_rows(vocabulary, rows, notes):
    """Return the stored row of each of our ids when the tokenizer's files place the letters elsewhere, else None."""
    letters = {c: (vocabulary or {}).get(c) for c in "ACGTN"}
    bases = [letters[c] for c in "ACGT"]
    if any(type(i) is not int or not 0 <= i < rows for i in bases) or len(set(bases)) < 4:
        notes.assume("token ids", "A 7, C 8, G 9, T 10, N 11", "no tokenizer file gives them")
        return None
    known = {i: vocabulary.get(token) for i, token in enumerate(TOKENS)}
    order, taken = [None] * rows, set(bases)
    for ours in [7, 8, 9, 10, *range(7), 11]:
        stored = known[ours]
        fits = type(stored) is int and 0 <= stored < rows and (ours in (7, 8, 9, 10) or stored not in taken)
        if fits:
            order[ours] = stored
            taken.add(stored)
    free = iter(i for i in range(rows) if i not in taken)
    order = [next(free) if i is None else i for i in order]
    if order == list(range(rows)):
        return None
    notes.given.append({"field": "token ids", "value": f"rows {order} by the tokenizer's files"})
    return order


def _tokenizer_for(rows):
    """Give rows beyond the published twelve ids as prompt tokens, ten to a position; what they mean is unknown."""
    extra = rows - FIRST_PROMPT_ID
    sizes = [10] * (extra // 10) + [extra % 10] * (extra % 10 > 0)
    meaning = "row beyond the published twelve; meaning unknown"
    return Tokenizer(tuple(LabelPosition(f"extra{i + 1}", n, meaning) for i, n in enumerate(sizes)))


# --- Loading ---------------------------------------------------------------------------------------------------------


def stored_dtype(plan):
    """Return the name of the number format that loses nothing of the stored matrices: float32 or bfloat16."""
    large = {e.dtype for e in plan.headers.values() if len(e.shape) == 2}
    return "bfloat16" if large == {"BF16"} else "float32"


def check_report(report, *, allow_partial=False, accept_conflicts=False):
    """Raise ModelError, carrying the report, unless all fits or what does not fit is allowed."""
    faults = [f"{len(getattr(report, k))} {k}" for k in ("missing", "unexpected", "mismatched") if getattr(report, k)]
    error = None
    if faults and not allow_partial:
        first = (report.missing + report.mismatched + report.unexpected)[0]["key"]
        what = f"tensors do not fit: {', '.join(faults)}, first {first}"
        error = ModelError(what, where=report.folder, hint="hybridna models import --allow-partial takes what fits")
    elif report.blocking and not accept_conflicts:
        c = report.blocking[0]
        what = f"config.json has {c['field']} {c['config']}: {c['why']}"
        hint = "hybridna models import settles it by --n-groups or --attention-heads; --accept-conflicts: as reported"
        error = ModelError(what, where=report.folder, hint=hint)
    if error is not None:
        error.report = report
        raise error


def load_published(
    folder, *, device="auto", dtype="auto", allow_nonfinite=False, allow_partial=False, accept_conflicts=False,
    n_groups=None, attention_heads=None, plan=None,
):  # fmt: skip
    """Load a published HybriDNA folder; return a HybridLM with `report` beside what `load_model` sets.

    dtype             auto keeps the stored one
    allow_partial     load what fits; the rest keeps its fresh initial weights
    accept_conflicts  go on where config.json and the shapes contradict each other in what shapes cannot settle
    n_groups, attention_heads  go over config.json
    plan              of `plan_import`, if made already

    Without a plan every assumption and conflict is logged as a warning. Raises ModelError, the report its attribute.
    """
    from hybridna_core.checkpoint import choose_device, choose_dtype, empty_model, fill_model, finish_model, sha256
    from hybridna_core.model.hybrid import HybridLM

    # Whoever made the plan shows its report.
    quiet = plan is not None
    plan = plan or plan_import(folder, n_groups=n_groups, attention_heads=attention_heads)
    report = plan.report
    check_report(report, allow_partial=allow_partial, accept_conflicts=accept_conflicts)
    for line in report.lines():
        if not quiet and line.startswith(("ASSUMED", "CONFLICT", "never run")):
            log.warning("%s: %s", plan.folder.name, line, extra={"kind": "published-" + line.split()[0].lower()})
    number_format = choose_dtype(stored_dtype(plan) if dtype == "auto" else dtype)
    target = choose_device(device)
    whole = report.fits
    model = (
        empty_model(plan.config, number_format) if whole else HybridLM(plan.config, device="cpu", dtype=number_format)
    )
    if whole:
        fill_model(model, published_tensors(plan, allow_nonfinite), target)
    else:
        kept = model.state_dict()
        kept.update((name, t.to(kept[name].dtype)) for name, t in published_tensors(plan, allow_nonfinite))
        model.load_state_dict(kept)
        model.to(target)
    digests = [sha256(plan.folder / name) for name in report.files]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    finish_model(model, plan.tokenizer, plan.folder, digest)
    model.report = report
    return model


def published_tensors(plan, allow_nonfinite=False):
    """Yield (our name, tensor) of what fits, split, joined and re-ordered as planned."""
    import torch

    reordered = (OUR_TOP["embed"], OUR_TOP["head"])
    with open_tensors(plan.headers) as get:
        for item in plan.report.loaded:
            name = item["key"]
            parts = [get(s, None if a is None else (a, b)) for s, a, b in plan.sources[name]]
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
            if plan.rows is not None and name in reordered:
                tensor = tensor[torch.tensor(plan.rows)]
            check_finite(name, tensor, allow_nonfinite, plan.folder)
            yield name, tensor
