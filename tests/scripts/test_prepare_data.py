"""Tests of scripts/prepare_data.py as a user runs it, on small phantom sets."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tfds_builder.kermany_pneumonia import dataset_dir, phantom, read_metadata

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "prepare_data.py"


@pytest.fixture(scope="module")
def chest_xray(tmp_path_factory) -> pathlib.Path:
    """A phantom set in Kaggle's layout. Tests must not change it."""
    return phantom.draw_folder(tmp_path_factory.mktemp("drawn"), 40)


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, env=os.environ | environment, timeout=60
    )


def test_prepares_prints_the_table_and_the_next_command_then_does_nothing_twice(chest_xray, tmp_path):
    arguments = (f"--source={chest_xray}", f"--data_dir={tmp_path}")
    done = run_script(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    metadata = read_metadata(dataset_dir("kermany", tmp_path))
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert rows["split"][1:6] == ["NORMAL", "BACTERIA", "VIRUS", "images", "patients"]
    for split, counts in metadata["counts"].items():
        expected = [*counts.values(), sum(counts.values()), metadata["groups"][split], metadata["rgb"][split]]
        assert rows[split][1:7] == [str(number) for number in expected]
    assert "1 left out of train and validation: byte-identical to another training image" in done.stdout
    assert "1 kept in test and marked" in done.stdout
    assert "no test split" not in done.stdout
    command = "experiments/train.py --dataset=kermany --flagfile=experiments/presets/resnet.flags --workdir=DIR"
    assert done.stdout.splitlines()[-1] == f"Next: scripts/run {command} --data_dir={tmp_path}"
    again = run_script(*arguments)
    assert again.returncode == 0
    assert "already prepared from chest_xray" in again.stdout


def test_default_data_dir_missing_test_folder_and_bad_images_are_told(chest_xray, tmp_path):
    source = tmp_path / "source"
    for folder in ("train", "val"):
        (source / folder).mkdir(parents=True)
        for label in ("NORMAL", "PNEUMONIA"):
            (source / folder / label).symlink_to(chest_xray / folder / label)
    (source / "train" / "NORMAL").unlink()
    (source / "train" / "NORMAL").mkdir()
    for path in (chest_xray / "train" / "NORMAL").iterdir():
        (source / "train" / "NORMAL" / path.name).write_bytes(path.read_bytes())
    (source / "train" / "NORMAL" / "IM-0999-0001.jpeg").write_bytes(b"no image")
    home = {"HOME": str(tmp_path), "TFDS_DATA_DIR": ""}
    refused = run_script(f"--source={source}", **home)
    assert refused.returncode == 1
    assert refused.stderr.startswith("prepare_data.py: train/NORMAL/IM-0999-0001.jpeg in source does not decode")
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "tensorflow_datasets").exists()
    done = run_script(f"--source={source}", "--skip_bad_images", **home)
    assert done.returncode == 0, done.stderr
    assert "1 bad images skipped:\n         train/NORMAL/IM-0999-0001.jpeg" in done.stdout
    assert "The source has no test folder, so there is no test split" in done.stdout
    assert "--data_dir" not in done.stdout
    assert dataset_dir("kermany", tmp_path / "tensorflow_datasets").is_dir()


@pytest.mark.slow
def test_verify_reads_everything_again(chest_xray, tmp_path):
    assert run_script(f"--source={chest_xray}", f"--data_dir={tmp_path}").returncode == 0
    good = run_script("--verify", f"--data_dir={tmp_path}")
    assert good.returncode == 0
    assert "matches its metadata: 39 images were read" in good.stdout
    shard = next(dataset_dir("kermany", tmp_path).glob("*-test.*"))
    content = bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 1000] ^= 1
    shard.write_bytes(content)
    bad = run_script("--verify", f"--data_dir={tmp_path}")
    assert bad.returncode == 1
    assert "prepare_data.py: The test split can't be read" in bad.stderr
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--source=/nowhere"], 1, "The source /nowhere does not exist."),
        (["--verify"], 1, "There is no prepared data set in"),
        (["--dataset=phantom", "--source=/nowhere"], 1, "The phantom data set is synthetic and takes no source."),
        (["--dataset=imagenet"], 2, "flag --dataset=imagenet: value should be one of <kermany|phantom>"),
        (["--skip_bad_images=perhaps"], 2, "flag --skip_bad_images=perhaps"),
        (["--datset=kermany"], 2, "Unknown command line flag 'datset'"),
        (["chest_xray.zip"], 2, "Unexpected argument chest_xray.zip"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(tmp_path, arguments, code, sentence):
    done = run_script(f"--data_dir={tmp_path / 'data'}", *arguments)
    assert done.returncode == code
    assert done.stderr.startswith(f"prepare_data.py: {sentence}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "data").exists()


def test_data_dir_that_is_a_file_is_named(tmp_path):
    (tmp_path / "data").write_text("a file")
    done = run_script("--dataset=phantom", f"--data_dir={tmp_path / 'data'}")
    assert done.returncode == 1
    assert done.stderr == f"prepare_data.py: Can't write in the data folder {tmp_path / 'data'}: Not a directory.\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_leaves_nothing_behind(tmp_path, signum):
    command = [sys.executable, SCRIPT, "--dataset=phantom", f"--data_dir={tmp_path / 'data'}"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(scratch)})
    deadline = time.monotonic() + 20
    while not list(scratch.rglob("*.jpeg")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signum
    assert errors.startswith("prepare_data.py: interrupted")
    assert not (tmp_path / "data").exists()
    assert list(scratch.rglob("*.jpeg")) == []
