"""Tests that a decoder that crashes, hangs or fills the memory costs one file, and leaves no process behind."""

import concurrent.futures
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from encoded_images import encode, smooth_pixels

from pneumojax.data import decoder_process
from pneumojax.data.decoder_process import Decoders
from pneumojax.data.image_files import read_image

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom warns about values that contradict the standard.

# A process whose decoder does what the bytes of the file say.
HOSTILE = """
import ctypes, os, signal, time
import numpy as np
from pneumojax.data import decoder_process
from pneumojax.data.image_files import read_image

def read(data, *size):
    if data in ACTS:
        ACTS[data]()
    return read_image(data, *size)

ACTS = {
    b"segmentation fault": lambda: ctypes.string_at(0),
    b"abort": os.abort,
    b"exit": lambda: os._exit(3),
    b"kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"loop": lambda: [None for _ in iter(int, 1)],
    b"native loop": lambda: ctypes.PyDLL(None).sleep(1000),
    b"memory": lambda: [np.empty(1 << 24) for _ in range(1000)],
    b"defect": lambda: {}["a"],
    b"print": lambda: os.write(1, b"noise") + os.write(2, b"noise"),
}
decoder_process.read_image = read
decoder_process.SECONDS = 1
decoder_process.MEMORY_BYTES = 2 << 30
decoder_process.serve()
"""

SIZES = [(16, "squeeze"), (24, "pad")]


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    processes = []
    start = decoder_process._start
    monkeypatch.setattr(decoder_process, "_start", lambda: processes.append(start()) or processes[-1])
    return processes


def check_reads(decoders, data):
    for image, size in zip(decoders.read(data, SIZES), SIZES, strict=True):
        expected = read_image(data, *size)
        np.testing.assert_array_equal(image.pixels, expected.pixels)
        assert (image.notices, image.is_colour) == (expected.notices, expected.is_colour)


ERRORS = {
    b"segmentation fault": "its decoder crashed (SIGSEGV)",
    b"abort": "its decoder crashed (SIGABRT)",
    b"kill": "its decoder crashed (SIGKILL)",
    b"exit": "its decoder crashed (exit code 3)",
    b"loop": "decoding it took longer than 1 s",
    b"native loop": "decoding it took longer than 1 s",
    b"memory": "decoding it needs more than 2 GiB of memory",
    b"defect": "it cannot be decoded (KeyError('a'))",
    b"print": "it is neither JPEG, PNG, TIFF, GIF, BMP, WEBP nor DICOM",
    b"": "it is empty",
}


def test_a_hostile_file_is_an_error_and_the_next_one_is_read(monkeypatch, started, capfd):
    monkeypatch.setattr(decoder_process, "PROGRAM", HOSTILE)
    monkeypatch.setattr(decoder_process, "SECONDS", 1)
    with Decoders() as decoders:
        for act, message in ERRORS.items():
            if act == b"memory" and sys.platform == "darwin":  # It has no limit of the memory.
                continue
            before = len(started)
            with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
                decoders.read(act, SIZES)
            check_reads(decoders, encode(smooth_pixels(40, 50), "BMP"))
            assert len(started) - max(before, 1) == ("crashed" in message or "longer" in message), act
    assert all(process.poll() is not None for process in started)
    assert capfd.readouterr() == ("", "")


def test_jpeg_and_png_start_no_process_and_a_dicom_file_that_looks_like_one_does(started):
    with Decoders() as decoders:
        for format in ("JPEG", "PNG"):
            data = encode(smooth_pixels(40, 50), format)
            check_reads(decoders, data)
            with pytest.raises(OSError, match="."):
                decoders.read(data[:300], SIZES)
        assert not started
        with pytest.raises(OSError, match="."):
            decoders.read(data[:128].ljust(128) + b"DICM", SIZES)
        assert len(started) == 1


def test_threads_read_in_processes_of_their_own(started):
    files = [encode(smooth_pixels(40, 50, seed), "BMP") for seed in range(40)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool, Decoders() as decoders:
        list(pool.map(lambda data: check_reads(decoders, data), files))
    assert 1 <= len(started) <= 2
    assert all(process.poll() is not None for process in started)


def test_the_end_of_the_block_ends_what_is_being_read(monkeypatch, started):
    monkeypatch.setattr(decoder_process, "PROGRAM", HOSTILE.replace("SECONDS = 1", "SECONDS = 1000"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with Decoders() as decoders:
            hanging = pool.submit(decoders.read, b"native loop", SIZES)
            while not started:
                time.sleep(0.01)
        assert isinstance(hanging.exception(timeout=30), OSError)
    assert started[0].poll() is not None
    with pytest.raises(OSError, match="the command was stopped"):
        decoders.read(b"print", SIZES)
    assert len(started) == 1


def test_no_process_outlives_a_command_that_is_killed(tmp_path):
    """One process is idle; the other one runs a decoder that hangs."""
    program = f"""
        import threading, time
        from pneumojax.data import decoder_process
        decoder_process.PROGRAM = {HOSTILE!r}
        decoders = decoder_process.Decoders()
        threading.Thread(target=decoders.read, args=(b"native loop", [(16, "squeeze")])).start()
        while not decoders._busy:
            time.sleep(0.01)
        try:
            decoders.read(b"no image", [(16, "squeeze")])
        except OSError:
            print(*(process.pid for process in (*decoders._idle, *decoders._busy)), flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(decoder_process.__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(pids) in (1, 2)
    end = time.monotonic() + 30
    while any(map(is_running, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = pathlib.Path(f"/proc/{pid}/stat")  # An ended process may stay as a zombie if nothing collects it.
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def read_reason(data):
    """Returns why a file cannot be read, or None."""
    try:
        read_image(data, 16)
    except OSError as error:
        return error.strerror or str(error)


def test_every_readable_example_of_dicom_gives_the_same_pixels_in_a_process(started):
    pydicom = pytest.importorskip("pydicom", reason="DICOM files need the extra dicom")
    paths = sorted(pathlib.Path(pydicom.data.__file__).parent.glob("test_files/*.dcm"))
    if not paths:
        pytest.skip("the installed pydicom has no example files")
    read = 0
    with Decoders() as decoders:
        for path in paths:
            data = path.read_bytes()
            expected = read_reason(data)
            if expected is None:
                read += 1
                check_reads(decoders, data)
            else:
                with pytest.raises(OSError, match=f"^{re.escape(expected)}$"):
                    decoders.read(data, SIZES)
    assert read > 40 and len(started) == 1
