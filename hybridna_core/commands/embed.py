"""Embed regions of a genome: one vector per region.

BED line -> Region -> bases -> tokens (twice for echo) -> hidden -> pooled vector -> writer
"""

import os
import re
import time
from collections import Counter
from typing import NamedTuple

import numpy as np

from hybridna_core.checkpoint import load_model
from hybridna_core.data.genome import open_genome, read_renames
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.regions import read_bed
from hybridna_core.data.writers import check_output, open_table, table_suffix
from hybridna_core.errors import DataError, UsageError
from hybridna_core.model.embedding import Embedder
from hybridna_core.model.heads import check_echo, longest_input, parse_layers, parse_pool
from hybridna_core.tokenizer import N, encode, reverse_complement_ids

COLUMNS = {
    "contig": str, "start": int, "end": int, "name": str, "score": str, "strand": str, "status": str, "unknown": int,
}  # fmt: skip


class Summary(NamedTuple):
    """What a run did: `regions` is `embedded` plus the reasons among `statuses`.

    statuses  status -> regions
    unknown   bases read as N in the embedded regions
    hidden    numbers per vector
    """

    regions: int
    embedded: int
    statuses: dict
    unknown: int
    hidden: int
    pool: str
    echo: str | None
    model: str
    output: str
    seconds: float

    def to_dict(self):
        return {name: value for name, value in self._asdict().items() if value is not None}


def embed(
    regions, fasta_ref, output="-", *, model="base", pool="mean", echo=None, max_n_share=0.05, clip=False,
    rename_chrs=None, strict=False, force=False, device="auto", dtype="float32", rebuild_index=False,
    other_letters=None, rna=False, allow_missing_eof=False, allow_nonfinite=False, progress=None,
):  # fmt: skip
    """Write one vector per region of a BED file, in input order, with the region's columns; return a Summary.

    regions        BED file, plain or compressed; `-` for standard input. Strand `-`: the reverse complement is read
    fasta_ref      the genome, plain or bgzip
    output         .npz, .tsv or .parquet; `-` for a TSV on standard output
    model          name, folder, or a loaded model
    pool           mean over the region's tokens (never the start token), or the last one's vector
    echo           read the region twice in one pass and pool the second reading: `same` again, or `rc`, its reverse
                   complement
    max_n_share    regions with a greater share of unknown bases are marked too_many_n
    clip           cut regions at contig ends instead of marking them out_of_range
    rename_chrs    table of contig names, old and new, for regions named otherwise than the genome
    strict         raise DataError at the end if any region has no vector

    A region that the model cannot read at once (twice, for echo) is marked too_long. Marked regions keep their row:
    the vector is empty in TSV and NaN elsewhere. Every region is read by itself, so that its vector depends on the
    bases, the model and the options only. Raises HybriDNAError kinds; on an error nothing is at `output`, but for
    `strict`.
    """
    start = time.monotonic()
    check_options(pool, echo, max_n_share)
    check_output(output, inputs=(regions, fasta_ref, rename_chrs), force=force)
    table_suffix(output)
    regions = check_input(regions)
    renames = read_renames(rename_chrs) if rename_chrs is not None else {}
    with open_genome(fasta_ref, rebuild_index, other_letters, rna, allow_missing_eof) as genome:

        def read(**options):
            return read_bed(regions, genome, clip=clip, renames=renames, allow_missing_eof=allow_missing_eof, **options)

        # Every line is checked before the model loads, where the file can be read twice.
        is_twice = regions != "-" and os.path.isfile(regions)
        total = sum(1 for _ in read()) if is_twice else None
        if isinstance(model, str | os.PathLike):
            model = load_model(model, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
        hidden, statuses, unknown = model.config.hidden_size, Counter(), 0
        meta, longest = describe(model, pool, echo), longest_input(model.config, echo)
        embedder = Embedder(model, parse_pool(pool), echo)
        with open_table(output, COLUMNS, vector="embedding", width=hidden, meta=meta, force=force) as add:
            judged = judge_all(read(warned=is_twice), genome, longest, max_n_share, regions)
            for done, ((region, status, count), vectors) in enumerate(embedder.embed(judged), start=1):
                unknown += count if status == "ok" else 0
                statuses[status] += 1
                add(
                    (*region[:3], region.name, region.score, region.strand, status, count),
                    None if vectors is None else vectors[0],
                )
                if progress is not None:
                    progress(done, total)
            genome.check_unchanged()
    counted = sum(statuses.values())
    summary = Summary(
        counted, statuses["ok"], dict(statuses), unknown, hidden, pool, echo, model.name, str(output),
        time.monotonic() - start,
    )  # fmt: skip
    if strict and summary.embedded < counted:
        reasons = ", ".join(f"{status} {count:,}" for status, count in statuses.items() if status != "ok")
        what = f"{counted - summary.embedded:,} of {counted:,} regions have no vector ({reasons})"
        raise DataError(what, where=regions, hint="the output is complete; leave out --strict to accept it")
    return summary


def check_options(pool, echo, max_n_share=0.0):
    """Raise UsageError for a pooling or echo that does not exist, or a share outside [0, 1]."""
    parse_pool(pool)
    check_echo(echo)
    if not 0 <= max_n_share <= 1:
        raise UsageError(f"is {max_n_share}, must be 0 to 1", where="--max-n-share")


def describe(model, pool, echo):
    """Return what a reader of the vectors must know, for the formats that can hold it."""
    return {
        "model": model.name, "sha256": model.digest, "pool": pool, "echo": echo, "dtype": str(model.dtype)[6:],
        "tokenizer": model.tokenizer.version, "context_length": model.config.context_length,
    }  # fmt: skip


class Judged(NamedTuple):
    """A region with its status and number of unknown bases; spelt as its place."""

    region: tuple
    status: str
    unknown: int

    def __str__(self):
        return f"{self.region.contig}:{self.region.start + 1}-{self.region.end}"


def judge_all(found, genome, longest, max_n_share, path):
    """Yield (Judged, its ids or None) of all regions, with a warning for those that are marked here."""
    for region in found:
        status, count, ids = judge(region, genome, longest, max_n_share)
        if status in ("too_long", "too_many_n"):
            limit = f"{longest:,} bases are read at once" if status == "too_long" else f"{count:,} are unknown"
            warn(status, f"{path}:{region.line}: region of {region.length:,} bases, {limit}; marked {status}")
        yield Judged(region, status, count), ids


def judge(region, genome, longest, max_n_share):
    """Return the status of a region, how many of its bases are unknown, and its ids in reading direction or None."""
    if region.status != "ok":
        return region.status, 0, None
    if region.length > longest:
        return "too_long", 0, None
    ids = genome.ids(region.contig, region.start, region.end)
    unknown = int((ids == N).sum())
    # A vector of nothing but N would say nothing, whatever share is allowed.
    if unknown > max_n_share * len(ids) or unknown == len(ids):
        return "too_many_n", unknown, None
    return "ok", unknown, reverse_complement_ids(ids) if region.strand == "-" else ids


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
