"""Join the parts that several processes made of one file, each with --shard, into what one would have made.

files -> header lines, Part -> checked against one another -> lines or BCF records copied and counted -> output, index
"""

import contextlib
import os
import time
from typing import NamedTuple

from hybridna_core.data import table_parts
from hybridna_core.data.inputs import check_input, read_chunks
from hybridna_core.data.partial import finish_renaming, hold_outputs
from hybridna_core.data.shards import KEY, Part, read_part
from hybridna_core.data.table_parts import copy_lines, is_table
from hybridna_core.data.tables import finish_table, keys_beside, table_suffix
from hybridna_core.data.vcf import Header, to_text
from hybridna_core.data.vcf_output import OUTPUT_TYPES, choose_output_type, open_lines
from hybridna_core.data.writers import check_output, is_stdout
from hybridna_core.errors import DataError, UsageError
from hybridna_core.score_fields import check_index, check_old_index, index_output, is_bgzip_name

# A VCF header of more bytes than this is none.
HEADER_LIMIT = 2**28


class Summary(NamedTuple):
    """What was joined; lines: records, of tables lines."""

    parts: int
    lines: int
    output: str
    seconds: float

    def to_dict(self):
        return self._asdict()


class Opened(NamedTuple):
    """A part, read as far as its records.

    opening  bytes before the header's text, of BCF
    header   Header without the line that tells of the part
    chunks   the rest of the file, bytes
    """

    path: str
    part: Part
    opening: bytes
    header: Header
    chunks: object


def merge(parts, output="-", *, write_index=False, force=False, progress=None):
    """Join parts of a sharded score_variants or embed, in whichever order they are given; return a Summary.

    parts        files, all of one run
    output       `-` for standard output; of the same type as the parts
    write_index  index the output (.tbi, of BCF .csi)

    The output equals, byte for byte, what one run over the whole input writes. Raises DataError for a part that is
    missing, there twice, of another run or cut, UsageError for an output of another type.
    """
    start = time.monotonic()
    for path in parts:
        check_input(path, random_access=True)
    if is_table(parts[0]):
        return merge_tables(parts, output, force, progress, start)
    found = check_parts([describe(path) for path in parts])
    kind = found[0].part.kind
    check_name(output, kind)
    finish_renaming(output)
    is_bgzf = is_bgzip_name(output) if kind == "t" else kind != "v"
    check_index(output, is_bgzf and kind != "u", write_index)
    check_output(output, inputs=parts, force=force)
    check_old_index(output, write_index, force)
    lines = 0
    with hold_outputs([output], force) as outputs:
        outputs.begin()
        sink = open_lines(outputs.handles[0], is_bgzf, level=0 if kind == "u" else 6)
        for number, (path, part, _, _, _) in enumerate(found, start=1):
            with contextlib.closing(read_chunks(path)) as chunks:
                opened = open_part(path, chunks)
                if number == 1:
                    sink.write(spell_header(opened))
                copied = copy(opened, sink)
            if copied != part.lines:
                what = f"holds {copied:,} records or lines, {part.lines:,} are due"
                raise DataError(what, where=path, hint="is it whole? copy it again, or make it anew")
            lines += copied
            if progress is not None:
                progress(number, len(found))
        sink.close()
        lengths = found[0].header.contigs.values()
        outputs.finish(index_output(outputs, output, kind, lengths) if write_index else ())
    return Summary(len(found), lines, str(output), time.monotonic() - start)


def merge_tables(parts, output, force, progress, start):
    """Join parts of embed's output, all of one format."""
    suffix = table_suffix(output)
    for path in parts:
        if os.path.splitext(path)[1].lower() != suffix:
            raise UsageError(f"is no {suffix} like the output", where=path, hint="name the output as the parts are")
    finish_renaming(output)
    keys = [keys_beside(path) for path in parts] if suffix == ".npy" else []
    for path in (output, *([keys_beside(output)] if keys else [])):
        check_output(path, inputs=[*parts, *keys], force=force)
    found = check_parts([describe_table(path, suffix) for path in parts])
    count, layout = 0, None
    with hold_outputs([output], force) as outputs:
        outputs.begin()
        handle = outputs.handles[0]
        for number, (path, part, _, _, _) in enumerate(found, start=1):
            if suffix == ".tsv":
                copied = copy_lines(path, handle, is_first=number == 1)
            else:
                with table_parts.open_part(path) as (_, layout, rows):
                    copied = table_parts.copy_rows(layout, rows, handle)
            if copied != part.lines:
                what = f"holds {copied:,} rows, {part.lines:,} are due"
                raise DataError(what, where=path, hint="is it whole? copy it again, or make it anew")
            count += copied
            if progress is not None:
                progress(number, len(found))
        if layout is None:
            outputs.finish()
        else:
            finish_table(outputs, layout, suffix)
    return Summary(len(found), count, str(output), time.monotonic() - start)


def describe_table(path, suffix):
    """Return the part that a table of vectors is, as Opened without its rows."""
    if suffix == ".tsv":
        part = table_parts.read_first_line(path)
        if part is None:
            raise DataError("is no part of a sharded run", where=path, hint="parts are what --shard i/n writes")
    else:
        with table_parts.open_part(path) as (part, _, _):
            pass
    return Opened(path, part, b"", None, None)


def describe(path):
    """Read the header of a part; return it as Opened, without the rest."""
    with contextlib.closing(read_chunks(path)) as chunks:
        return open_part(path, chunks)._replace(chunks=None)


def open_part(path, chunks):
    """Read a part as far as its records; raise DataError for what is none."""
    data = b""
    for chunk in chunks:
        data += chunk
        split = split_bcf(data) if data.startswith(b"BCF\x02") else split_text(data)
        if split is not None:
            opening, text, rest = split
            newline = b"\r\n" if text.endswith(b"\r\n") else b"\n"
            lines = to_text(text).split("\n")[:-1]
            lines = [line.removesuffix("\r") for line in lines]
            found = [part for line in lines if line.startswith(KEY) and (part := read_part(line)) is not None]
            if len(found) != 1:
                break
            header = Header([line for line in lines if not line.startswith(KEY)], newline)
            return Opened(path, found[0], opening, header, prepend(rest, chunks))
        if len(data) > HEADER_LIMIT:
            break
    what = "is no part of a sharded run"
    raise DataError(what, where=path, hint="parts are what score-variants --shard i/n writes")


def split_text(data):
    """Split the begin of a VCF or table into nothing, header lines and what follows; None where it is too short."""
    at = 0
    while data.startswith(b"#", at):
        end = data.find(b"\n", at) + 1
        if end == 0:
            return None
        if not data.startswith(b"##", at):
            return b"", data[:end], data[end:]
        at = end
    # Neither more of the header nor its last line: not ours, and told so by what is not in it.
    return None if at == len(data) else (b"", data[:at], data[at:])


def split_bcf(data):
    """Split the begin of a BCF into magic, header text and what follows; None where it is too short."""
    end = 9 + int.from_bytes(data[5:9], "little")
    return None if len(data) < max(end, 9) else (data[:5], data[9:end].rstrip(b"\0"), data[end:])


def spell_header(opened):
    """Return the bytes of a part's header without what makes it a part."""
    text = opened.header.to_bytes()
    if not opened.opening:
        return text
    text += b"\0"
    return opened.opening + len(text).to_bytes(4, "little") + text


def prepend(first, chunks):
    """Yield a chunk before others."""
    yield first
    yield from chunks


def check_parts(found):
    """Return parts in order; raise DataError unless all of one run are there, once each."""
    first, by_index = found[0], {}
    for opened in found:
        part = opened.part
        if (part.run, part.kind, part.shard.count) != (first.part.run, first.part.kind, first.part.shard.count):
            hint = "join only what one input, model and set of options gave"
            raise DataError(f"is a part of another run than {first.path}", where=opened.path, hint=hint)
        if part.shard.index in by_index:
            other = by_index[part.shard.index].path
            raise DataError(f"is part {part.shard}, and so is {other}", where=opened.path, hint="give each part once")
        by_index[part.shard.index] = opened
    count = first.part.shard.count
    missing = [index for index in range(1, count + 1) if index not in by_index]
    if missing:
        names = ", ".join(f"{index}/{count}" for index in missing[:10]) + ", ..." * (len(missing) > 10)
        words = f"parts are missing: {names}" if len(missing) > 1 else f"part {names} is missing"
        raise DataError(words, where=first.path, hint="give all parts of the run")
    return [by_index[index] for index in range(1, count + 1)]


def check_name(output, kind):
    """Raise UsageError when an output's name promises another type than the parts have."""
    try:
        named = None if is_stdout(output) else choose_output_type(output)
    except UsageError:
        # Any name is good for --output-type, which the parts were made with then.
        return
    if os.path.exists(output) and not os.path.isfile(output):
        return
    if named is not None and named != kind and {named, kind} != {"b", "u"}:
        raise UsageError(f"the parts are {OUTPUT_TYPES[kind]}", where=os.fspath(output), hint="name the output so")


def copy(opened, sink):
    """Copy what follows the header; return the number of whole records or lines."""
    count, head, beyond = 0, b"", 0
    for chunk in opened.chunks:
        sink.write(chunk)
        if not opened.opening:
            count += chunk.count(b"\n")
            continue
        # A record begins with the lengths of its shared and of its samples' part; `beyond` is where the next begins.
        data, at = head + chunk, beyond
        while at + 8 <= len(data):
            at += 8 + int.from_bytes(data[at : at + 4], "little") + int.from_bytes(data[at + 4 : at + 8], "little")
            count += 1
        head, beyond = data[at:], max(at - len(data), 0)
    return count - (beyond > 0)
