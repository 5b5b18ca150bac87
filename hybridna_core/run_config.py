"""A pretraining run's configuration.

run file (TOML) -> overrides -> preset filled in -> RunConfig, checked once, at construction
"""

import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from hybridna_core.config import ModelConfig, build, check_types, preset, require
from hybridna_core.errors import SystemFault, UsageError, nearest

TOML_BYTES_LIMIT = 8 * 2**20
TEMPLATES = Path(__file__).parent / "presets"
MIXTURES = ("size", "class", "weights")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class SpeciesConfig:
    """One genome of the training mixture.

    weight       share of the windows, before normalising; None: from its size, see MixtureConfig
    valid        ["all"], or region strings (a contig, or contig:beg-end, 1-based inclusive) held out for validation
    exclude      region strings never read at all
    class_       `class` in the file: the group whose share of the windows it takes part in, see MixtureConfig
    valid_bed    BED file of regions held out, beside `valid`
    exclude_bed  BED file of regions never read, beside `exclude`
    """

    name: str
    fasta: str
    weight: float | None = None
    valid: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    class_: str | None = field(default=None, metadata={"key": "class"})
    valid_bed: str | None = None
    exclude_bed: str | None = None

    def __post_init__(self):
        check_types(self)
        require(self.name.strip(), "name", self.name, "a text that is not empty")
        require(self.fasta.strip(), "fasta", self.fasta, "the path of a FASTA file")
        require(self.weight is None or self.weight > 0, "weight", self.weight, "above 0")
        require(self.class_ is None or self.class_.strip(), "class", self.class_, "a text that is not empty")
        for name in ("valid_bed", "exclude_bed"):
            value = getattr(self, name)
            require(value is None or value.strip(), name, value, "the path of a BED file")
        require(
            not (self.valid == ("all",) and self.valid_bed),
            "valid_bed",
            self.valid_bed,
            'left out with valid = ["all"]',
        )


@dataclass(frozen=True)
class MixtureConfig:
    """How windows are shared among species, each read at most a number of passes.

    by                  size: by training bases to a power, where a species' weight does not say otherwise; class: by
                        `classes` among classes, inside each as by size; weights: by the species' weights alone
    classes             share of each class, before normalising
    max_unknown         largest share of unknown bases in a window
    reverse_complement  share of the windows that are read as their reverse complement
    soft_masked_weight  weight of lower-case bases in the loss; 0 skips them
    """

    power: float = 0.7
    max_passes: float = 15.0
    max_unknown: float = 0.05
    reverse_complement: float = 0.5
    by: str = "size"
    classes: dict[str, float] = field(default_factory=dict)
    soft_masked_weight: float = 1.0

    def __post_init__(self):
        check_types(self)
        require(self.power >= 0, "power", self.power, "0 or more")
        require(self.max_passes > 0, "max_passes", self.max_passes, "above 0")
        for name in ("max_unknown", "reverse_complement", "soft_masked_weight"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        require(self.by in MIXTURES, "by", self.by, f"one of {', '.join(MIXTURES)}")
        for name, share in self.classes.items():
            is_number = type(share) in (int, float) and 0 < share < float("inf")
            require(is_number, f"classes.{name}", share, "a number above 0")
        require((self.by == "class") == bool(self.classes), "classes", self.classes,
                "a share for each class, and given only with by = \"class\"")  # fmt: skip


@dataclass(frozen=True)
class StageConfig:
    """Part of pretraining at one context length (tokens, start token included).

    duplication  share of the windows whose end becomes a tandem array, see `data.duplication`
    """

    context_length: int
    steps: int
    batch_tokens: int
    duplication: float = 0.0

    def __post_init__(self):
        check_types(self)
        require(self.context_length >= 2, "context_length", self.context_length, "at least 2")
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        rows = f"a multiple of context_length ({self.context_length})"
        require(self.batch_tokens > 0 and self.batch_tokens % self.context_length == 0,
                 "batch_tokens", self.batch_tokens, rows)  # fmt: skip
        require(0 <= self.duplication <= 1, "duplication", self.duplication, "between 0 and 1")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with the published settings; schedule after warm-up and weight decay are unpublished, hence ASSUMED.

    optimizer          adamw, or muon: Muon for the projection matrices, AdamW for the rest
    schedule           cosine, or constant with a straight way down over the last share `cooldown` of all steps
    final_lr           learning rate at the very end, as a share of lr
    clip               norm that gradients are cut down to
    microbatch_tokens  tokens that a rank reads at once; a window longer than that is read alone
    precision          fp32, bf16 (matrix products in bfloat16, weights and sums in float32), or auto: bf16 on a GPU
    checkpoint_activations  compute each block again on the way back rather than keep what it computed
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    schedule: str = "cosine"
    cooldown: float = 0.2
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    warmup_steps: int = 2000
    weight_decay: float = 0.1
    final_lr: float = 0.1
    clip: float = 1.0
    microbatch_tokens: int = 2048
    precision: str = "auto"
    checkpoint_activations: bool = False

    def __post_init__(self):
        check_types(self)
        require(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, f"one of {', '.join(OPTIMIZERS)}")
        require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        require(0 <= self.cooldown <= 1, "cooldown", self.cooldown, "between 0 and 1")
        require(self.precision in PRECISIONS, "precision", self.precision, f"one of {', '.join(PRECISIONS)}")
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
class GuardConfig:
    """When a step is skipped for its loss (bits per base), and when the run stops over it.

    sigma   standard deviations above the mean of the last steps that make a spike; 0: no step is ever skipped
    window  steps that mean and deviation are taken of; none is judged before there are so many in its stage
    floor   a rise of fewer bits than this is no spike, however quiet the steps before were
    stop    steps skipped in a row that end the run
    """

    sigma: float = 6.0
    window: int = 128
    floor: float = 0.05
    stop: int = 10

    def __post_init__(self):
        check_types(self)
        require(self.sigma >= 0, "sigma", self.sigma, "0 or more")
        require(self.window >= 2, "window", self.window, "at least 2")
        require(self.floor >= 0, "floor", self.floor, "0 or more")
        require(self.stop >= 1, "stop", self.stop, "at least 1")


@dataclass(frozen=True)
class LogConfig:
    """Where the log goes beside log.jsonl.

    tensorboard  event files in the run's folder
    wandb        project of Weights & Biases; empty: none
    plot         draw the curves when the run ends
    """

    tensorboard: bool = False
    wandb: str = ""
    plot: bool = True

    def __post_init__(self):
        check_types(self)


@dataclass(frozen=True)
class RunConfig:
    """One pretraining run, as its TOML file says it. `model` is a preset's name with changed fields beside it.

    init  model folder, or the name of a bundled model, whose weights the run begins with; empty: drawn
    """

    model: ModelConfig
    species: tuple[SpeciesConfig, ...]
    stage: tuple[StageConfig, ...]
    output: str = ""
    name: str = "run"
    seed: int = 0
    init: str = ""
    mixture: MixtureConfig = MixtureConfig()
    optim: OptimConfig = OptimConfig()
    save: SaveConfig = SaveConfig()
    valid: ValidConfig = ValidConfig()
    guard: GuardConfig = GuardConfig()
    log: LogConfig = LogConfig()

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
        self._check_mixture()
        # Labels come with fine-tuning; a finished model is saved with the tokenizer of bases alone.
        vocabulary = ModelConfig.vocab_size
        require(self.model.vocab_size == vocabulary, "model.vocab_size", self.model.vocab_size, vocabulary)
        for i, stage in enumerate(self.stage):
            limit = self.model.context_length
            require(stage.context_length <= limit, f"stage[{i}].context_length", stage.context_length,
                     f"at most the model's max_position_embeddings ({limit})")  # fmt: skip

    def _check_mixture(self):
        """Raise UsageError unless every species has what the mixture goes by, and every class a species."""
        classes = self.mixture.classes
        for i, one in enumerate(self.species):
            if self.mixture.by == "weights":
                require(
                    one.weight is not None, f"species[{i}].weight", one.weight, 'given, with mixture.by = "weights"'
                )
            if self.mixture.by == "class":
                allowed = f"one of mixture.classes ({', '.join(classes)})"
                require(one.class_ in classes, f"species[{i}].class", one.class_, allowed)
        for name in classes:
            present = any(one.class_ == name for one in self.species)
            require(present, f"mixture.classes.{name}", classes[name], "the share of a class that some species has")


def read_template(name):
    """Return the text of the complete run file that comes with a preset; raise UsageError naming the nearest one."""
    preset(name)
    return (TEMPLATES / f"{name}.toml").read_text(encoding="utf-8")


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
    species = tuple(_resolve(s, path.parent) for s in run.species)
    output = str(path.parent / run.output) if run.output else ""
    # A bare word may be the name of a bundled model.
    init = str(path.parent / run.init) if (path.parent / run.init).is_dir() and run.init else run.init
    return replace(run, species=species, output=output, init=init)


def _resolve(species, folder):
    """Make the paths of a species relative to no folder but the one given."""
    paths = {name: getattr(species, name) for name in ("fasta", "valid_bed", "exclude_bed")}
    return replace(species, **{name: str(folder / path) for name, path in paths.items() if path is not None})


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
