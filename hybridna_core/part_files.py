"""JSON files beside a model's weights, read without torch: their format, and what labels.json says.

labels.json -> positions, values, rows in training, usual length
"""

from pathlib import Path

from hybridna_core.config import read_json
from hybridna_core.errors import ModelError

FORMAT = 1
LABELS = "labels.json"


def read_scheme(folder):
    """Return what a folder says of its labels: `positions` (name, meaning, values), `rows`, `frequencies`; or None.

    `length`, the bases that most of its sequences had, is not in folders of the first release.
    """
    path = Path(folder) / LABELS
    if not path.is_file():
        return None
    table = read_part(path, {"positions", "rows", "frequencies"})
    length = table.get("length")
    if length is not None and (type(length) is not int or length < 1):
        raise ModelError(f"length {length!r} is no number of bases", where=path)
    return table


def read_part(path, keys):
    """Read one of our JSON files; raise ModelError when it lacks a key or is of a later format."""
    table = read_json(path)
    if not isinstance(table, dict) or not keys <= table.keys():
        raise ModelError(f"lacks {', '.join(sorted(keys))}", where=path)
    if type(table.get("format")) is not int or table["format"] > FORMAT:
        raise ModelError(f"format {table.get('format')!r} is unknown", where=path, hint="upgrade hybridna")
    return table
