"""Outputs that grow beside their targets, and that the same command goes on with after it was killed.

paths -> folder NAME.partial beside each: lock, data -> records written -> journal now and then -> renamed

A journal says how many bytes of the data are good, what the run had counted by then, and by a fingerprint which run it
was. When all is written it lists what is to be renamed, so that a run killed between two renames is finished by the
next one.
"""

import base64
import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import time

from hybridna_core.data.lock import hold_lock
from hybridna_core.data.writers import device_faults, is_in_place, is_stdout, open_output, sync_folder
from hybridna_core.errors import DataError, GuardError, ModelError, Stopped, UsageError

log = logging.getLogger("hybridna")

# Between two journals at the least, and how many times longer than writing one takes.
SECONDS, PATIENCE = 5.0, 20
# After these the same command would end alike, so there is nothing to go on with.
FINAL_ERRORS = (UsageError, DataError, ModelError, GuardError)


def name_folder(path):
    """Return the folder in which an output grows; a link is followed to the file that it names."""
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    if len(os.fsencode(name)) > 240:
        name = f".hybridna-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return os.path.join(folder, f"{name}.partial")


def finish_renaming(path):
    """Rename what an earlier run had finished when it was killed before it could."""
    if path is None or is_stdout(path) or not os.path.exists(os.path.join(name_folder(path), "journal")):
        return
    with _hold(path):
        journal = _read_journal(name_folder(path))
        if journal is not None and "moves" in journal:
            log.info("%s: an earlier run had finished it and was killed while renaming", path)
            _rename(journal)


@contextlib.contextmanager
def hold_outputs(paths, force=False):
    """Yield the Outputs of a run, kept from other runs.

    paths  of the outputs, the most important one first; None is left out
    force  existing ones may be replaced

    Unless `finish` was called nothing is at the targets afterwards; what was saved stays for the same command to go on
    with, but for errors that would come again. Raises UsageError for an output that another process is writing,
    Stopped for an interrupt after which the command can go on.
    """
    paths = [os.fspath(path) for path in paths if path is not None]
    with contextlib.ExitStack() as stack, device_faults(paths[0]):
        outputs = Outputs(paths, force, stack)
        try:
            outputs.hold()
            yield outputs
        except BaseException as error:
            is_kept = outputs.give_up(error)
            if is_kept and isinstance(error, KeyboardInterrupt):
                number = getattr(error, "signal_number", signal.SIGINT)
                what = f"stopped by {signal.Signals(number).name}, kept {outputs.spell_saved()}"
                hint = "the same command goes on from there"
                raise Stopped(what, signal_number=number, where=paths[0], hint=hint) from error
            raise
        outputs.give_up(None)


class Outputs:
    """Handles of a run's outputs, and what is known of them that is sure to last.

    handles  binary, in the order of the paths, from `begin` on
    """

    def __init__(self, paths, force, stack):
        self.paths, self.force, self.stack, self.handles = paths, force, stack, []
        self.folders = [None if is_stdout(p) or is_in_place(p) else name_folder(p) for p in paths]
        self.held, self.fingerprint, self.saved = [], None, None
        self.is_begun = self.is_finished = False
        self.due = time.monotonic() + SECONDS

    def hold(self):
        """Keep other runs out."""
        for path, folder in zip(self.paths, self.folders, strict=True):
            if folder is not None:
                self.stack.enter_context(_hold(path))
                self.held.append(folder)
                self._check_absent(path, "exists already")

    def _check_absent(self, path, state):
        if os.path.lexists(os.path.realpath(path)) and not self.force:
            raise UsageError(f"the output {state}", where=path, hint="give --force to replace it")

    def begin(self, fingerprint=None):
        """Open the outputs; return what `save` was given by the run that is gone on with: state, and bytes held.

        Where all begins anew both are None, the latter for each output.

        fingerprint  dict of text that says which run this is, keys in words; None: it cannot be gone on with
        Raises UsageError when another run has left its outputs there.
        """
        folder = self.folders[0]
        journal = _read_journal(folder) if folder is not None else None
        if journal is not None:
            self._check_same(journal, fingerprint, folder)
            self.saved = journal["state"]
        if None not in self.folders:
            self.fingerprint = fingerprint
        self.is_begun = journal is None
        for index, (path, folder) in enumerate(zip(self.paths, self.folders, strict=True)):
            if folder is None:
                self.handles.append(self.stack.enter_context(open_output(path, self.force)))
                continue
            data = os.path.join(folder, "data")
            if journal is None:
                handle = open(data, "wb", buffering=2**17)  # noqa: SIM115
            else:
                handle = _reopen(data, journal["files"][index]["size"])
            self.handles.append(handle)
        self.is_begun = True
        if journal is None:
            return None, [None] * len(self.paths)
        log.info("%s: goes on after %s of an earlier run", self.paths[0], self.spell_saved())
        return self.saved, [base64.b64decode(file["held"]) for file in journal["files"]]

    def _check_same(self, journal, fingerprint, folder):
        before, now = journal.get("fingerprint", {}), fingerprint or {}
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed or "state" not in journal or len(journal["files"]) != len(self.paths):
            what = "an unfinished run that is not this one"
            what += f": other are {', '.join(changed)}" if before and now else ""
            hint = "go on with that one, or delete the folder to begin anew"
            raise UsageError(what, where=folder, hint=hint)

    def is_due(self):
        """Tell whether it is time to save."""
        return self.fingerprint is not None and time.monotonic() >= self.due

    def save(self, held, state):
        """Make all that was written last, so that a run can go on from here.

        held   for each output the bytes that its writer still holds
        state  what the run had counted; `records` is how far it was
        """
        began = time.monotonic()
        files = []
        for handle, rest in zip(self.handles, held, strict=True):
            _sync(handle)
            files.append({"size": handle.tell(), "held": base64.b64encode(rest).decode()})
        _write_journal(self.folders[0], {"fingerprint": self.fingerprint, "state": state, "files": files})
        self.saved, now = state, time.monotonic()
        self.due = now + max(SECONDS, PATIENCE * (now - began))

    def spell_saved(self):
        """Say how far the run was when it was saved last."""
        return "all but its name" if self.is_finished else f"{self.saved['records']:,} records"

    def reserve(self, count):
        """Take so many bytes of disk for what the first output will hold, where the system can."""
        handle = self.handles[0]
        try:
            os.posix_fallocate(handle.fileno(), handle.tell(), max(count, 1))
        except (AttributeError, OSError) as error:
            # Some file systems cannot; a full one must be told of now.
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise

    def name_aside(self, name):
        """Return the path of a further file that is made beside the data of the first output."""
        return os.path.join(self.folders[0], name)

    def finish(self, indices=(), made=None):
        """Rename finished outputs to their targets.

        indices  (path made by `name_aside`, target) of indices of the first one, or of what else belongs to it
        made     path by `name_aside` that becomes the first output in place of what was written to its handle
        """
        moves = []
        for path, folder, handle in zip(self.paths, self.folders, self.handles, strict=True):
            if folder is not None:
                with device_faults(path):
                    _sync(handle)
                    handle.close()
                self._check_absent(path, "appeared while this ran")
                moves.append([handle.name, os.path.realpath(path)])
        if not moves:
            return
        if made is not None:
            moves[0][0] = made
        for aside in [*([] if made is None else [made]), *(aside for aside, _ in indices)]:
            with open(aside, "rb") as handle:
                os.fsync(handle.fileno())
        indices = [[aside, os.path.realpath(target)] for aside, target in indices]
        folder = next(folder for folder in self.folders if folder is not None)
        journal = {"moves": moves, "indices": indices}
        _write_journal(folder, journal)
        # From here on the next run finishes what this one does not.
        self.is_finished = True
        _rename(journal)
        self.held = []

    def give_up(self, error):
        """Close what is open after an error, or None; return whether there is something to go on with."""
        for handle, folder in zip(self.handles, self.folders, strict=False):
            if folder is not None:
                # Closing in the usual way would try to flush again and hide the first error behind a second one.
                with contextlib.suppress(OSError):
                    handle.raw.close()
        is_saved = self.is_finished or (self.saved is not None and not isinstance(error, FINAL_ERRORS))
        if error is not None and is_saved and self.held:
            return True
        for folder in self.held:
            # What an earlier run left, and this one did not go on with, stays.
            if self.is_begun or not set(os.listdir(folder)) & {"data", "journal"}:
                shutil.rmtree(folder, ignore_errors=True)
        return False


def _hold(path):
    hint = "wait for it, or give another -o FILE"
    return hold_lock(os.path.join(name_folder(path), "lock"), where=path, doing="is writing this output", hint=hint)


def _sync(handle):
    handle.flush()
    if handle.seekable():
        os.fsync(handle.fileno())


def _reopen(data, size):
    """Open a file to go on after so many bytes of it."""
    try:
        is_whole = os.path.getsize(data) >= size
    except FileNotFoundError:
        is_whole = False
    if not is_whole:
        what = "shorter than its journal says, or not there"
        raise UsageError(what, where=data, hint=f"delete {os.path.dirname(data)} to begin anew")
    handle = open(data, "r+b", buffering=2**17)  # noqa: SIM115
    handle.truncate(size)
    handle.seek(size)
    return handle


def _read_journal(folder):
    try:
        with open(os.path.join(folder, "journal"), encoding="utf-8") as handle:
            return json.load(handle)
    except FileNotFoundError:
        return None
    except ValueError:
        raise UsageError("its journal is damaged", where=folder, hint="delete the folder to begin anew") from None


def _write_journal(folder, journal):
    path = os.path.join(folder, "journal")
    with open(f"{path}.new", "w", encoding="utf-8") as handle:
        json.dump(journal, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(f"{path}.new", path)
    sync_folder(folder)


def _rename(journal):
    """Do the renames of a journal that are not done yet, and clear up."""
    moves = [move for move in journal["moves"] + journal["indices"] if os.path.exists(move[0])]
    for move in journal["indices"]:
        if move in moves:
            # An index of the old file never stands beside the new one.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(move[1])
    for source, target in moves:
        os.replace(source, target)
        sync_folder(os.path.dirname(target))
    for source, _ in reversed(journal["moves"]):
        shutil.rmtree(os.path.dirname(source), ignore_errors=True)
