"""The shell around every command: help, exit codes, error lines, standard streams, warnings, summaries.

argv -> run(argv) in this process, or `python -m hybridna_cli` in one of its own -> exit code, stdout, stderr
"""

import ast
import errno
import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from hybridna_cli import app, console
from hybridna_core.errors import DataError, GuardError, UsageError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = list(app.COMMANDS)


def start(*words, python=(), **options):
    """Run hybridna in a process of its own; return it completed, as text."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run([sys.executable, *python, "-m", "hybridna_cli", *words], text=True, timeout=120, **options)


def script(body, *, shell=None, **options):
    """Run a command made up here, through main(), in a process of its own."""
    text = f"""
import sys, time, os
from hybridna_cli import app
from hybridna_core import errors
def doctor():
    {body}
import hybridna_cli.doctor as module
module.doctor = doctor
app.main(["doctor"])
"""
    command = [sys.executable, "-c", text]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    if shell is not None:
        return subprocess.run(["bash", "-c", shell, "bash", *command], text=True, timeout=120, **options)
    return subprocess.run(command, text=True, timeout=120, **options)


@pytest.fixture
def failing(monkeypatch):
    """Let `hybridna doctor` raise what the test gives."""

    def arrange(error):
        def doctor():
            raise error

        monkeypatch.setattr("hybridna_cli.doctor.doctor", doctor)

    return arrange


# --- Help and usage --------------------------------------------------------------------------------------------------


def test_g28_help_and_version_are_quick_and_load_no_torch():
    # Processor time, start of the interpreter included: a busy machine only stretches the clock.
    text = (
        "import sys, time; from hybridna_cli import app\n"
        "code = app.run(sys.argv[1:])\n"
        "heavy = sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'pysam', 'rich', 'safetensors'})\n"
        "print(heavy, time.process_time(), sep='\\n')\n"
        "sys.exit(code)"
    )
    for words in (["--help"], ["--version"], ["models", "list", "--help"], *([c, "--help"] for c in COMMANDS)):
        done = subprocess.run([sys.executable, "-c", text, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stderr == "", words
        *_, heavy, seconds = done.stdout.splitlines()
        assert heavy == "[]", "heavy modules were imported"
        assert float(seconds) < 1, words


def test_help_lists_every_command(capsys):
    assert app.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in COMMANDS)
    assert app.run(["--version"]) == 0
    assert re.fullmatch(r"hybridna \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize("words, line, usage", [
    (["generat"], "hybridna: error: no command called 'generat'; did you mean 'generate'?", "hybridna [OPTIONS]"),
    (["zzzzz"], "no command called 'zzzzz'; commands: score-variants, embed, generate", "hybridna [OPTIONS]"),
    (["models", "lst"], "hybridna models lst: error: no command called 'lst'; did you mean 'list'?", "hybridna models"),
    ([], "hybridna: error: missing command; hybridna --help lists them", "hybridna [OPTIONS]"),
    (["models"], "hybridna models: error: missing command; hybridna models --help lists them", "hybridna models"),
    (["evaluate"], "hybridna evaluate: error: missing command; hybridna evaluate --help", "hybridna evaluate"),
    (["generate", "--lenght", "3"], "hybridna generate: error: no option called '--lenght'; did you mean '--length'?",
     "hybridna generate [OPTIONS]"),
    (["generate", "--qqqqqq"], "no option called '--qqqqqq'; hybridna generate --help lists them", "hybridna generate"),
    (["generate", "--length", "1e3"], "hybridna generate: error: invalid value for '--length': ", "hybridna generate"),
    (["saturate", "c:1-9"], "missing option '-f' / '--fasta-ref'; give it, or set HYBRIDNA_FASTA", "hybridna saturate"),
    (["embed", "-f", "x.fa"], "missing argument 'FILE'", "hybridna embed"),
    (["doctor", "extra"], "hybridna doctor: error: got unexpected extra argument", "hybridna doctor"),
])  # fmt: skip
def test_g27_wrong_words(capsys, monkeypatch, words, line, usage):
    monkeypatch.delenv("HYBRIDNA_FASTA", raising=False)
    assert app.run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert line in first and first.startswith("hybridna") and ": error: " in first
    assert second.startswith(f"Usage: {usage}")


def test_fasta_from_the_environment(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HYBRIDNA_FASTA", str(tmp_path / "absent.fa"))
    bed = tmp_path / "x.bed"
    bed.write_text("chr1\t0\t10\n")
    assert app.run(["embed", str(bed)]) == 5
    assert "absent.fa: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("words, line", [
    (["--threads", "0"], "--threads: is 0, must be 1 to 1,024"),
    (["--threads", "100000"], "--threads: is 100,000, must be 1 to 1,024"),
    (["--threads", "9" * 30], "--threads: is 999,999,999,999,999,999,999,999,999,999, must be 1 to 1,024"),
    (["--num-sequences", "0"], "--num-sequences: is 0, must be at least 1"),
])  # fmt: skip
def test_our_own_checks_read_like_the_others(capsys, words, line):
    assert app.run(["generate", *words]) == 2
    assert capsys.readouterr().err == f"hybridna generate: error: {line}\n"


# --- Exceptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error, code, line", [
    (UsageError("unknown key", where="run.toml", hint="mend it"), 2, "run.toml: unknown key; mend it"),
    (DataError("bad\nline", where="x.bed:3"), 3, "x.bed:3: bad line"),
    (GuardError("loss is nan", where="step 3"), 6, "step 3: loss is nan"),
    (KeyboardInterrupt(), 130, "stopped by SIGINT"),
    (app.Ended(signal.SIGTERM), 143, "stopped by SIGTERM"),
    (app.Ended(signal.SIGUSR1), 143, "stopped by SIGUSR1"),
    (MemoryError(), 137, "out of memory (the system gave no more memory); end other programs"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), 137, "out of memory (CUDA out of"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"), 137,
     "out of memory ([enforce fail"),
    (OSError(errno.ENOSPC, "No space left on device", "/x/out.vcf"), 5,
     "/x/out.vcf: No space left on device; free some space"),
    (PermissionError(errno.EACCES, "Permission denied", "ref.fa"), 5, "ref.fa: Permission denied"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "ref.fa"), 5, "ref.fa: No such file or directory"),
    (ModuleNotFoundError("No module named 'pysam'", name="pysam"), 5,
     "pysam is not installed, pysam>=0.22 is needed; pip install 'pysam>=0.22'"),
    (ModuleNotFoundError("No module named 'Bio'", name="Bio.Seq"), 5, "biopython is not installed, biopython>="),
])  # fmt: skip
def test_each_kind_is_one_line_and_its_code(capsys, failing, error, code, line):
    failing(error)
    assert app.run(["doctor"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"hybridna doctor: error: {line}")
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_out_of_memory_tells_what_needs_less(capsys, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("hybridna_core.commands.generate.generate", fail)
    assert app.run(["generate"]) == 137
    assert capsys.readouterr().err.endswith("; a smaller --num-beams or --length needs less\n")


def options_of(command, path=()):
    """Yield (words of a command, its options) of every command below one."""
    for name, child in getattr(command, "commands", {}).items():
        yield from options_of(child, (*path, name))
    if not hasattr(command, "commands"):
        yield " ".join(path), {word for parameter in command.params for word in parameter.opts}


# Options that messages of these files name, and the commands that can meet the message.
READERS = {"score-variants", "embed", "generate", "saturate", "verify", "pretrain", "evaluate genome"}
MODEL_USERS = {
    "score-variants",
    "embed",
    "generate",
    "saturate",
    "verify",
    "evaluate genome",
    "models import",
    "models check",
}
NAMED = {
    "data/inputs.py": READERS, "data/genome.py": READERS, "weight_files.py": MODEL_USERS,
    "data/regions.py": {"embed", "saturate"}, "data/variants.py": {"score-variants"}, "checkpoint.py": set(),
}  # fmt: skip


def test_messages_name_options_that_there_are():
    options = dict(options_of(typer.main.get_command(app.build_app())))
    assert "models import" in options and "--force" in options["embed"]
    every = set().union(*options.values())
    # generate reads other letters of its own accord; where they cannot be bases it marks the prompt.
    options["generate"] |= {"--other-letters"}
    for path in (ROOT / "hybridna_core").rglob("*.py"):
        texts = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        named = {
            word for text in texts if isinstance(text, str) for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
        }
        assert named <= every, path
        for command in NAMED.get(path.relative_to(ROOT / "hybridna_core").as_posix(), ()):
            assert named <= options[command], (path, command)


def test_g26_a_dependency_that_is_too_old(capsys, failing, monkeypatch):
    from hybridna_core.commands import doctor

    true = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: "2.1.0+cpu" if name == "torch" else true(name))
    failing(AttributeError("module 'torch' has no attribute 'rms_norm'"))
    assert app.run(["doctor"]) == 5
    line = "hybridna doctor: error: torch 2.1.0+cpu is too old, torch>=2.6 is needed; pip install 'torch>=2.6'\n"
    assert capsys.readouterr().err == line


def test_a_fault_of_our_own_shows_and_saves_its_traceback(capsys, failing, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(ZeroDivisionError("by zero"))
    assert app.run(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    last = err.splitlines()[-1]
    assert last.startswith("hybridna doctor: error: a fault in hybridna itself: ZeroDivisionError: by zero; please")
    saved = Path(last.rsplit(" ", 1)[1])
    assert saved.parent == tmp_path and "ZeroDivisionError: by zero" in saved.read_text()


def test_g15_the_traceback_cannot_be_saved(capsys, failing, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    failing(ZeroDivisionError("by zero"))
    assert app.run(["doctor"]) == 1
    assert "with the lines above (they could not be saved:" in capsys.readouterr().err


def test_debug_shows_the_traceback_of_a_users_mistake(capsys, failing, monkeypatch):
    failing(UsageError("wrong"))
    assert app.run(["doctor"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("HYBRIDNA_DEBUG", "1")
    assert app.run(["doctor"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_g2_a_backend_asked_for_by_name_is_an_error(capsys, monkeypatch):
    monkeypatch.setenv("HYBRIDNA_KERNELS", "ssd_scan=nonsense")
    assert app.run(["doctor"]) == 5
    err = capsys.readouterr().err
    assert "HYBRIDNA_KERNELS: no backend 'ssd_scan=nonsense'; known: ssd_scan=triton|mamba_ssm|tiles|cpu|chunked" in err


# --- Standard streams and signals ------------------------------------------------------------------------------------


def test_g10_the_reader_of_stdout_goes_away():
    done = script("print('x' * 10_000_000)", shell='"$@" | head -c 5 > /dev/null; exit ${PIPESTATUS[0]}')
    assert done.returncode == 141 and done.stderr == ""


def test_g10_also_when_it_shows_only_at_the_end():
    done = script("time.sleep(0.5); print('x')", shell='"$@" | true; exit ${PIPESTATUS[0]}')
    assert done.returncode == 141 and done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("body", ["print('x')", "print('x' * 1_000_000)"])
def test_g11_stdout_is_full(body):
    with open("/dev/full", "w") as full:
        done = script(body, stdout=full)
    assert done.returncode == 5
    assert done.stderr == "hybridna doctor: error: No space left on device; free some space\n"


def test_a_closed_stdout_or_stderr_is_no_other_file(tmp_path):
    target = tmp_path / "file"
    done = script(f"print('data', file=open({str(target)!r}, 'w')); print('lost')", shell='"$@" >&- 2>&-')
    assert done.returncode == 0 and target.read_text() == "data\n"


def test_g12_stdin_is_closed_or_a_terminal(tmp_path):
    words = ["score-variants", "-", "-f", "x.fa"]
    closed = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -m hybridna_cli {' '.join(words)} <&-"], capture_output=True, text=True
    )
    assert closed.returncode == 2
    line = "hybridna score-variants: error: -: standard input is closed; pipe data into it, or name a file\n"
    assert closed.stderr == line
    ours, theirs = pty.openpty()
    done = start(*words, stdin=theirs)
    os.close(ours), os.close(theirs)
    assert done.returncode == 2 and "standard input is a terminal; pipe data into it, or name a file" in done.stderr


@pytest.mark.parametrize("number, code", [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGUSR1, 143)
])  # fmt: skip
def test_g13_signals_end_a_command_in_order(number, code, tmp_path):
    text = """
import time
from hybridna_cli import app
from hybridna_core.data.writers import open_output
import hybridna_cli.doctor as module
def doctor():
    with open_output("out.txt") as handle:
        handle.write(b"half")
        print("ready", flush=True)
        time.sleep(60)
module.doctor = doctor
app.main(["doctor"])
"""
    child = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == code and out == ""
    assert err == f"hybridna doctor: error: stopped by {signal.Signals(number).name}\n"
    assert list(tmp_path.iterdir()) == []


def test_nohup_is_respected():
    done = script("os.kill(os.getpid(), 1); print('alive')", shell='trap "" HUP; exec "$@"')
    assert done.returncode == 0 and done.stdout == "alive\n"


# --- Surroundings ----------------------------------------------------------------------------------------------------


BARE = {"PATH": "/usr/bin:/bin"}


def test_g16_no_home_no_cache():
    done = start("models", "list", env=BARE)
    assert done.returncode == 0 and done.stderr == ""


ALONE = """
import socket, sys
def refuse(*a, **k): raise SystemExit("network was asked for")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from hybridna_cli import app
sys.exit(app.run(sys.argv[1:]))
"""


def test_g16_g20_commands_work_without_home_cache_or_network(tmp_path, toy_model_folder):
    (tmp_path / "g.fa").write_text(">chr1\n" + "ACGTTGCA" * 40 + "\n")
    (tmp_path / "r.bed").write_text("chr1\t0\t20\n")
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "v.vcf").write_text(header + "chr1\t101\t.\tT\tC\t.\t.\t.\n")
    model, files = ["-m", str(toy_model_folder), "-q"], {"g.fa", "g.fa.fai", "r.bed", "v.vcf"}
    for words in (
        ["embed", "r.bed", "-f", "g.fa", *model], ["generate", "--length", "8", "-n", "1", *model],
        ["score-variants", "v.vcf", "-f", "g.fa", "--window", "32", *model],
        ["models", "show", str(toy_model_folder)],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", ALONE, *words], capture_output=True, text=True, cwd=tmp_path, env=BARE, timeout=120
        )
        assert done.returncode == 0 and done.stdout and "error" not in done.stderr, done.stderr
        assert {p.name for p in tmp_path.iterdir()} <= files


def test_g17_any_locale_gives_the_same_bytes():
    body = "print('\\u00b5 \\udcff')"
    found = {
        script(body, env={**BARE, **more}, encoding="utf-8", errors="surrogateescape").stdout
        for more in ({}, {"LC_ALL": "C"}, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONUTF8": "0", "LC_ALL": "POSIX"})
    }
    assert found == {"µ \udcff\n"}


def test_g20_no_network_is_asked_for(tmp_path):
    text = """
import socket, sys
def refuse(*a, **k): raise SystemExit("network was asked for")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from hybridna_cli import app
sys.exit(app.run(sys.argv[1:]))
"""
    for words, code in ((["doctor"], 0), (["models", "list"], 0), (["generate", "-m", "no-such-model"], 4)):
        done = subprocess.run([sys.executable, "-c", text, *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stderr


def test_g21_optimised_python_checks_as_much():
    text = """
from hybridna_cli import app
for words in (
    ["generate", "--length", "0"], ["generate", "--seed", "-1"], ["generate", "--threads", "0"],
    ["embed", "absent.bed", "-f", "absent.fa"], ["generate", "--prompt", "AXG", "-m", "absent"],
):
    print(app.run(words))
assert False, "dropped by -O"
"""
    plain, optimised = (
        subprocess.run([sys.executable, *flag, "-c", text], capture_output=True, text=True, timeout=120)
        for flag in ([], ["-O"])
    )
    assert plain.returncode == 1 and optimised.returncode == 0
    assert plain.stdout.split() == optimised.stdout.split() == ["2", "2", "2", "5", "4"]
    assert optimised.stderr.count("error: ") == 5 and plain.stderr.startswith(optimised.stderr)


# --- Console ---------------------------------------------------------------------------------------------------------


def test_ten_warnings_of_a_kind_then_a_count(capsys, monkeypatch):
    def doctor():
        for i in range(25):
            logging.getLogger("hybridna").warning("contig %d is short", i, extra={"kind": "short-contig"})
        logging.getLogger("hybridna").warning("another", extra={"kind": "other"})

    monkeypatch.setattr("hybridna_cli.doctor.doctor", doctor)
    assert app.run(["doctor"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[:10] == [f"hybridna doctor: warning: contig {i} is short" for i in range(10)]
    assert lines[10:] == [
        "hybridna doctor: warning: another", "hybridna doctor: warning: 15 more of this kind: short-contig"
    ]  # fmt: skip
    assert not any(isinstance(h, console.Warnings) for h in logging.getLogger("hybridna").handlers)


def test_progress_in_a_log_is_a_line_now_and_then(capsys):
    now = [0.0]
    lines = console.Lines("embed", clock=lambda: now[0])
    for done in range(1, 101):
        now[0] = float(done)
        lines(done, 1000)
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "hybridna embed: 30 of 1,000 (3 %), 1/s, 16 min left" and len(err) == 3
    now[0] += 100
    lines(200)
    assert capsys.readouterr().err == "hybridna embed: 200, 1/s\n"


@pytest.mark.parametrize("seconds, text", [(4.2, "4 s"), (89, "89 s"), (600, "10 min"), (3 * 3600 + 300, "3 h 05 min")])
def test_durations(seconds, text):
    assert console.spell_time(seconds) == text


def test_closing_summary_and_its_json(capsys, tmp_path):
    path = tmp_path / "summary.json"
    table = {
        "records": 1510,
        "counts": {"ok": 1500, "ref_mismatch": 10, "bad_alt": 0},
        "seconds": 3.14159,
        "note": None,
    }
    with console.reporting("embed", False, str(path)) as report:
        report.summary = table
    err = capsys.readouterr().err
    assert err == "hybridna embed: records 1,510, ok 1,500, ref_mismatch 10, seconds 3.14\n"
    assert json.loads(path.read_text()) == table
    with console.reporting("embed", True, "-") as report:
        report.summary = table
    captured = capsys.readouterr()
    assert captured.err == "" and json.loads(captured.out) == table


def test_a_summary_replaces_a_summary_and_nothing_else(capsys, tmp_path):
    table = {"records": 1}
    path = tmp_path / "summary.json"
    for _ in range(2):
        with console.reporting("embed", True, str(path)) as report:
            report.summary = table
    for name, content in (("in.bed", "chr1\t1\t2\n"), ("ref.fa", ">a\nACGT\n")):
        (tmp_path / name).write_text(content)
        words = "is there already and is no JSON; give another name"
        with pytest.raises(UsageError, match=words), console.reporting("embed", True, str(tmp_path / name)):
            pytest.fail("work began")
        assert (tmp_path / name).read_text() == content
    # Made by the command itself.
    with pytest.raises(UsageError, match="is no JSON"), console.reporting("embed", True, str(tmp_path / "o")) as report:
        (tmp_path / "o").write_text("data")
        report.summary = table
    assert (tmp_path / "o").read_text() == "data" and json.loads(path.read_text()) == table


@pytest.mark.parametrize("words", [["generate", "-m", "no-such-model", "--summary-json"], ["doctor", "--json"]])
def test_a_summary_that_cannot_be_written_is_told_before_any_work(capsys, tmp_path, monkeypatch, words):
    monkeypatch.setattr("hybridna_core.commands.doctor.doctor", lambda: pytest.fail("work began"))
    assert app.run([*words, str(tmp_path / "no" / "s.json")]) == 5
    assert f"s.json: the folder {tmp_path}/no does not exist; make it first" in capsys.readouterr().err
    assert app.run([*words, str(tmp_path)]) == 2
    assert "the output is a folder; give a file name inside it" in capsys.readouterr().err


def test_no_summary_after_an_error(capsys, tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(DataError), console.reporting("embed", False, str(path)) as report:
        report.summary = {"records": 1}
        raise DataError("wrong")
    assert capsys.readouterr().err == "" and not path.exists()


def test_no_colour_and_no_bar_away_from_a_terminal(capsys):
    assert isinstance(console.start_progress("embed"), console.Lines)


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    bar = console.start_progress("embed")
    assert isinstance(bar, console.Bar)
    bar(1, 3)
    bar.close()
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(console.start_progress("embed"), console.Lines)


@pytest.mark.parametrize("argv, name", [
    (["models", "list"], "models list"), (["--help"], ""), (["embed", "x", "-f", "y"], "embed"), (["nothing"], ""),
    (["models", "--help"], "models"),
])  # fmt: skip
def test_the_command_that_messages_name(argv, name):
    assert app.name_command(argv) == name
