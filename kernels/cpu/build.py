"""Compile the C++ kernels on first use and load them.

*.cpp -> compiler of the machine -> shared object in a cache folder, keyed by all that shapes it -> ctypes library
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = (
    "scan.cpp", "scan_tiles.cpp", "scan_backward.cpp", "step.cpp", "rows.cpp", "rows_backward.cpp", "attention.cpp",
    "product.cpp", "tiles.cpp", "block.cpp", "peak.cpp",
)  # fmt: skip
HEADERS = ("simd.hpp", "product.hpp", "scan.hpp", "tiles.hpp")
# Nothing that changes results: no -ffast-math.
FLAGS = "-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"
MACHINE = "-march=native" if platform.machine() in ("x86_64", "i686") else "-mcpu=native"
TIMEOUT = 300  # seconds for one file

_lock = threading.Lock()
_found = None


class BuildError(Exception):
    """Why there is no library."""


def library():
    """Return (ctypes library, None), or (None, why there is none). The first call of a process looks or compiles."""
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                try:
                    _found = ctypes.CDLL(str(build())), None
                except (BuildError, OSError, subprocess.SubprocessError) as error:
                    _found = None, (str(error).splitlines() or [type(error).__name__])[0][:200]
    return _found


def build():
    """Return the path of the compiled library, compiling it if it is not in the cache; raise BuildError."""
    runtime = openmp_runtime()
    compiler = find_compiler()
    here = Path(__file__).resolve().parent
    flags = [*FLAGS, MACHINE]
    key = hashlib.sha256()
    for part in (*flags, _version(compiler), _processor(), str(runtime)):
        key.update(part.encode() + b"\0")
    for name in (*HEADERS, *SOURCES):
        key.update((here / name).read_bytes() + b"\0")
    folder = cache_folder()
    target = folder / f"kernels-{key.hexdigest()[:24]}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as work:
        objects = [str(Path(work, name).with_suffix(".o")) for name in SOURCES]
        commands = [
            [*compiler, *flags, "-c", str(here / name), "-o", o] for name, o in zip(SOURCES, objects, strict=True)
        ]
        with ThreadPoolExecutor() as pool:
            list(pool.map(_run, commands))
        # The OpenMP runtime that torch has loaded is named itself: a second one would bring a second set of threads.
        made = Path(work, "kernels.so")
        _run([*compiler, "-shared", "-o", str(made), *objects, str(runtime)])
        # Processes that start at once each build their own; whichever renames last leaves the same bytes.
        os.replace(made, target)
    return target


def find_compiler():
    """Return the command of the C++ compiler as a list: $CXX if set, else the first on PATH; raise BuildError."""
    asked = os.environ.get("CXX", "").split()
    if asked:
        return asked
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler (g++, c++, clang++ or $CXX)")


def openmp_runtime():
    """Return the path of the OpenMP runtime that torch has loaded into this process; raise BuildError."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        raise BuildError("needs Linux")
    loaded = dict.fromkeys(re.findall(r"/\S*lib(?:gomp|iomp5|omp)\b[^/\s]*\.so[^/\s]*", maps.read_text()))
    if not loaded:
        raise BuildError("torch runs without OpenMP")
    return Path(min(loaded, key=lambda path: "torch" not in path))


def cache_folder():
    """Return a writable folder for compiled kernels, made if need be; raise BuildError.

    $XDG_CACHE_HOME/hybridna or ~/.cache/hybridna; where neither can be written, a folder of this user's among the
    temporary ones.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(home) and _writable(Path(home, "hybridna")):
        return Path(home, "hybridna")
    shared = Path(tempfile.gettempdir(), f"hybridna-{os.getuid()}")
    # Others may write beside this one, and what lies in it gets run: it must be ours alone.
    if _writable(shared) and not shared.is_symlink():
        about = shared.stat()
        if about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return shared
    raise BuildError("no folder to compile into")


def _writable(folder):
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        detail = next((line for line in said if "error" in line), said[0] if said else f"exit {done.returncode}")
        raise BuildError(f"{command[0]} failed: {detail}")


def _version(compiler):
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace", timeout=60)
    except OSError as error:
        raise BuildError(f"{compiler[0]}: {error.strerror}") from None
    return " ".join(compiler) + done.stdout


def _processor():
    """Name the instruction sets of this processor, so that a cache on a shared home serves several machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    lines = dict.fromkeys(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE))
    return platform.machine() + "".join(lines)
