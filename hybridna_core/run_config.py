"""A pretraining run's configuration.

run file (TOML) -> overrides -> preset filled in -> RunConfig, checked once, at construction
"""

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path

from hybridna_core.config import ModelConfig, build, check_types, preset, require
from hybridna_core.errors import SystemFault, UsageError, nearest

TOML_BYTES_LIMIT = 8 * 2**20


@dataclass(frozen=True)
class SpeciesConfig:
    """One genome of the training mixture.

    weight   share of the windows, before normalising; None: from its size, see MixtureConfig
    valid    ["all"], or region strings (a contig, or contig:beg-end, 1-based inclusive) held out for validation
    exclude  region strings never read at all
    """

    name: str
    fasta: str
    weight: float | None = None
    valid: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        check_types(self)
        require(self.name.strip(), "name", self.name, "a text that is not empty")
        require(self.fasta.strip(), "fasta", self.fasta, "the path of a FASTA file")
        require(self.weight is None or self.weight > 0, "weight", self.weight, "above 0")


@dataclass(frozen=True)
class MixtureConfig:
    """How windows are shared among species: by training bases to a power, and capped at a number of passes.

    max_unknown         largest share of unknown bases in a window
    reverse_complement  share of the windows that are read as their reverse complement
    """

    power: float = 0.7
    max_passes: float = 15.0
    max_unknown: float = 0.05
    reverse_complement: float = 0.5

    def __post_init__(self):
        check_types(self)
        require(self.power >= 0, "power", self.power, "0 or more")
        require(self.max_passes > 0, "max_passes", self.max_passes, "above 0")
        for name in ("max_unknown", "reverse_complement"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")


@dataclass(frozen=True)
class StageConfig:
    """Part of pretraining at one context length (tokens, start token included)."""

    context_length: int
    steps: int
    batch_tokens: int

    def __post_init__(self):
        check_types(self)
        require(self.context_length >= 2, "context_length", self.context_length, "at least 2")
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        rows = f"a multiple of context_length ({self.context_length})"
        require(self.batch_tokens > 0 and self.batch_tokens % self.context_length == 0,
                 "batch_tokens", self.batch_tokens, rows)  # fmt: skip


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with the published settings; schedule after warm-up and weight decay are unpublished, hence ASSUMED.

    final_lr           learning rate at the very end, as a share of lr
    clip               norm that gradients are cut down to
    microbatch_tokens  tokens read at once; a window longer than that is read alone
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    warmup_steps: int = 2000
    weight_decay: float = 0.1
    final_lr: float = 0.1
    clip: float = 1.0
    microbatch_tokens: int = 2048

    def __post_init__(self):
        check_types(self)
        require(self.lr > 0, "lr", self.lr, "above 0")
        require(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        require(self.eps > 0, "eps", self.eps, "above 0")
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.final_lr <= 1, "final_lr", self.final_lr, "between 0 and 1")
        require(self.clip > 0, "clip", self.clip, "above 0")
        require(self.microbatch_tokens >= 1, "microbatch_tokens", self.microbatch_tokens, "at least 1")


@dataclass(frozen=True)
class SaveConfig:
    """How often a snapshot is written (steps), how many are kept, and how often the log gets a line."""

    every: int = 500
    keep: int = 2
    log_every: int = 10

    def __post_init__(self):
        check_types(self)
        require(self.every >= 1, "every", self.every, "at least 1")
        require(self.keep >= 2, "keep", self.keep, "at least 2")
        require(self.log_every >= 1, "log_every", self.log_every, "at least 1")


@dataclass(frozen=True)
class ValidConfig:
    """How often (steps) the held-out bases are measured, on how many windows of each species."""

    every: int = 500
    windows: int = 8

    def __post_init__(self):
        check_types(self)
        require(self.every >= 1, "every", self.every, "at least 1")
        require(self.windows >= 1, "windows", self.windows, "at least 1")


@dataclass(frozen=True)
class RunConfig:
    """One pretraining run, as its TOML file says it. `model` is a preset's name with changed fields beside it."""

    model: ModelConfig
    species: tuple[SpeciesConfig, ...]
    stage: tuple[StageConfig, ...]
    output: str = ""
    name: str = "run"
    seed: int = 0
    mixture: MixtureConfig = MixtureConfig()
    optim: OptimConfig = OptimConfig()
    save: SaveConfig = SaveConfig()
    valid: ValidConfig = ValidConfig()

    def __post_init__(self):
        check_types(self)
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")
        require(len(self.species) >= 1, "species", self.species, "at least one [[species]] table")
        require(len(self.stage) >= 1, "stage", self.stage, "at least one [[stage]] table")
        names = [s.name for s in self.species]
        for name in names:
            require(names.count(name) == 1, "species", name, "named once")
        files = [s.fasta for s in self.species]
        for file in files:
            # What one table holds out the other would train on.
            require(files.count(file) == 1, "species", file, "the FASTA of one table only")
        # Labels come with fine-tuning; a finished model is saved with the tokenizer of bases alone.
        vocabulary = ModelConfig.vocab_size
        require(self.model.vocab_size == vocabulary, "model.vocab_size", self.model.vocab_size, vocabulary)
        for i, stage in enumerate(self.stage):
            limit = self.model.context_length
            require(stage.context_length <= limit, f"stage[{i}].context_length", stage.context_length,
                     f"at most the model's max_position_embeddings ({limit})")  # fmt: skip


def read_run(path, overrides=()):
    """Read a run file; paths in it are relative to its folder.

    overrides  texts such as `stage.0.steps=100`, the value as TOML (bare words are taken as text)
    Raises SystemFault for a missing file and UsageError for what is wrong in it.
    """
    path = Path(path)
    table = parse_toml(path)
    for text in overrides:
        _override(table, text)
    if isinstance(table.get("model"), dict):
        table["model"] = _fill_model(table["model"], f"{path}: model")
    run = build(RunConfig, table, str(path))
    species = tuple(replace(s, fasta=str(path.parent / s.fasta)) for s in run.species)
    output = str(path.parent / run.output) if run.output else ""
    return replace(run, species=species, output=output)


def parse_toml(path):
    """Parse a TOML file strictly: UTF-8, below 8 MiB, no deep nesting; raise SystemFault or UsageError."""
    try:
        size = path.stat().st_size
        if size > TOML_BYTES_LIMIT:
            raise UsageError(f"{size:,} bytes of TOML, at most {TOML_BYTES_LIMIT:,} are read", where=path)
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise SystemFault(error.strerror or str(error), where=path) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", where=path) from None
    except RecursionError:
        raise UsageError("nested too deeply", where=path) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not TOML ({error})", where=path) from None


def _fill_model(model, where):
    """Take what a [model] table leaves out from the preset that it names."""
    known = [f.name for f in fields(ModelConfig)]
    for key in model:
        if key != "preset" and key not in known and nearest(key, [*known, "preset"]) == "preset":
            raise UsageError(f"unknown key {key!r}", where=where, hint="did you mean 'preset'?")
    if "preset" not in model:
        return model
    name = model["preset"]
    if not isinstance(name, str):
        raise UsageError(f"is {name!r}, must be the name of a preset", where=f"{where}.preset")
    try:
        base = preset(name)
    except UsageError as error:
        raise UsageError(error.what, where=f"{where}.preset", hint=error.hint) from None
    return {**{name: getattr(base, name) for name in known}, **{k: v for k, v in model.items() if k != "preset"}}


def _override(table, text):
    """Put one `key.path=value` into a parsed run file; numbers in the path count tables of a list from 0."""
    key, found, value = text.partition("=")
    *path, last = key.strip().split(".")
    if not found or not all([*path, last]):
        raise UsageError(f"{text!r} is not KEY=VALUE", where="--set")
    place = table
    for part in path:
        index = _index(place, part, key)
        place = place[index] if isinstance(place, list) else place.setdefault(index, {})
    place[_index(place, last, key)] = _parse_value(value)


def _index(place, part, key):
    """Return the key or number under which one part of a --set path stands in a table or list."""
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        raise UsageError(f"{key.strip()}: there is no table that could hold {part!r}", where="--set")
    if not (part.isascii() and part.isdigit() and int(part) < len(place)):
        hint = f"there are {len(place)}, counted from 0"
        raise UsageError(f"{key.strip()}: {part!r} is not the number of a table", where="--set", hint=hint)
    return int(part)


def _parse_value(text):
    """Read the value of an override as TOML; what is not TOML is text."""
    try:
        parsed = tomllib.loads(f"v = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text.strip()
    return parsed["v"] if len(parsed) == 1 else text.strip()
