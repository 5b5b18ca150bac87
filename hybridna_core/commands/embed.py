"""Embed regions of a genome, sequences, or both alleles of variants: one vector each, or one per base.

BED, FASTA or VCF -> Targets -> bases -> Embedder (rows of tokens -> hidden -> pooled) -> spool -> the output's format
"""

import contextlib
import hashlib
import os
import re
import time
from collections import Counter
from typing import NamedTuple

import numpy as np

from hybridna_core.checkpoint import choose_device, choose_dtype, load_model, version
from hybridna_core.data.genome import read_renames
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.partial import finish_renaming, hold_outputs
from hybridna_core.data.shards import divide, parse_shard, spell_part
from hybridna_core.data.sources import open_source
from hybridna_core.data.tables import (
    Layout,
    finish_table,
    keys_beside,
    spell_row,
    spell_tsv_header,
    spell_tsv_row,
    table_suffix,
)
from hybridna_core.data.targets import judge_targets, name_kind
from hybridna_core.data.writers import check_output, is_in_place, is_stdout
from hybridna_core.errors import DataError, GuardError, OutOfMemory, SystemFault, UsageError, nearest
from hybridna_core.memory import free_bytes, spell_bytes
from hybridna_core.model.embedding import LONG, Embedder, count_tokens
from hybridna_core.model.heads import check_echo, longest_input, parse_layers, parse_pool, row_length
from hybridna_core.model.hybrid import count_parameters
from hybridna_core.model.state import bytes_per_row
from hybridna_core.scoring import is_name, name_model, read_config, seconds_per_token
from hybridna_core.tokenizer import encode

DEFAULT_WINDOW = 1024
# Bases of the longest sequence that is streamed; the keys of attention grow with it, and its time with the square.
STREAM_LIMIT = 2**20
FLOATS = ("float32", "float16")


class Summary(NamedTuple):
    """What a run did: `regions` is `embedded` plus the reasons among `statuses`.

    regions   of a VCF alleles, two per ALT
    statuses  status -> regions
    unknown   bases read as N in the embedded regions
    rows      of the output; more than regions for per-base
    hidden    numbers per vector
    layers    depths that were pooled
    windows, tokens, memory, time  of a dry run: passes over the model and what they read, estimates spelt out
    """

    regions: int
    embedded: int
    statuses: dict
    unknown: int
    rows: int
    hidden: int
    pool: str
    layers: str
    echo: str | None
    model: str
    output: str | None
    seconds: float
    windows: int | None = None
    tokens: int | None = None
    memory: str | None = None
    time: str | None = None

    def to_dict(self):
        return {name: value for name, value in self._asdict().items() if value is not None}


class Settings(NamedTuple):
    """What decides the numbers, checked."""

    pool: object
    layers: tuple
    echo: str | None
    average_strands: bool
    long: str
    window: int
    longest: int | None
    dtype: str
    precision: str


def embed(
    regions, fasta_ref=None, output="-", *, model="base", pool="mean", layer=-1, echo=None, average_strands=False,
    long="mark", window=None, input_type=None, max_n_share=0.05, clip=False, rename_chrs=None, numbers="float32",
    batch_size="auto", shard=None, strict=False, force=False, device="auto", dtype="float32", dry_run=False,
    rebuild_index=False, other_letters=None, rna=False, allow_missing_eof=False, allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Write the vectors of regions, sequences or alleles, in input order, with their keys; return a Summary.

    regions          BED, FASTA, VCF or BCF; `-` for standard input. BED strand `-`: the reverse complement is read
    fasta_ref        the genome, plain or bgzip; not for FASTA input
    output           .npz, .npy (keys in a .tsv beside it), .parquet, .h5, .h5ad or .tsv; `-`: TSV on stdout
    model            name, folder, or a loaded model
    pool             mean over the tokens (never the start token), last, max, center:N, or per-base: one row per base
    layer            what is pooled, one or several: 0 the embedding, i what leaves block i, -1 the final norm
    echo             read twice in one pass and pool the second reading: `same` again, or `rc`, its reverse complement
    average_strands  the mean of the vectors of both strands
    long             regions that the model cannot read at once: mark them too_long, read `windows`, or `stream`
    window           of a VCF: bases read of each allele, 1,024 or what the model reads at once when None
    input_type       bed, fasta or vcf, else told by content; a stream is BED
    max_n_share      regions with a greater share of unknown bases are marked too_many_n
    clip             cut regions at contig ends instead of marking them out_of_range
    rename_chrs      table of contig names, old and new, for regions named otherwise than the genome
    numbers          float32 or float16, of the output
    batch_size       rows per pass; no result depends on it
    shard            `i/n`: part i of n of the records alone, i from 1
    strict           raise DataError at the end if any region has no vector
    dry_run          judge all regions, estimate memory and time, load no model and write nothing

    Marked regions keep their row: the vector is empty in TSV and NaN elsewhere. A vector depends on the bases, the
    model and the options only. Raises HybriDNAError kinds; on an error nothing is at `output`, but for `strict`. Unless
    input or output is a stream, what was done by a kill is kept beside it, and the same call goes on.
    """
    start = time.monotonic()
    shard, inputs = parse_shard(shard), (regions, fasta_ref, rename_chrs)
    if not dry_run:
        finish_renaming(output)
        check_output(output, inputs=inputs, force=force)
    suffix = table_suffix(output)
    if suffix == ".npy" and not dry_run:
        check_output(keys_beside(output), inputs=inputs, force=force)
    kind = name_kind(check_input(regions), input_type)
    if shard is not None and not os.path.isfile(regions):
        what = "the parts of an input are found by reading it first, and a stream is gone then"
        raise UsageError(what, where="--shard", hint="write the input to a file")
    if shard is not None and (is_stdout(output) or is_in_place(os.fspath(output))):
        raise UsageError("a part must be a file", where="--shard", hint="give -o FILE")
    if kind != "fasta" and fasta_ref is None:
        raise UsageError(f"a {kind.upper()} file needs its genome", hint="give -f FASTA, or set HYBRIDNA_FASTA")
    config = read_config(model)
    settings = check_options(config, pool, layer, echo, average_strands, long, window, max_n_share, numbers, dtype)
    renames = read_renames(rename_chrs) if rename_chrs is not None else {}
    opening = (rebuild_index, other_letters, rna, allow_missing_eof)
    with (
        contextlib.nullcontext() if dry_run else hold_outputs((output,), force) as outputs,
        open_source(kind, regions, fasta_ref, opening, settings.window, renames, clip) as source,
    ):
        # Every record is checked before the model loads, where the file can be read twice.
        survey = source.survey() if source.is_file else None
        mine = divide(shard, source.works) if shard is not None else None
        total = None if survey is None else survey.records if mine is None else mine.records
        tally = Tally()
        if survey is not None:
            check_memory(config, settings, survey.longest, device, dtype)
        if dry_run:
            targets = source.targets(0 if mine is None else mine.first, None if mine is None else mine.records)
            memory, seconds, plan = estimate(config, settings, targets, tally, max_n_share, device, dtype)
            return summarise(tally, config, settings, name_model(model), None, start)._replace(
                windows=plan.windows, tokens=plan.tokens, memory=f"about {spell_bytes(memory)}",
                time=f"about {seconds:,.0f} s",
            )  # fmt: skip
        if is_name(model):
            model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
        run = take_fingerprint(source, model, settings, (kind, suffix, renames, clip, max_n_share))
        layout = lay_out(source.columns, model, settings)
        before, _ = outputs.begin(None if run is None else {**run, **tell_here(source, shard)})
        tally.restore(before)
        is_stream = outputs.folders[0] is None
        if total is not None and not is_stream:
            reserve(outputs, layout, survey, settings, mine, tally)
        handle = outputs.handles[0]
        spell = spell_tsv_row if is_stream else spell_row
        if is_stream:
            handle.write(spell_tsv_header(layout))
        first = (0 if mine is None else mine.first) + tally.records
        targets = source.targets(first, None if mine is None else mine.records - tally.records)
        embedder = Embedder(
            model, settings.pool, echo, settings.layers, average_strands, batch_size,
            "windows" if long == "windows" else "stream",
        )  # fmt: skip
        for judged, vectors in embedder.embed(judge_targets(targets, settings.longest, max_n_share)):
            for cells, row in rows_of(judged, vectors, settings):
                handle.write(spell(layout, cells, row))
                tally.rows += 1
            tally.add(judged)
            if judged.target.is_last:
                if outputs.is_due():
                    source.genome.check_unchanged()
                    outputs.save([b""], tally.to_state())
                if progress is not None:
                    progress(tally.records, total)
        source.check_end(tally)
        source.genome.check_unchanged()
        if shard is not None:
            layout.meta["part"] = spell_part(shard, "embed", tally.rows, run)
        finish(outputs, layout, suffix, tally)
    summary = summarise(tally, config, settings, model.name, str(output), start)
    if strict and summary.embedded < summary.regions:
        reasons = ", ".join(f"{status} {count:,}" for status, count in summary.statuses.items() if status != "ok")
        what = f"{summary.regions - summary.embedded:,} of {summary.regions:,} regions have no vector ({reasons})"
        raise DataError(what, where=regions, hint="the output is complete; leave out --strict to accept it")
    return summary


# Checks before any work


def check_options(config, pool, layer, echo, average_strands, long, window, max_n_share, numbers, dtype):
    """Return the Settings; raise UsageError for what is out of range."""
    pool, layers = parse_pool(pool), parse_layers(layer, config)
    check_echo(echo)
    for option, value, known in (("--long", long, LONG), ("--numbers", numbers, FLOATS)):
        if value not in known:
            close = nearest(value, known)
            hint = f"did you mean {close}?" if close else None
            raise UsageError(f"is {value!r}, must be {', '.join(known)}", where=option, hint=hint)
    if not 0 <= max_n_share <= 1:
        raise UsageError(f"is {max_n_share}, must be 0 to 1", where="--max-n-share")
    room = longest_input(config, echo)
    if window is None:
        window = min(DEFAULT_WINDOW, room)
    elif not 2 <= window <= room:
        what = f"is {window:,}, must be 2 to {room:,}"
        raise UsageError(what, where="--window", hint="that is what the model reads at once")
    longest = {"mark": room, "windows": None, "stream": max(room, STREAM_LIMIT // (1 if echo is None else 2))}[long]
    return Settings(pool, layers, echo, average_strands, long, window, longest, numbers, dtype)


def check_memory(config, settings, longest, device, dtype):
    """Raise OutOfMemory when streaming the longest region needs more memory than is free, before the model loads."""
    room = longest_input(config, settings.echo)
    if settings.long != "stream" or longest <= room:
        return
    longest = min(longest, settings.longest)
    needed = state_bytes(config, settings, longest, dtype)
    free = free_bytes(choose_device(device))
    warn("beyond-context", f"regions of up to {longest:,} bases are streamed; the context holds {room:,}")
    if free is not None and needed > free:
        what = f"streaming {longest:,} bases needs about {spell_bytes(needed)}, {spell_bytes(free)} are free"
        raise OutOfMemory(what, where="--long stream", hint="attention's keys grow with the region; --long windows")


def state_bytes(config, settings, bases, dtype):
    """Bytes that one row of so many bases holds: the state, twice while keys grow, and per-base vectors."""
    item = 4 if dtype == "float32" else 2
    held = 2 * bytes_per_row(config, row_length(config, bases, settings.echo), item)
    per_base = settings.pool.kind == "per-base" or settings.long == "windows"
    return held + (4 * bases * len(settings.layers) * config.hidden_size if per_base else 0)


# What a run is, and how far it is


class Tally:
    """Counts what became of the regions."""

    def __init__(self):
        self.records = self.rows = self.unknown = 0
        self.statuses = Counter()

    def add(self, judged):
        self.records += judged.target.is_last
        self.statuses[judged.status] += 1
        self.unknown += judged.unknown if judged.status == "ok" else 0

    def to_state(self):
        """Return the counts as what JSON can hold."""
        return {**vars(self), "statuses": dict(self.statuses)}

    def restore(self, state):
        """Take over the counts of an earlier run, or of none."""
        if state is not None:
            vars(self).update(state, statuses=Counter(state["statuses"]))


def summarise(tally, config, settings, model, output, start):
    return Summary(
        tally.statuses.total(), tally.statuses["ok"], dict(tally.statuses), tally.unknown, tally.rows,
        config.hidden_size, str(settings.pool), ",".join(map(str, settings.layers)), settings.echo, model, output,
        time.monotonic() - start,
    )  # fmt: skip


def take_fingerprint(source, model, settings, rest):
    """Return what must stay the same for a run to be gone on with, by names in words; None for a stream."""
    if not source.is_file:
        return None
    with open(source.path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    genome = hashlib.sha256(repr(list(source.genome.contigs.items())).encode()).hexdigest()
    return {
        "the version": f"hybridna {version()}", "the input": digest, "the genome": genome,
        "the model": f"{model.digest} {model.dtype} {model.device.type}", "the options": repr((settings, rest)),
    }  # fmt: skip


def tell_here(source, shard):
    """Return what else must stay the same on this machine: the file of the genome, and which part is done."""
    there = os.stat(source.genome.path)
    return {"the genome's file": f"{there.st_size} {there.st_mtime_ns}", "the shard": str(shard)}


def lay_out(columns, model, settings):
    """Return the Layout of the output, with what a reader of the vectors must know."""
    config = model.config
    layers = settings.layers
    arrays = ("embedding",) if len(layers) == 1 else tuple(f"layer_{layer}" for layer in layers)
    meta = {
        "model": model.name, "sha256": model.digest, "pool": str(settings.pool), "layers": list(layers),
        "echo": settings.echo, "average_strands": settings.average_strands, "long": settings.long,
        "window": settings.window if "allele" in columns else None, "dtype": str(model.dtype)[6:],
        "tokenizer": model.tokenizer.version, "context_length": config.context_length,
    }  # fmt: skip
    columns = {**columns, "status": str, "unknown": int}
    if settings.pool.kind == "per-base":
        columns["base"] = int
    return Layout(columns, arrays, config.hidden_size, np.dtype(settings.dtype), meta)


def reserve(outputs, layout, survey, settings, mine, tally):
    """Take the disk that the rows will need, so that a disk too small is told of before the first is computed."""
    share = 1 if mine is None else mine.records / max(survey.records, 1)
    rows = survey.bases if settings.pool.kind == "per-base" else survey.rows
    needed = int(rows * share * layout.row_bytes) - tally.rows * layout.row_bytes
    free = os.statvfs(outputs.folders[0])
    free = free.f_bavail * free.f_frsize
    # Rows are kept as they come, then laid out as the format wants them.
    if 2 * needed > free:
        what = f"{spell_bytes(2 * needed)} are needed, {spell_bytes(free)} are free"
        raise SystemFault(what, where=outputs.paths[0], hint="free some space; --numbers float16 needs half")
    outputs.reserve(needed)


def rows_of(judged, vectors, settings):
    """Yield (cells, vectors (layers, hidden) or None) of each row that a region gives."""
    cells = (*judged.target.cells, judged.status, judged.unknown)
    if vectors is not None:
        vectors = round_numbers(vectors, settings.dtype, judged.target.where)
    if settings.pool.kind != "per-base":
        yield cells, vectors
    elif vectors is None:
        yield (*cells, -1), None
    else:
        for base in range(vectors.shape[1]):
            yield (*cells, base), vectors[:, base]


def round_numbers(vectors, dtype, where):
    """Return the numbers in the precision of the output; raise GuardError for those that it cannot hold."""
    if dtype == "float32":
        return vectors
    with np.errstate(over="ignore"):
        rounded = vectors.astype(dtype)
    if not np.isfinite(rounded).all():
        what = f"{np.abs(vectors).max():.6g} is too large for {dtype}"
        raise GuardError(what, where=where, hint="leave out --numbers float16, or take the last --layer")
    return rounded


def finish(outputs, layout, suffix, tally):
    """Lay out the rows as the output's format and put it in place; a stream has them already."""
    if outputs.folders[0] is None:
        outputs.finish()
        return
    # What was reserved and not needed.
    outputs.handles[0].truncate()
    if outputs.fingerprint is not None:
        outputs.save([b""], tally.to_state())
    finish_table(outputs, layout, suffix)


# The dry run


class Plan(NamedTuple):
    """Passes over the model, and tokens that they read."""

    windows: int
    tokens: int


def estimate(config, settings, targets, tally, max_n_share, device, dtype):
    """Judge all targets; return bytes of memory, seconds, and the Plan."""
    windows = tokens = longest = 0
    for judged, ids in judge_targets(targets, settings.longest, max_n_share):
        tally.add(judged)
        length = 0 if ids is None else len(ids)
        tally.rows += max(1, length) if settings.pool.kind == "per-base" else 1
        if ids is not None:
            passes, read = count_tokens(config, length, settings.echo, settings.average_strands, settings.long)
            windows, tokens, longest = windows + passes, tokens + read, max(longest, length)
    device = choose_device(device)
    item = 4 if dtype == "float32" else 2
    widest = 4 * (4 * config.hidden_size + 3 * config.intermediate_size + 4 * config.mamba_width)
    segment = 1024 if str(device) == "cpu" else 32768
    memory = count_parameters(config) * item + state_bytes(config, settings, longest, dtype) + segment * widest
    depth = min(max(settings.layers), config.num_hidden_layers) / config.num_hidden_layers
    return memory, tokens * depth * seconds_per_token(config, device, choose_dtype(dtype)), Plan(windows, tokens)


# Sequences at hand


def embed_sequences(model, sequences, pool="mean", echo=None, layer=-1, average_strands=False):
    """Embed sequences, each as if alone and as it stands: list of str -> (n, hidden) float32.

    pool             "mean" over the tokens of a sequence, "last", "max", or "center:N", the mean of the middle N
    echo             None, "same" or "rc": read twice in one pass, the second reading pooled
    layer            what is pooled: 0 the embedding, i what leaves block i, -1 the final norm
    average_strands  take the mean of the vectors of a sequence and of its reverse complement

    U is read as T, codes for several bases as N. Raises UsageError for other letters, an empty sequence, and one longer
    than the model reads at once (twice, for echo).
    """
    pool = parse_pool(pool)
    check_echo(echo)
    if pool.kind == "per-base":
        raise UsageError("gives no single vector", where="--pool", hint="hybridna embed writes one row per base")
    if isinstance(sequences, str):
        raise UsageError("one text was given", where="sequences", hint="give a list of texts")
    layers = parse_layers(layer, model.config)[:1]
    embedder = Embedder(model, pool, echo, layers, average_strands)
    vectors = np.empty((len(sequences), model.config.hidden_size), dtype=np.float32)
    for i, (_, found) in enumerate(embedder.embed(_encode_all(sequences, embedder.longest, echo))):
        vectors[i] = found[0]
    return vectors


def _encode_all(sequences, longest, echo):
    """Yield (where, ids) of each sequence; raise UsageError for one that cannot be embedded."""
    for i, sequence in enumerate(sequences):
        where = f"sequence {i + 1}"
        other = re.search(r"[^ACGTUNRYKMSWBDHV]", sequence, re.IGNORECASE | re.ASCII)
        if other or not sequence:
            what = f"{other[0]!r} at position {other.start() + 1} is no base" if other else "is empty"
            raise UsageError(what, where=where)
        if len(sequence) > longest:
            what = f"has {len(sequence):,} bases, too long for this model"
            raise UsageError(what, where=where, hint=f"at most {longest:,} bases are read{' with echo' * bool(echo)}")
        yield where, encode(sequence)
