"""Reads image files so that a decoder that crashes, hangs or fills the memory costs one file and not the whole command.

JPEG and PNG files are decoded by Pillow in this process, as in training. The decoders of the other formats are tested
less, above all those of DICOM files. They run in processes of their own, which start when the first such file comes.
"""

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from pneumojax.data.dicom import is_dicom
from pneumojax.data.image_files import SIGNATURES, ReadImage, read_image

# Limits of a process for one file. The largest allowed images take up to 13 s (JPEG-LS) and 1.7 GiB (YCbCr).
SECONDS = 60
MEMORY_BYTES = 4 << 30

# The first bytes of JPEG and PNG files.
JPEG_OR_PNG = (*SIGNATURES["JPEG"], *SIGNATURES["PNG"])

# What a process runs.
PROGRAM = "from pneumojax.data.decoder_process import serve; serve()"


class Decoders:
    """Reads image files of any format. It can be used by several threads, and has at most one process for each.

    It is a context manager, which calls `close` at the end of its block.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen] = []
        self._busy: set[subprocess.Popen] = set()
        self._is_closed = False

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills the processes. Threads that still read get an OSError."""
        with self._lock:
            self._is_closed = True
            for process in self._busy:  # The thread that waits for it closes its pipes.
                process.kill()
            while self._idle:
                _end(self._idle.pop())

    def read(self, data: bytes, sizes: Sequence[tuple[int, str]]) -> list[ReadImage]:
        """Reads a file as one or more squares.

        Args:
          data: the bytes of the file.
          sizes: (image_px, resize) of each wanted square, as in `image_files.read_image`.

        Returns:
          The image at each size.

        Raises:
          OSError: the file cannot be read, for a reason of `image_files.read_image` or because its decoder crashed or
            exceeded SECONDS or MEMORY_BYTES. The message does not name the file.
        """
        if data.startswith(JPEG_OR_PNG) and not is_dicom(data):
            return _read(data, sizes)
        reply = self._ask(pickle.dumps((data, sizes)))
        if isinstance(reply, str):
            raise OSError(reply)
        return reply

    def _ask(self, request: bytes) -> Any:
        """Returns the reply of a process, which is then idle again or has ended."""
        with self._lock:
            if self._is_closed:
                raise OSError("the command was stopped")
            process = self._idle.pop() if self._idle else _start()
            self._busy.add(process)
        assert process.stdin and process.stdout
        reply = None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            reply = pickle.load(process.stdout)
        except Exception as error:
            if not isinstance(error, (OSError, EOFError)):  # The process has not ended, but its reply is damaged.
                process.kill()
            reply = _describe_end(process.wait())
        finally:  # After a KeyboardInterrupt, the process would still send its reply.
            with self._lock:
                self._busy.remove(process)
                if reply is None or process.returncode is not None or self._is_closed:
                    _end(process)
                else:
                    self._idle.append(process)
        return reply


def _start() -> subprocess.Popen:
    """Starts a process that answers requests. Ctrl-C in the terminal does not reach it."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # Decoders print what they find in damaged files.
        process_group=0,
        # The threads of OpenBLAS would count as memory.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
    )


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe
        with contextlib.suppress(OSError):  # A part of a request may be left.
            pipe.close()


def _describe_end(code: int) -> str:
    """Returns why a process has ended, from its exit code or, if it is negative, the signal that killed it."""
    if code == -signal.SIGALRM:
        return f"decoding it took longer than {SECONDS} s"
    return f"its decoder crashed ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


def serve() -> None:
    """Reads files for a `Decoders` in another process, until that ends. It uses standard input and output."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a decoder prints must not be in a reply.
    with contextlib.suppress(OSError, ValueError):  # macOS has no limit of the memory.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    while True:
        try:
            data, sizes = pickle.load(requests)
        except EOFError:
            return
        # The signal SIGALRM kills the process, even while it runs a decoder that is not written in Python.
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        reply: Any
        try:
            reply = _read(data, sizes)
        except OSError as error:
            reply = error.strerror or str(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pickle.dump(reply, replies)
        replies.flush()


def _read(data: bytes, sizes: Sequence[tuple[int, str]]) -> list[ReadImage]:
    try:
        return [read_image(data, *size) for size in sizes]
    except Exception as error:
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            raise OSError(f"decoding it needs more than {MEMORY_BYTES >> 30} GiB of memory") from error
        if isinstance(error, OSError):
            raise
        raise OSError(f"it cannot be decoded ({error!r})") from error  # A defect of a decoder.
