"""The network's configuration and its presets, and how every configuration is built and checked.

JSON -> strict parse (no duplicate keys, no NaN) -> frozen dataclass -> checked once, at construction
"""

import json
import types
import typing
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path

from hybridna_core.errors import UsageError, nearest

FORMAT_VERSION = 1
JSON_BYTES_LIMIT = 8 * 2**20


@dataclass(frozen=True)
class ModelConfig:
    """The network's structure; field names are those of the published folders' `config.json`."""

    hidden_size: int
    intermediate_size: int
    layer_types: tuple[str, ...]
    num_attention_heads: int
    num_key_value_heads: int
    mamba_n_heads: int
    mamba_d_state: int
    mamba_d_head: int = 64
    mamba_n_groups: int = 1
    mamba_d_conv: int = 4
    vocab_size: int = 12
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 2
    eos_token_id: int | None = 1
    pad_token_id: int | None = 4
    # None: dt is not clamped, as in the published kernels.
    time_step_limit: tuple[float, float] | None = None
    hybridna_format: int = FORMAT_VERSION

    def __post_init__(self):
        check_types(self)
        for name in (
            "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "mamba_n_heads",
            "mamba_d_state", "mamba_d_head", "mamba_n_groups", "mamba_d_conv", "max_position_embeddings",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        require(self.vocab_size >= 12, "vocab_size", self.vocab_size, "12 or more")
        require(0 < self.rms_norm_eps < 1, "rms_norm_eps", self.rms_norm_eps, "between 0 and 1")
        require(len(self.layer_types) >= 1, "layer_types", self.layer_types, "one entry per layer")
        for i, kind in enumerate(self.layer_types):
            require(kind in ("mamba", "attention"), f"layer_types[{i}]", kind, "'mamba' or 'attention'")
        divides = [
            ("hidden_size", "num_attention_heads"),
            ("num_attention_heads", "num_key_value_heads"),
            ("mamba_n_heads", "mamba_n_groups"),
        ]
        for whole, part in divides:
            allowed = f"a multiple of {part} ({getattr(self, part)})"
            require(getattr(self, whole) % getattr(self, part) == 0, whole, getattr(self, whole), allowed)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            require(value is None or 0 <= value < self.vocab_size, name, value, f"null or 0 to {self.vocab_size - 1}")
        if self.time_step_limit is not None:
            low, high = self.time_step_limit
            require(0 <= low < high, "time_step_limit", self.time_step_limit, "two numbers, 0 <= low < high")

    @property
    def num_hidden_layers(self):
        return len(self.layer_types)

    @property
    def head_dim(self):
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def mamba_width(self):
        """Channels of the Mamba-2 mixer's x and z (heads times head_dim)."""
        return self.mamba_n_heads * self.mamba_d_head

    @property
    def conv_width(self):
        """Channels that the causal convolution covers: x, B and C."""
        return self.mamba_width + 2 * self.mamba_n_groups * self.mamba_d_state

    @property
    def context_length(self):
        """Tokens per window, specials included."""
        return self.max_position_embeddings

    @property
    def bases_at_once(self):
        """Bases that one window holds beside the start token."""
        return self.context_length - (self.bos_token_id is not None)

    def to_dict(self):
        return {"model_type": "hybridna", **asdict(self), "num_hidden_layers": self.num_hidden_layers}


def layer_pattern(layers, period=8, offset=4):
    """Return the layer types with attention where `i % period == offset`, Mamba-2 elsewhere."""
    return tuple("attention" if i % period == offset else "mamba" for i in range(layers))


def build(cls, table, where):
    """Build a config dataclass from a parsed table; unknown, missing and ill-typed keys raise UsageError.

    where  the file, or the key path inside it, that messages name
    """
    if not isinstance(table, dict):
        raise UsageError(f"must be a table, not {type(table).__name__}", where=where)
    # A key that is a word of Python has a field of another name.
    known = {f.metadata.get("key", f.name): f for f in fields(cls)}
    for key in table:
        if key not in known:
            close = nearest(key, known)
            hint = f"did you mean {close!r}?" if close else f"known keys: {', '.join(sorted(known))}"
            raise UsageError(f"unknown key {key!r}", where=where, hint=hint)
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if name not in table]
    if missing:
        raise UsageError(f"key {missing[0]!r} is missing", where=where)
    hints = typing.get_type_hints(cls)
    values = {known[k].name: _convert(v, hints[known[k].name], f"{where}: {k}") for k, v in table.items()}
    try:
        return cls(**values)
    except UsageError as error:
        raise UsageError(error.what, where=f"{where}: {error.where}", hint=error.hint) from None


def _convert(value, hint, where):
    """Turn parsed lists into tuples and tables into nested dataclasses; other values pass as they are."""
    if is_dataclass(hint):
        return build(hint, value, where)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [h for h in typing.get_args(hint) if h is not type(None)]
        return value if value is None else _convert(value, inner[0], where)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        item = typing.get_args(hint)[0]
        return tuple(_convert(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    return value


def check_types(config):
    """Raise UsageError for the first field of a dataclass whose value has not its annotated type."""
    hints = typing.get_type_hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if not _fits(value, hints[f.name]):
            raise UsageError(f"is {value!r}, must be {_spell(hints[f.name])}", where=f.name)


def _fits(value, hint):
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    if origin is tuple:
        inner = typing.get_args(hint)
        if inner[-1] is not Ellipsis and isinstance(value, tuple) and len(value) != len(inner):
            return False
        return isinstance(value, tuple) and all(_fits(v, inner[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return type(value) in (int, float) and value == value and abs(value) != float("inf")
    if hint in (int, bool, str):
        return type(value) is hint
    return isinstance(value, hint)


def _spell(hint):
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("null" if h is type(None) else _spell(h) for h in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        length = "" if inner[-1] is Ellipsis else f" of {len(inner)}"
        return f"a list{length} ({_spell(inner[0])} each)"
    return names.get(hint, "a table")


def require(condition, name, value, allowed):
    """Raise UsageError for the field `name` of a config unless the condition holds."""
    if not condition:
        raise UsageError(f"is {value!r}, must be {allowed}", where=name)


def read_json(path, infinity=False, limit=JSON_BYTES_LIMIT):
    """Parse a JSON file strictly: UTF-8, below 8 MiB, no duplicate key, no NaN, no deep nesting; else UsageError.

    infinity  accept Infinity, which others write into published folders
    limit     bytes that are read at most; None: any, of a file that is known to be ours
    """
    path = Path(path)
    size = path.stat().st_size
    if limit is not None and size > limit:
        raise UsageError(f"{size:,} bytes of JSON, at most {limit:,} are read", where=path)

    def pairs(items):
        table = {}
        for key, value in items:
            if key in table:
                raise UsageError(f"key {key!r} stands twice", where=path)
            table[key] = value
        return table

    def constant(text):
        if infinity and text in ("Infinity", "-Infinity"):
            return float(text)
        raise UsageError(f"{text} is not a number in JSON", where=path)

    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise UsageError("nested too deeply", where=path) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", where=path) from None
    except json.JSONDecodeError as error:
        raise UsageError(f"not JSON ({error.msg})", where=f"{path}:{error.lineno}") from None
    except ValueError:
        # Python refuses numbers of thousands of digits.
        raise UsageError("holds a number that is too long", where=path) from None


def read_model_config(path):
    """Read the `config.json` of one of our own model folders into a ModelConfig.

    Raises UsageError for wrong keys or values, DataError never; the caller handles versions and code keys.
    """
    table = read_json(path)
    if not isinstance(table, dict):
        raise UsageError("must hold one table", where=path)
    layers = table.pop("num_hidden_layers", None)
    table.pop("model_type", None)
    config = build(ModelConfig, table, str(path))
    if layers is not None and layers != config.num_hidden_layers:
        what = f"is {layers!r}, but layer_types has {config.num_hidden_layers} entries"
        raise UsageError(what, where=f"{path}: num_hidden_layers")
    return config


PRESETS = {
    "300m": ModelConfig(1024, 2048, layer_pattern(24), 32, 8, mamba_n_heads=32, mamba_d_state=128),
    "3b": ModelConfig(4096, 8192, layer_pattern(16), 32, 8, mamba_n_heads=128, mamba_d_state=64),
    "7b": ModelConfig(4096, 8192, layer_pattern(32), 32, 8, mamba_n_heads=128, mamba_d_state=128),
    "tiny": ModelConfig(128, 256, layer_pattern(8), 4, 1, mamba_n_heads=4, mamba_d_state=64),
}


def preset(name):
    """Return the ModelConfig of a preset; raise UsageError naming the nearest one."""
    if name not in PRESETS:
        close = nearest(name, PRESETS)
        hint = f"did you mean {close!r}?" if close else f"known presets: {', '.join(PRESETS)}"
        raise UsageError(f"no preset called {name!r}", where="model.preset", hint=hint)
    return PRESETS[name]
