"""What an evaluation has finished, in its output folder, so that nothing is done twice.

facts of a training -> key -> record and outputs there, or made and kept; rows of the table, one file each
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from hybridna_core.checkpoint import version
from hybridna_core.data.writers import open_output
from hybridna_core.errors import SystemFault, UsageError

MARKER = "evaluation.json"


class Store:
    """Finished trainings and rows of an output folder; `trained` counts those of this call, `kept` earlier ones."""

    def __init__(self, folder, benchmark):
        self.folder, self.benchmark, self.trained, self.kept = Path(folder), benchmark, 0, 0
        marker = self.folder / MARKER
        try:
            if self.folder.exists() and not marker.is_file() and any(self.folder.iterdir()):
                raise UsageError("exists and is no folder of an evaluation", where=folder, hint="give another name")
            for name in ("units", "rows", "runs", "features"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemFault(error.strerror or str(error), where=folder) from None
        if marker.is_file():
            before = json.loads(marker.read_text(encoding="utf-8"))["benchmark"]
            if before != benchmark:
                raise UsageError(f"holds results of {before}", where=folder, hint="give another name")
        else:
            self._write(marker, {"benchmark": benchmark})

    def _write(self, path, value):
        with open_output(path, force=True) as handle:
            handle.write((json.dumps(value, indent=1) + "\n").encode())

    def unit(self, facts, make):
        """Return (record, {set: outputs}) of one training, made by `make(folder)` unless it is finished already."""
        key = hashlib.sha256(json.dumps([version(), facts], sort_keys=True, default=str).encode()).hexdigest()[:24]
        path, arrays = self.folder / "units" / f"{key}.json", self.folder / "units" / f"{key}.npz"
        if path.is_file() and arrays.is_file():
            self.kept += 1
            with np.load(arrays) as held:
                return json.loads(path.read_text(encoding="utf-8")), dict(held)
        record, outputs = make(self.folder / "runs" / key)
        with open_output(arrays, force=True) as handle:
            np.savez(handle, **outputs)
        self._write(path, {**record, "facts": facts})
        shutil.rmtree(self.folder / "runs" / key, ignore_errors=True)
        self.trained += 1
        return record, outputs

    def name_model(self, name, digest):
        """Return what a model is called in the table: its name, with its digest where another one is called so."""
        others = {row.get("model_sha256") for row in self.rows() if row["model"] == name} - {None, digest}
        return f"{name}:{digest[:12]}" if others else name

    def add(self, row):
        """Keep a row of the table; one of the same task, model, method and metric is replaced."""
        key = "\n".join(str(row[name]) for name in ("task", "model", "method", "metric"))
        self._write(self.folder / "rows" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json", row)
        return row

    def rows(self):
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((self.folder / "rows").glob("*.json"))]
