"""The Typer app and the one place where an exception becomes a line on stderr and an exit code.

argv -> command file -> core function -> exit code; HybriDNAError -> `hybridna CMD: error: WHERE: WHAT; HINT`
"""

import errno
import io
import os
import re
import signal
import sys
import traceback
from importlib import import_module
from typing import Annotated

import typer

from hybridna_cli.console import LOGGER, Warnings, say
from hybridna_core.errors import Elsewhere, HybriDNAError, OutOfMemory, Stopped, SystemFault, nearest

# Command -> the module beside this one that holds it; the function or Typer sub-app is named after the module.
COMMANDS = {
    "score-variants": "score_variants",
    "embed": "embed",
    "generate": "generate",
    "merge": "merge",
    "saturate": "saturate",
    "calibrate": "calibrate",
    "verify": "verify",
    "explain": "explain",
    "pretrain": "pretrain",
    "finetune": "finetune",
    "predict": "predict",
    "leakage": "leakage",
    "evaluate": "evaluate",
    "bench": "bench",
    "models": "models",
    "doctor": "doctor",
}
# What needs less memory, per command.
LESS_MEMORY = {
    "score-variants": "a smaller --window needs less",
    "embed": "shorter regions need less",
    "finetune": "a smaller --microbatch-tokens, --checkpoint-activations, --lora or --freeze needs less",
    "predict": "a smaller --batch-size or shorter sequences need less",
    "generate": "a smaller --num-beams or --length needs less",
    "saturate": "a smaller --window needs less",
    "calibrate": "a smaller --window needs less",
    "verify": "scoring with a smaller --window needs less",
    "evaluate coding": "a smaller --window needs less",
    "evaluate effects": "a smaller --window needs less",
    "evaluate gue": "a smaller --batch-size or --freeze needs less",
    "evaluate bend": "a smaller --batch-size needs less",
    "evaluate lrb": "a smaller --batch-size or --window needs less",
    "evaluate genomic-benchmarks": "a smaller --batch-size or --freeze needs less",
    "evaluate table": "a smaller --batch-size or --freeze needs less",
    "evaluate genome": "a smaller --window needs less",
}
# typer exports no base class of its usage errors, and releases differ in whether click itself is installed.
ClickUsageError, ClickException = typer.BadParameter.__mro__[1:3]


def show_version(wanted):
    """Print name and version on stdout and leave."""
    if wanted:
        from importlib.metadata import version

        print(f"hybridna {version('hybridna')}")
        raise typer.Exit()


def build_app():
    """Put every command file into one Typer app."""
    app = typer.Typer(
        name="hybridna",
        help="Score variants, embed regions, generate DNA and train, with HybriDNA language models.",
        epilog="hybridna COMMAND --help tells the options of a command.",
        rich_markup_mode=None,
        add_completion=False,
    )

    @app.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave.")
        ] = False,
    ):
        pass

    for name, stem in COMMANDS.items():
        module = import_module(f"hybridna_cli.{stem}")
        if hasattr(module, f"{stem}_app"):
            app.add_typer(getattr(module, f"{stem}_app"), name=name)
        else:
            app.command(name)(getattr(module, stem))
    return app


def run(argv):
    """Run one command line; print errors as lines on stderr; return the exit code."""
    command = name_command(argv)
    handler = Warnings(command)
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel("INFO")
    try:
        root = typer.main.get_command(build_app())
        with root.make_context("hybridna", list(argv)) as context:
            root.invoke(context)
        flush_stdout()
        return 0
    except typer.Exit as leaving:
        return leaving.exit_code if leaving.exit_code else _flush_or_code(command)
    except BaseException as error:
        if os.environ.get("HYBRIDNA_DEBUG") == "1" and not isinstance(error, SystemExit):
            traceback.print_exc()
        return explain(command, error)
    finally:
        handler.close_counts()
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


def _flush_or_code(command):
    try:
        flush_stdout()
    except Exception as error:
        return explain(command, error)
    return 0


def name_command(argv):
    """Return the command that a command line names, `models list` included, or the empty text."""
    words = [word for word in argv if not word.startswith("-")][:2]
    if not words or words[0] not in COMMANDS:
        return ""
    return " ".join(words) if words[0] in ("models", "evaluate") else words[0]


def flush_stdout():
    """Flush standard output, so that a full disk or a gone reader shows while it can still be told."""
    if sys.stdout is not None:
        sys.stdout.flush()


def explain(command, error):
    """Print what went wrong and return the exit code that says so."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, ClickException):
        return explain_usage(command, error)
    if isinstance(error, BrokenPipeError):
        return 141
    if isinstance(error, Elsewhere):
        return error.exit_code
    known = translate(error, command)
    if known is not None:
        say(command, f"error: {known}")
        return known.exit_code
    traceback.print_exception(error)
    say(command, f"error: a fault in hybridna itself: {type(error).__name__}: {error}; {save_traceback(error)}")
    return 1


def translate(error, command=""):
    """Return the HybriDNAError that an exception in a command amounts to, or None for a fault of our own."""
    if isinstance(error, HybriDNAError):
        return error
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "signal_number", signal.SIGINT)
        return Stopped(f"stopped by {signal.Signals(number).name}", signal_number=number)
    dispatch = sys.modules.get("hybridna_kernels.dispatch")
    if dispatch is not None and isinstance(error, dispatch.KernelError):
        return SystemFault(str(error), hint="hybridna doctor lists what can be used")
    if is_out_of_memory(error):
        what = str(error).strip().splitlines()[0] if str(error).strip() else "the system gave no more memory"
        hint = LESS_MEMORY.get(command, "end other programs, or add memory")
        return OutOfMemory(f"out of memory ({what})", hint=hint)
    if isinstance(error, OSError) and error.errno is not None:
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        return SystemFault(error.strerror or os.strerror(error.errno), where=error.filename, hint=hint)
    return name_unmet_dependency(error)


def is_out_of_memory(error):
    """Say whether an exception is Python's or torch's way to run out of memory."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def name_unmet_dependency(error):
    """Return a SystemFault when a package that we need is missing or too old, else None."""
    from hybridna_core.commands.doctor import unmet_requirements

    missing = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else None
    for name, found, needed in unmet_requirements(missing):
        state = "is not installed" if found is None else f"{found} is too old"
        return SystemFault(f"{name} {state}, {needed} is needed", hint=f"pip install '{needed}'")
    return None


def explain_usage(command, error):
    """Print what click found wrong, in one line with the nearest known word, then the usage; return 2."""
    context = getattr(error, "ctx", None)
    message = error.format_message().strip().rstrip(".")
    unknown = re.search(r"No such command ['\"](.*?)['\"]", message)
    hint = None
    if unknown is not None:
        close = nearest(unknown[1], context.command.commands)
        message = f"no command called {unknown[1]!r}"
        hint = f"did you mean {close!r}?" if close else f"commands: {', '.join(context.command.commands)}"
    elif type(error).__name__ == "NoSuchOption":
        words = [word for parameter in context.command.params for word in parameter.opts if word.startswith("-")]
        close = nearest(error.option_name, words)
        message = f"no option called {error.option_name!r}"
        hint = f"did you mean {close!r}?" if close else f"{context.command_path} --help lists them"
    elif type(error).__name__ == "MissingParameter" and getattr(error.param, "envvar", None):
        message = message.partition(" (env var")[0]
        hint = f"give it, or set {error.param.envvar}"
    elif message == "Missing command" or type(error).__name__ == "NoArgsIsHelpError":
        message, hint = "missing command", f"{context.command_path} --help lists them"
    message = message[:1].lower() + message[1:]
    say(command, f"error: {HybriDNAError(message, hint=hint)}")
    if context is not None:
        print(" ".join(context.get_usage().split()), file=sys.stderr)
    return 2


def save_traceback(error):
    """Write an exception's traceback to a file in the temporary folder; return the words that tell where."""
    import tempfile

    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="hybridna-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as stream:
            stream.write(" ".join(["hybridna", *sys.argv[1:]]) + "\n")
            traceback.print_exception(error, file=stream)
        return f"please report it with {stream.name}"
    except OSError as fault:
        return f"please report it with the lines above (they could not be saved: {fault})"


class Ended(KeyboardInterrupt):
    """A signal other than SIGINT ended the run; cleaned up after as a KeyboardInterrupt."""

    def __init__(self, signal_number):
        self.signal_number = signal_number
        super().__init__()


def end(signal_number, frame):
    raise Ended(signal_number)


def prepare_process():
    """Make standard streams whole and signals into exceptions, whatever the caller left us with."""
    # A closed standard stream would lend its number to the next file that is opened.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    # The same bytes in every locale.
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors, newline="\n")
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1"):
        number = getattr(signal, name, None)
        # nohup ignores SIGHUP on purpose.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def main(argv=None):
    """Run the command line of this process and exit with its code."""
    prepare_process()
    code = run(sys.argv[1:] if argv is None else argv)
    if code != 0:
        # What is still buffered cannot be written or must not be; the interpreter would complain at its end.
        try:
            flush_stdout()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
