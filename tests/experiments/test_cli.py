"""Tests of exit codes and error messages of commands."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        ("UserError('mend this.')", 1, "mend this."),
        ("KeyboardInterrupt()", 130, "interrupted."),
        (
            "PermissionError(errno.EACCES, 'Permission denied', 'runs/a')",
            1,
            "runs/a cannot be written: Permission denied.",
        ),
        ("OSError(errno.ENOSPC, 'No space left on device')", 1, "a file cannot be written: No space left on device."),
    ],
)
def test_what_the_user_can_mend_ends_without_a_traceback(error, code, sentence):
    program = f"""
import errno
from experiments.cli import run
from pneumojax.errors import UserError
def main():
    raise {error}
run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert sentence in done.stderr


def test_a_defect_keeps_its_traceback_and_the_exit_code_of_main_is_kept():
    program = "from experiments.cli import run\nrun(lambda: {}['missing'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "KeyError" in done.stderr
    assert done.returncode == 1
    program = "from experiments.cli import run\nrun(lambda: 7)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 7


@pytest.mark.parametrize(
    ("names", "given", "output"),
    [
        (("A", "B..."), ("1", "2"), "1 2"),
        (("A", "B..."), ("1", "2", "3"), "1 2 3"),
        (("A", "B..."), ("1",), "needs A B..., but got 1. See --help."),
        (("PATH...",), (), "needs PATH..., but got nothing. See --help."),
        (("[PATH...]",), ("1", "2"), "1 2"),
        (("[PATH...]",), (), ""),
        (("A", "B"), ("1", "2", "3"), "needs A B, but got 1 2 3. See --help."),
    ],
)
def test_the_last_positional_argument_may_repeat(names, given, output):
    program = f"from experiments.cli import run\nrun(lambda *words: print(*words), {names})"
    done = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True, cwd=ROOT)
    assert output in done.stdout + done.stderr
    assert done.returncode == ("needs" in output)
