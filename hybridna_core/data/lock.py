"""One process at a time: a lock file that names its holder.

path -> opened -> locked by the system -> holder written in -> emptied again at the end
"""

import contextlib
import logging
import os
import re
import socket

from hybridna_core.errors import SystemFault, UsageError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

log = logging.getLogger("hybridna")


@contextlib.contextmanager
def hold_lock(path, *, where, doing, hint):
    """Hold a lock file, made if need be with its folder; raise UsageError naming the other holder, or SystemFault.

    where, doing, hint  of the message, such as the folder, `is training in this folder`, `wait for it`

    The lock is the system's own, so it ends with the process, however that ends. Where the system knows no locks,
    the process named in the file counts as long as it is there. The holder may delete both.
    """
    while True:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        except FileNotFoundError:
            # The last holder deleted the folder just now.
            continue
        except OSError as error:
            raise SystemFault(error.strerror or str(error), where=where) from None
        with handle:
            _lock(handle, path, where, doing, hint)
            # The last holder may have deleted the file after it was opened here.
            if not _is_there(handle, path):
                continue
            try:
                yield
            finally:
                _write_holder(handle, "")
            return


def _lock(handle, path, where, doing, hint):
    handle.seek(0)
    holder = handle.read(200).strip()
    try:
        if fcntl is None:
            raise OSError("no locks on this system")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{holder or 'another process'} {doing}", where=where, hint=hint) from None
    except OSError:
        # Some network file systems know no locks.
        if _may_live(holder):
            hint = f"if it is gone, delete {path}"
            raise UsageError(f"{holder} {doing}", where=where, hint=hint) from None
    if holder:
        log.info("%s: held by %s, which is gone; its lock is stale", where, holder)
    _write_holder(handle, f"process {os.getpid()} on {socket.gethostname()}\n")


def _is_there(handle, path):
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except OSError:
        return False


def _write_holder(handle, text):
    # A full disk is told of by what is written next.
    with contextlib.suppress(OSError):
        handle.truncate(0)
        handle.write(text)
        handle.flush()


def _may_live(holder):
    """Say whether the process that a lock names may still be there: surely not when it is of this host and gone."""
    found = re.fullmatch(r"process (\d+) on (.+)", holder)
    if found is None:
        return False
    if found[2] != socket.gethostname():
        return True
    try:
        os.kill(int(found[1]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return int(found[1]) != os.getpid()
