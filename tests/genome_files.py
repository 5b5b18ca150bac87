"""Small files made on the spot: plain, bgzip, with the warnings they caused."""

import zlib

from hybridna_core.data.inputs import BGZF_EOF


def block(data):
    """One BGZF block."""
    squeezed = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = squeezed.compress(data) + squeezed.flush()
    head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\x00BC\x02\x00" + (len(body) + 25).to_bytes(2, "little")
    return head + body + zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")


def bgzip(data, size=50):
    """BGZF with blocks of `size` bytes, so that small files have many."""
    return b"".join(block(data[i : i + size]) for i in range(0, len(data), size)) + BGZF_EOF


def put(folder, content, name="genome.fa"):
    path = folder / name
    path.write_bytes(content)
    return str(path)


def warnings_of(caplog, kind):
    return [r.getMessage() for r in caplog.records if getattr(r, "kind", None) == kind]
