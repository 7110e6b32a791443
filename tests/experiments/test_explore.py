"""Tests of experiments/explore.py."""

import json

import pytest
from forked import run_script

from pneumojax.data.dataset import SUBTYPES


def test_script_prints_the_facts_and_the_next_command(data_dir, processes, tmp_path):
    arguments = (f"--data_dir={data_dir}", "--image_px=32", f"--output={tmp_path / 'pictures'}")
    done = run_script(processes, tmp_path, "experiments/explore.py", *arguments)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    (metadata,) = (json.loads(path.read_text()) for path in data_dir.rglob("metadata.json"))
    for name in SUBTYPES:
        numbers = [str(of[name]) for of in metadata["counts"].values()]
        assert [name, *numbers] in [line.split() for line in text.splitlines()]
    assert text.rstrip().endswith(f"Next: scripts/run experiments/train.py --dataset=phantom --data_dir={data_dir}")
    assert (tmp_path / "pictures" / "explore.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset=kermany", "--data_dir={tmp}/empty"], "kermany is not prepared in"),
        (["--image_px=8"], "image_px must be at least 16, not 8."),
        (["--output={tmp}/file", "--data_dir={data}", "--image_px=32"], "/file cannot be written: File exists."),
    ],
)
def test_what_the_user_can_mend_ends_in_a_sentence_and_leaves_nothing(data_dir, processes, tmp_path, arguments, words):
    (tmp_path / "file").touch()
    given = [one.format(tmp=tmp_path, data=data_dir) for one in arguments]
    done = run_script(processes, tmp_path, "experiments/explore.py", f"--output={tmp_path / 'out'}", *given)
    assert done.returncode == 1
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
