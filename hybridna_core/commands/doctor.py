"""What this installation has, which kernels it uses, and whether they compute the right numbers.

installed distributions -> versions; torch -> devices; dispatch -> backends with reasons, parity with the definition
"""

import re
from importlib import metadata


def unmet_requirements(missing=None):
    """Return (name, version found or None, requirement) of each needed package that is absent or too old.

    missing  import name of a module that could not be imported; it counts as absent
    """
    unmet = []
    for name, lowest in required_packages().items():
        found = installed_version(name)
        needed = f"{name}>={lowest}"
        if found is None or missing in (name, IMPORT_NAMES.get(name)):
            unmet.append((name, None, needed))
        elif _numbers(found) < _numbers(lowest):
            unmet.append((name, found, needed))
    return unmet


IMPORT_NAMES = {"biopython": "Bio"}


def required_packages():
    """Return name -> lowest version of the packages that hybridna needs, without its extras."""
    try:
        lines = metadata.requires("hybridna") or []
    except metadata.PackageNotFoundError:
        return {}
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)", line)
        if match is not None:
            found[match[1]] = match[2]
    return found


def installed_version(name):
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version):
    """Leading numbers of a version: 2.13.0+cpu -> (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"[0-9.]*", version)[0].strip(".").split(".") if part)
