"""A pretraining run's configuration.

run file (TOML) -> overrides -> preset filled in -> RunConfig, checked once, at construction
"""

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path

from hybridna_core.config import ModelConfig, build, check_types, preset, require
from hybridna_core.errors import SystemFault, UsageError


@dataclass(frozen=True)
class SpeciesConfig:
    """One genome of the training mixture.

    weight   share of the windows, before normalising; None: from its size, see MixtureConfig
    valid    "all", or region strings (a contig, or contig:beg-end, 1-based inclusive) held out for validation
    exclude  region strings never read at all
    """

    name: str
    fasta: str
    weight: float | None = None
    valid: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        check_types(self)
        require(self.weight is None or self.weight > 0, "weight", self.weight, "above 0")


@dataclass(frozen=True)
class MixtureConfig:
    """How windows are shared among species: by training bases to a power, and capped at a number of passes."""

    power: float = 0.7
    max_passes: float = 15.0
    max_unknown: float = 0.05
    reverse_complement: float = 0.5

    def __post_init__(self):
        check_types(self)
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
    """AdamW with the published settings; schedule after warm-up and weight decay are unpublished, hence ASSUMED."""

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
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "0 or more")
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
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise SystemFault(error.strerror or str(error), where=path) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", where=path) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"not TOML ({error})", where=path) from None
    for text in overrides:
        _override(table, text)
    model = table.get("model")
    if isinstance(model, dict):
        name = model.pop("preset", None)
        if name is not None:
            base = {f.name: getattr(preset(name), f.name) for f in fields(ModelConfig)}
            table["model"] = {**base, **model}
    run = build(RunConfig, table, str(path))
    species = tuple(replace(s, fasta=str(path.parent / s.fasta)) for s in run.species)
    output = str(path.parent / run.output) if run.output else ""
    return replace(run, species=species, output=output)


def _override(table, text):
    """Put one `key.path=value` into a parsed run file; numbers in the path count tables of a list from 0."""
    key, found, value = text.partition("=")
    if not found or not key.strip():
        raise UsageError(f"{text!r} is not KEY=VALUE", where="--set")
    try:
        value = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        value = value.strip()
    *path, last = key.strip().split(".")
    for part in path:
        if isinstance(table, list) and part.isdigit() and int(part) < len(table):
            table = table[int(part)]
        elif isinstance(table, dict):
            table = table.setdefault(part, {})
        else:
            raise UsageError(f"{key!r}: no such place ({part!r})", where="--set")
    if isinstance(table, list):
        raise UsageError(f"{key!r}: name a key of one of the {len(table)} tables, counted from 0", where="--set")
    table[last] = value
