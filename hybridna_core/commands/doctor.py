"""What this installation has, which kernels it uses, and whether they compute the right numbers.

installed distributions -> versions; torch -> devices; dispatch -> backends with reasons, parity with the definition
"""

import platform
import re
from dataclasses import asdict, dataclass
from importlib import metadata

from hybridna_core.memory import free_bytes, spell_bytes

IMPORT_NAMES = {"biopython": "Bio"}


def unmet_requirements(missing=None):
    """Return (name, version found or None, requirement) of each needed package that is absent or too old.

    missing  import name of a module that could not be imported; it counts as absent
    """
    unmet = []
    for name, lowest in required_packages().items():
        found = installed_version(name)
        needed = f"{name}>={lowest}"
        if found is None or (missing is not None and missing in (name, IMPORT_NAMES.get(name))):
            unmet.append((name, None, needed))
        elif _numbers(found) < _numbers(lowest):
            unmet.append((name, found, needed))
    return unmet


def required_packages():
    """Return name -> lowest version of the packages that hybridna needs, without its extras."""
    return {name: lowest for name, lowest, extra in _requirements() if extra == ""}


def _requirements():
    """List (name, lowest version, extra or the empty text) of the packages in our own metadata."""
    try:
        lines = metadata.requires("hybridna") or []
    except metadata.PackageNotFoundError:
        return []
    rows = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        match = re.fullmatch(r"([A-Za-z0-9._-]+)\s*[>=]=\s*([0-9.]+)", requirement.strip())
        extra = re.search(r"extra\s*==\s*['\"](.*?)['\"]", marker)
        if match is not None:
            rows.append((match[1], match[2], "" if extra is None else extra[1]))
    return rows


def installed_version(name):
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version):
    """Leading numbers of a version: 2.13.0+cpu -> (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"[0-9.]*", version)[0].strip(".").split(".") if part)


@dataclass(frozen=True)
class Checkup:
    """What `doctor` found; each table is a list of dicts with the same keys."""

    versions: dict
    packages: list
    devices: list
    kernels: list
    parity: list
    problems: list

    def to_dict(self):
        return asdict(self)


def doctor():
    """Look at packages, devices and kernels, compare each usable kernel with its definition; return a Checkup."""
    problems = []
    packages = list_packages()
    for _, found, needed in unmet_requirements():
        problems.append(f"{needed} is needed, {found or 'none'} is installed; pip install '{needed}'")
    versions = {
        "hybridna": installed_version("hybridna") or "not installed",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    try:
        devices, kernels, parity = list_devices(), list_kernels(), check_parity()
    except Exception as error:
        # A broken torch is just what a user runs doctor for.
        problems.append(f"torch cannot be used: {type(error).__name__}: {error}")
        return Checkup(versions, packages, [], [], [], problems)
    problems += [f"{row['op']} on {row['backend']} computes wrong numbers" for row in parity if row["state"] != "ok"]
    return Checkup(versions, packages, devices, kernels, parity, problems)


def list_packages():
    """List needed and optional packages with version found, lowest version and the extra that brings them."""
    rows = {}
    for name, lowest, extra in _requirements():
        row = {"name": name, "version": installed_version(name), "lowest": lowest, "extra": extra}
        rows.setdefault(name, row)
    return list(rows.values())


def list_devices():
    """List the CPU and each CUDA device, or why there is none."""
    import torch

    free = free_bytes("cpu")
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "unknown")()
    about = f"{torch.get_num_threads()} threads, {capability}"
    rows = [{"device": "cpu", "about": about if free is None else f"{about}, {spell_bytes(free)} free"}]
    if not torch.cuda.is_available():
        reason = "torch is built without CUDA" if torch.version.cuda is None else "no device that torch can use"
        return [*rows, {"device": "cuda", "about": f"none: {reason}"}]
    for i in range(torch.cuda.device_count()):
        about = f"{torch.cuda.get_device_name(i)}, {spell_bytes(free_bytes(f'cuda:{i}'))} free"
        rows.append({"device": f"cuda:{i}", "about": about})
    return rows


def list_kernels():
    """List op, backend and state: in use, usable, or the reason why not; on the CUDA device where there is one."""
    import torch

    from hybridna_kernels import dispatch

    rows = dispatch.report("cuda" if torch.cuda.is_available() else "cpu")
    return [{"op": op, "backend": backend, "state": state} for op, backend, state in rows]


def check_parity():
    """Compare each usable backend with the definition of its op; list op, backend, largest error and limit."""
    from hybridna_kernels import dispatch

    rows = []
    for op, backend, error, limit in dispatch.check_parity():
        rows.append({"op": op, "backend": backend, "error": error, "limit": limit})
        rows[-1]["state"] = "ok" if error <= limit else "wrong"
    return rows
