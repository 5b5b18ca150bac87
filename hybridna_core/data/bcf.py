"""BCF to VCF text and back, by htslib in a process of its own.

bytes in | path -> bcftools, which pysam brings along -> bytes out; a damaged file or a full pipe there cannot take this
process with it
"""

import contextlib
import json
import os
import subprocess
import sys
import threading

from hybridna_core.data.inputs import bgzf_blocks
from hybridna_core.errors import DataError

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_FAILED, _READER_GONE = 3, 141


class Transcoder:
    """A child process that turns BCF into VCF text or text into BCF.

    source   path of a BCF file, or an iterable of byte chunks that are sent to the child
    target   a function that is called, in another thread, with the child's output, an iterable of byte chunks; or None
             to read it through `chunks`
    mode     as pysam's: `w` text, `wb0` BCF, uncompressed in bgzip blocks
    regions  (contig, start, end) to fetch through the index of `source`; 0-based half-open
    name     what messages call the data
    """

    def __init__(self, source, target, mode, *, name, regions=None):
        self.name = name
        words = [mode, source if isinstance(source, str) else "-", json.dumps(regions)]
        feeds = source is None or not isinstance(source, str)
        command = [sys.executable, "-P", "-m", "hybridna_core.data.bcf", *words]
        stdin = subprocess.PIPE if feeds else subprocess.DEVNULL
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # Found as this process found them, however it was started.
        places = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, *sys.path]))}
        self.child = subprocess.Popen(command, stdin=stdin, env=places, **pipes)
        # Records that came out as text, None where BCF comes out, and whether their header did.
        self.messages, self.fault, self.records, self.is_begun = [], None, 0 if mode == "w" else None, False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._feeder = None
        if feeds and source is not None:
            self._feeder = threading.Thread(target=self._feed, args=(source,), daemon=True)
            self._feeder.start()
        self._drainer = None
        if target is not None:
            self._drainer = threading.Thread(target=self._drain, args=(target,), daemon=True)
            self._drainer.start()

    def _listen(self):
        for line in self.child.stderr:
            self.messages = [*self.messages[-9:], line.decode("utf-8", "replace").strip()]

    def _feed(self, chunks):
        try:
            with self.child.stdin as pipe:
                for chunk in chunks:
                    pipe.write(chunk)
        except BrokenPipeError:
            pass
        except Exception as error:
            self.fault = error
            self.child.terminate()

    def _drain(self, target):
        try:
            target(self.child.stdout)
        except DataError as error:
            # Cut because the child died: what it says of that is worth more.
            self.fault = error if self.child.wait() == 0 else None
        except Exception as error:
            self.fault = error
            self.child.terminate()

    def write(self, data):
        """Send bytes to the child; raise what it died of."""
        try:
            self.child.stdin.write(data)
        except BrokenPipeError:
            self.finish()
            raise

    def chunks(self):
        """Yield the child's output; raise what it died of at the end."""
        try:
            before = b"\n"
            while chunk := self.child.stdout.read1(2**20):
                text = before + chunk
                # Lines begun that are no header's; the last may have only begun.
                self.records += text.count(b"\n", 0, -1) - text.count(b"\n#")
                before, self.is_begun = chunk[-1:], True
                yield chunk
            self.finish()
        finally:
            self.stop()

    def finish(self):
        """Wait for the child to end; raise DataError or BrokenPipeError if it failed."""
        if self.child.stdin is not None and self._feeder is None:
            with contextlib.suppress(BrokenPipeError):
                self.child.stdin.close()
        if self._drainer is not None:
            self._drainer.join()
        code = self.child.wait()
        if code == 0 and self._feeder is not None:
            # Damage behind the last record shows only once all is fed.
            self._feeder.join()
        self.stop()
        if self.fault is not None:
            raise self.fault
        if code == 0:
            return
        if code == _READER_GONE:
            raise BrokenPipeError
        said = [m for m in self.messages if m] or [f"htslib ended with signal {-code}" if code < 0 else "htslib failed"]
        what = said[-1]
        if self.records is not None:
            # bcftools reads one ahead of what it writes.
            what = f"near record {self.records + 2}: {what}" if self.is_begun else "header: cannot be read"
        raise DataError(what, where=self.name, hint="is the file whole?" if self._feeder else None)

    def stop(self):
        """End the child, whatever it does, and let go of its pipes."""
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        self._listener.join()
        if self._feeder is not None:
            # It may be waiting for input that never comes, of which nobody has a use any more.
            self._feeder.join(1)
        if self._drainer is not None:
            # It may be waiting for a reader of standard output.
            self._drainer.join(1)
        for stream in (self.child.stdin, self.child.stdout, self.child.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class BcfEncoder:
    """Turns VCF lines into BCF and writes it to `sink`, anything with `write`, without compression.

    header    the VCF header, bytes
    is_begun  the header is in the sink already

    A child does the work from one `settle` to the next, since htslib holds back what it was given.
    """

    def __init__(self, header, sink, is_begun=False):
        self.header, self.sink, self.is_begun, self.child = header, sink, is_begun, None
        if not is_begun:
            self._start()

    def write(self, data):
        """Encode lines, whole ones."""
        if self.child is None:
            self._start()
        self.child.write(data)

    def _start(self):
        self.child = Transcoder(None, self._take, "wb0", name="BCF output")
        self.child.write(self.header)

    def _take(self, stream):
        skipped = b"" if self.is_begun else None
        for _, data in bgzf_blocks(stream, "BCF output", allow_missing_eof=True):
            if skipped is not None:
                # Magic, length of the header's text, text.
                skipped += data
                end = 9 + int.from_bytes(skipped[5:9], "little")
                if len(skipped) < max(end, 9):
                    continue
                data, skipped = skipped[end:], None
            self.sink.write(data)

    def settle(self):
        """See to it that all that was written is in the sink; raise what the child died of."""
        if self.child is not None:
            child, self.child = self.child, None
            child.finish()
            self.is_begun = True

    def stop(self):
        """Let go of the child, whatever it does."""
        if self.child is not None:
            self.child.stop()


def main(mode, path, regions):
    """Let bcftools copy records in the child; print what went wrong; return the exit code.

    pysam's own reader and writer would give records with symbolic alleles an END that nobody declared, and take it from
    others.
    """
    import tempfile

    import pysam.bcftools

    words, stdout = ["--no-version", "-Ob0" if mode == "wb0" else "-Ov"], os.dup(1)
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".bed") as wanted:
            if regions is not None:
                wanted.writelines(f"{contig}\t{start}\t{min(end, 2**31 - 1)}\n" for contig, start, end in regions)
                wanted.flush()
                words += ["-R", wanted.name]
            pysam.bcftools.view(*words, path, catch_stdout=False)
    except pysam.SamtoolsError as error:
        if _is_reader_gone(stdout):
            return _READER_GONE
        said = error.value.partition("stderr=")[2].split("\n")
        print(
            next((line.removeprefix("Error: ") for line in reversed(said) if line.strip()), "bcftools failed"),
            file=sys.stderr,
        )
        return _FAILED
    return _READER_GONE if _is_reader_gone(stdout) else 0


def _is_reader_gone(descriptor):
    """Tell whether a pipe has nobody at its other end: pysam hides that when it closes a file."""
    import select

    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
