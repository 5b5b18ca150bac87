"""Outputs that grow and are gone on with: journal, fingerprint, lock, renames cut short.

bytes written -> saved -> the run ends somehow -> begun again -> the same bytes
"""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from hybridna_core.data import partial
from hybridna_core.data.partial import finish_renaming, hold_outputs, name_folder
from hybridna_core.errors import DataError, Stopped, SystemFault, UsageError

MARK = {"the input": "a", "the options": "b"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Killed(BaseException):
    """Stands in for what ends a process."""


def leave(error, *, path="out", others=(), mark=MARK, saved=True):
    """Begin to write, save in between, and end with an error."""
    with pytest.raises((type(error), Stopped)) as caught, hold_outputs([path, *others]) as outputs:
        outputs.begin(mark)
        for handle in outputs.handles:
            handle.write(b"good")
        if saved:
            outputs.save([b"held"] * len(outputs.handles), {"records": 7})
        for handle in outputs.handles:
            handle.write(b"lost")
            handle.flush()
        raise error
    return caught.value


def go_on(path="out", others=(), mark=MARK):
    with hold_outputs([path, *others]) as outputs:
        state, held = outputs.begin(mark)
        for handle in outputs.handles:
            handle.write(b"more")
        outputs.finish()
    return state, held


@pytest.mark.parametrize("error", [Killed(), SystemFault("disk"), MemoryError(), ValueError("a fault of our own")])
def test_goes_on_from_what_was_saved(error):
    leave(error, others=["list"])
    assert not Path("out").exists() and Path("out.partial/data").read_bytes() == b"goodlost"
    assert go_on(others=["list"]) == ({"records": 7}, [b"held", b"held"])
    assert Path("out").read_bytes() == Path("list").read_bytes() == b"goodmore"
    assert sorted(os.listdir()) == ["list", "out"]


@pytest.mark.parametrize("error", [DataError("bad"), UsageError("bad")])
def test_errors_that_come_again_leave_nothing(error):
    leave(error)
    assert os.listdir() == []


def test_without_a_journal_all_begins_anew():
    leave(Killed(), saved=False)
    assert os.listdir() == []
    # As kill -9 leaves it.
    Path("out.partial").mkdir()
    Path("out.partial/data").write_bytes(b"half a header")
    assert go_on() == (None, [None]) and Path("out").read_bytes() == b"more"


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_g13_interrupts_say_how_to_go_on(number, code):
    error = KeyboardInterrupt()
    error.signal_number = number
    stopped = leave(error)
    assert stopped.exit_code == code
    name = number.name
    assert str(stopped) == f"out: stopped by {name}, kept 7 records; the same command goes on from there"
    assert isinstance(leave(error, path="new", saved=False), KeyboardInterrupt) and not Path("new.partial").exists()


@pytest.mark.parametrize(
    "mark, words",
    [
        ({"the input": "x", "the options": "b"}, ": other are the input;"),
        ({"the input": "x", "the options": "y"}, ": other are the input, the options;"),
        (None, ";"),
    ],
)
def test_g23_another_run_is_refused(mark, words):
    leave(Killed())
    before = {path: path.read_bytes() for path in Path("out.partial").iterdir() if path.name != "lock"}
    with pytest.raises(UsageError) as caught:
        go_on(mark=mark)
    text = f"{os.path.realpath('out.partial')}: an unfinished run that is not this one{words} go on with that one, or "
    assert str(caught.value) == text + "delete the folder to begin anew"
    assert {path: path.read_bytes() for path in Path("out.partial").iterdir() if path.name != "lock"} == before
    # As many outputs belong to a run as it had.
    with pytest.raises(UsageError, match="that is not this one"):
        go_on(others=["list"])
    assert not Path("list.partial").exists() and go_on()[0] == {"records": 7}


@pytest.mark.parametrize("harm", ["short", "gone", "journal"])
def test_damaged_partials_are_told(harm):
    leave(Killed())
    if harm == "journal":
        Path("out.partial/journal").write_text("{")
    elif harm == "gone":
        Path("out.partial/data").unlink()
    else:
        Path("out.partial/data").write_bytes(b"goo")
    with pytest.raises(UsageError, match="to begin anew"):
        go_on()
    assert Path("out.partial/journal").exists() and not Path("out").exists()


def hold(path, connection):
    with hold_outputs([path]) as outputs:
        outputs.begin()
        connection.send(os.getpid())
        connection.recv()


def test_g24_two_at_one_output():
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=("out", theirs))
    holder.start()
    try:
        assert ours.poll(60)
        number = ours.recv()
        for path in ("out", "./out"):
            with pytest.raises(UsageError) as caught:
                go_on(path)
            assert f"{path}: process {number} on " in str(caught.value)
            assert "is writing this output; wait for it, or give another -o FILE" in str(caught.value)
        assert Path("out.partial/data").exists()
    finally:
        holder.kill()
        holder.join()
    assert go_on() == (None, [None])


def test_an_output_that_appears_meanwhile():
    with pytest.raises(UsageError, match="the output appeared while this ran"), hold_outputs(["out"]) as outputs:
        outputs.begin()
        Path("out").write_text("other")
        outputs.finish()
    assert Path("out").read_text() == "other" and os.listdir() == ["out"]
    with pytest.raises(UsageError, match="the output exists already"), hold_outputs(["out"]):
        pass
    assert os.listdir() == ["out"]


# --- G14: killed while renaming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [*range(18), 99])
def test_g14_killed_at_any_step_of_the_renames(monkeypatch, calls):
    """Old files, or new ones, and after the next start new ones: never an index beside a file that it is not of."""
    Path("out").write_text("old")
    Path("out.tbi").write_text("old index")
    Path("list").write_text("old list")
    done = []

    def dying(function):
        def call(*arguments, **options):
            if len(done) >= calls:
                raise Killed
            done.append(function)
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "fsync"):
            patch.setattr(partial.os, name, dying(getattr(os, name)))
        patch.setattr(partial.shutil, "rmtree", dying(partial.shutil.rmtree))
        try:
            with hold_outputs(["out", "list"], force=True) as outputs:
                outputs.begin(MARK)
                for handle in outputs.handles:
                    handle.write(b"new")
                index = outputs.name_aside("index.tbi")
                Path(index).write_text("new index")
                outputs.finish([(index, "out.tbi")])
            # All steps were tried.
            assert calls == 99 and len(done) <= 18
        except Killed:
            pass
    # Once it is written down, or over, the next start has new ones.
    is_sure = Path("out").read_text() == "new" or Path("out.partial/journal").exists()
    state = Path("out").read_text(), Path("out.tbi").read_text() if Path("out.tbi").exists() else None
    assert state in [("old", "old index"), ("old", None), ("new", None), ("new", "new index")]
    finish_renaming("out")
    if is_sure:
        assert Path("out").read_text() == Path("list").read_text() == "new"
        assert Path("out.tbi").read_text() == "new index"
        assert sorted(os.listdir()) == ["list", "out", "out.tbi"]
    else:
        assert (Path("out").read_text(), Path("out.tbi").read_text()) == ("old", "old index")
        assert Path("list").read_text() == "old list"


def test_names_and_links():
    long = "x" * 251 + ".vcf"
    assert len(os.path.basename(name_folder(long))) < 60
    leave(Killed(), path=long)
    assert go_on(long)[0] == {"records": 7} and Path(long).read_bytes() == b"goodmore"
    Path("link").symlink_to("real")
    leave(Killed(), path="link")
    assert Path("real.partial").is_dir()
    assert go_on("link")[0] == {"records": 7}
    assert Path("link").is_symlink() and Path("real").read_bytes() == b"goodmore"


def test_devices_cannot_be_gone_on_with(monkeypatch):
    monkeypatch.setattr(partial, "SECONDS", 0)
    with hold_outputs(["/dev/null", "list"]) as outputs:
        assert outputs.begin(MARK) == (None, [None, None]) and not outputs.is_due()
        outputs.finish()
    assert os.listdir() == ["list"]


def test_a_journal_says_what_it_is(monkeypatch):
    leave(Killed())
    journal = json.loads(Path("out.partial/journal").read_text())
    files = [{"size": 4, "held": "aGVsZA=="}]
    assert journal == {"fingerprint": MARK, "state": {"records": 7}, "files": files}
