"""What must stay the same from a run's start to its resume, and what may change when it is said so.

run file, genomes -> digests and settings, kept in each snapshot -> compared on resume -> error naming keys, or go on
"""

import dataclasses
import hashlib
import json
import logging

from hybridna_core.checkpoint import version
from hybridna_core.data.inputs import warn
from hybridna_core.errors import DataError, UsageError, nearest

log = logging.getLogger("hybridna")

# Parts of a run file that are fixed.
FIXED = ("model", "species", "stage", "seed", "mixture", "optim")
# What may be overridden: keys of those parts that a run can go on with, its precision and the version of hybridna.
OVERRIDABLE = ("stage", "seed", "mixture", "optim", "precision", "version")
# Ends of keys that change nothing in what comes out, or that something else stands for: `precision`, the genomes.
FREE = (".checkpoint_activations", "optim.precision", ".fasta", "_bed")
# Keys of later releases; a run that leaves them out is the run it was before they came.
LATER = (
    "class_", "valid_bed", "exclude_bed", "by", "classes", "soft_masked_weight", "duplication",
    "precision", "checkpoint_activations", "optimizer", "schedule", "cooldown",
)  # fmt: skip


def take_fingerprint(run, species, precision="fp32", init=""):
    """Return digests of the fixed parts and of the genomes, and the settings themselves, as JSON holds them.

    precision  fp32 or bf16, whichever the device gave
    init       digest of the weights that the run began with, empty when they were drawn
    """
    table = {part: _without_later(getattr(run, part)) for part in FIXED}
    parts = {k: hashlib.sha256(json.dumps(table[k], sort_keys=True).encode()).hexdigest()[:16] for k in FIXED}
    data = hashlib.sha256()
    masked = run.mixture.soft_masked_weight != 1
    for config, one in zip(run.species, species, strict=True):
        data.update(repr((one.name, config.weight, config.class_)).encode())
        data.update(one.fingerprint(masked).encode())
    settings = {}
    for part in (*FIXED, "guard"):
        settings.update(_spell_settings(getattr(run, part), part))
    settings["precision"], settings["version"] = precision, version()
    settings = {key: value for key, value in settings.items() if not key.endswith(FREE)}
    return {**parts, "genomes": data.hexdigest()[:16], "init": init, "settings": settings}


def check_unchanged(before, now, folder, run, species, *, new_data=False, override=()):
    """Compare fingerprints; raise UsageError for a changed configuration, DataError for changed genomes.

    new_data  the genomes, and what is held out or excluded of them, may have changed
    override  keys that may have changed, such as `optim.lr`, or `optim` for all below it
    """
    for key in override:
        _check_override(key)
    if "genomes" in before:
        same_data = before["genomes"] == now["genomes"]
    else:
        # Snapshots of the first release know the genomes by their paths alone.
        same_data = "data" not in before or before["data"] == _early_data(run, species)
    knows_data = "genomes" in before or "data" in before
    changed = _find_changed(before, now)
    if knows_data and (same_data or new_data):
        # Only the paths are others: the genomes were moved.
        changed = {key: words for key, words in changed.items() if key.partition(".")[0] != "species"}
    refused = {k: w for k, w in changed.items() if not any(_covers(key, k) for key in override)}
    if refused:
        words = ", ".join(f"{key}{words}" for key, words in refused.items())
        hint = "undo the change, or give another output folder"
        parts = {key.partition(".")[0] for key in refused}
        if "model" not in parts:
            accept = [f"--override {key}" for key in refused if key.partition(".")[0] != "species"]
            hint += ", or accept it with " + " ".join(accept + ["--new-data"] * ("species" in parts))
        raise UsageError(f"{words} changed since the run began", where=folder, hint=hint)
    for key, words in changed.items():
        log.info("%s%s changed since the run began, as --override allows", key, words)
    if before.get("init", now["init"]) != now["init"]:
        raise UsageError("the weights of init changed since the run began", where=folder,
                         hint="put the old folder back, or give another output folder")  # fmt: skip
    if not same_data and new_data:
        warn("new-data", "the genomes' content changed since the run began; going on with what they are now")
    elif not same_data:
        raise DataError("the genomes' content changed since the run began", where=folder,
                        hint="put the old files back, or give another output folder, or --new-data")  # fmt: skip


def _check_override(key):
    """Raise UsageError for what is no key of a run file, or one that no run can go on with."""
    part = key.partition(".")[0]
    if part in OVERRIDABLE:
        return
    close = nearest(part, OVERRIDABLE)
    hint = "begin again in another folder" if part == "model" else "known are " + ", ".join(OVERRIDABLE)
    hint = "--new-data accepts other genomes" if part == "species" else hint
    hint = f"did you mean {close!r}?" if close and part not in FIXED else hint
    raise UsageError(f"{key!r} cannot be overridden", where="--override", hint=hint)


def _find_changed(before, now):
    """Return {key: words that tell from what to what} of the settings that differ; only parts for early snapshots."""
    if "settings" not in before:
        return {part: "" for part in FIXED if before.get(part) != now[part]}
    old, new = before["settings"], now["settings"]
    keys = [*old, *(key for key in new if key not in old)]
    spelt = {key: [json.dumps(s[key]) if key in s else "the default" for s in (old, new)] for key in keys}
    return {key: f" ({was} before, {is_now} now)" for key, (was, is_now) in spelt.items() if was != is_now}


def _covers(key, changed):
    """Say whether an override is of a changed key, or of the table that it stands in; of early snapshots, the part."""
    return changed == key or changed.startswith(f"{key}.") or ("." not in changed and key.startswith(f"{changed}."))


def _spell_settings(value, place):
    """Flatten a part of a run to {`optim.lr`: value}; what stands at its default is left out."""
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        value = dict(enumerate(value))
    elif dataclasses.is_dataclass(value):
        found = {}
        for field in dataclasses.fields(value):
            here = getattr(value, field.name)
            if here != _default_of(field):
                found[field.metadata.get("key", field.name)] = here
        value = found
    if not isinstance(value, dict):
        return {place: list(value) if isinstance(value, tuple) else value}
    spelt = {}
    for key, inner in value.items():
        spelt.update(_spell_settings(inner, f"{place}.{key}"))
    return spelt


def _default_of(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _without_later(config):
    """Turn a configuration into tables, without keys of later releases that stand at their default."""
    if isinstance(config, tuple):
        return [_without_later(one) for one in config]
    if not dataclasses.is_dataclass(config):
        return config
    table = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in LATER or value != _default_of(field):
            table[field.name] = _without_later(value)
    return table


def _early_data(run, species):
    """Digest the genomes' content as early releases did, which read all of it."""
    data = hashlib.sha256()
    for config, one in zip(run.species, species, strict=True):
        for stretch in [*one.train, *one.valid]:
            place = (one.name, config.weight, stretch.contig, stretch.start, stretch.end)
            data.update(repr(place).encode())
            for at in range(0, len(stretch.ids), 2**24):
                data.update(stretch.ids[at : at + 2**24])
    return data.hexdigest()[:16]
