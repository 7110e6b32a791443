"""Tests of checkpoints: which are kept, where they can be opened, and which raise errors."""

import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from pneumojax import checkpoint, parallel, steps
from pneumojax.config import config_from_dict, config_to_dict
from pneumojax.errors import UserError
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import AXIS, put, replicated

FIELDS = {"image_px": 32, "cnn_widths": (4, 8), "ema_decay": 0.9, "batch_size": 16}
FIELDS |= {"rotate_degrees": 0.0, "shift": 0.0, "zoom": 0.0}  # Their compilation would take longest.
RUN = {
    "config": config_to_dict(config_from_dict(FIELDS)),
    "class_names": ["NORMAL", "PNEUMONIA"],
    "data": {"fingerprint": "f1", "fingerprints": {"train": "t1"}},
}


def make_mesh(devices):
    return Mesh(np.array(jax.devices()[:devices]), (AXIS,))


def init_state(devices=1, **fields):
    config = config_from_dict(FIELDS | fields)
    return make_init(config, devices)(jax.random.key(config.train.seed))


@functools.cache
def make_init(config, devices):
    return steps.make_init(config, make_optimizer(config.optimizer, 100), make_mesh(devices))


def save(workdir, states, scores):
    """Saves each state at steps 10, 20, ..."""
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        for i, (state, score) in enumerate(zip(states, scores, strict=True)):
            checkpoint.save_checkpoint(checkpoints, 10 * (i + 1), state, RUN, score)


def restore(workdir, fresh, devices):
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        return checkpoint.restore_state(checkpoints, 10, fresh, make_mesh(devices))


def assert_equal(ours, theirs):
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([0.5, 0.9, 0.7, 0.6], [20, 40], 20),
        ([0.5, 0.6, 0.7], [30], 30),
        ([0.9, 0.9, 0.8], [20, 30], 20),  # the later of two equal ones
        ([0.9, None, None], [10, 30], 10),  # saved between validations
        ([None, None], [20], None),
    ],
)
def test_the_latest_and_the_best_are_kept_and_no_others(tmp_path, scores, kept, best):
    save(tmp_path, [init_state()] * len(scores), scores)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        found = checkpoint.find_best(checkpoints)
    assert found == (best and (best, scores[best // 10 - 1]))
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == kept
    _, _, step = checkpoint.load_run(tmp_path, "best")
    assert step == (best or kept[-1])
    assert checkpoint.load_run(tmp_path, "latest")[2] == kept[-1]


@pytest.mark.parametrize("fields", [{}, {"model": "mlp", "mlp_widths": (8,), "ema_decay": None, "optimizer": "sgd"}])
@pytest.mark.parametrize(("saved_on", "opened_on"), [(8, 1), (1, 8), (8, 8)])
def test_a_state_comes_back_bitwise_on_other_devices(tmp_path, fields, saved_on, opened_on):
    state = init_state(saved_on, **fields)
    save(tmp_path, [state], [0.5])
    fresh = init_state(opened_on, **fields | {"seed": 1})
    restored = restore(tmp_path, fresh, opened_on)
    assert jax.tree.structure(restored) == jax.tree.structure(fresh)
    assert_equal(restored, state)
    for leaf, other in zip(jax.tree.leaves(restored), jax.tree.leaves(fresh), strict=True):
        assert leaf.dtype == other.dtype
        assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)
    run, variables, _ = checkpoint.load_run(tmp_path, "best")
    assert run == RUN
    assert_equal(variables, state.eval_variables())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))


def open_on_one_device(workdir):
    """Runs in a process with one device."""
    assert jax.device_count() == 1
    _, variables, _ = checkpoint.load_run(pathlib.Path(workdir), "best")
    np.savez(pathlib.Path(workdir) / "opened.npz", *jax.tree.leaves(variables))
    state = init_state()
    save(pathlib.Path(workdir) / "of_one", [state], [0.5])
    np.savez(pathlib.Path(workdir) / "saved.npz", *jax.tree.leaves(jax.device_get(state)))


def test_a_process_of_one_device_opens_what_eight_saved_and_the_other_way_round(tmp_path, processes):
    state = init_state(8)
    save(tmp_path, [state], [0.5])
    process = processes.Process(target=open_on_one_device, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert_equal(list(np.load(tmp_path / "opened.npz").values()), jax.tree.leaves(state.eval_variables()))
    restored = restore(tmp_path / "of_one", init_state(8, seed=1), 8)
    assert_equal(jax.tree.leaves(restored), list(np.load(tmp_path / "saved.npz").values()))


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_saving_beside_training_does_not_see_the_donated_memory(tmp_path, devices):
    # Large enough that writing takes longer than the steps that reuse the memory.
    config = config_from_dict(FIELDS | {"model": "mlp", "mlp_widths": (1024, 512), "chunk_steps": 1})
    mesh = make_mesh(devices)
    tx = make_optimizer(config.optimizer, 100)
    chunk = steps.make_train_chunk(config, steps.make_graph(config), tx, np.ones(2, np.float32), mesh)
    state = steps.init_state(config, tx, mesh)
    draws = np.random.default_rng(0)
    images = put(draws.integers(0, 256, (16, 32, 32)).astype(np.uint8), mesh)
    labels = put(np.arange(16, dtype=np.int32) % 2, mesh)
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    batches = parallel.put_batches(np.arange(16, dtype=np.int32)[None], config, mesh)
    state, _ = chunk(state, images, labels, batches, key)
    copy = jax.tree.map(lambda leaf: np.array(leaf), state)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoint.save_checkpoint(checkpoints, 10, state, RUN, 0.5)
        for _ in range(5):
            state, _ = chunk(state, images, labels, batches, key)
        jax.block_until_ready(state)
    restored = restore(tmp_path, steps.init_state(config, tx, mesh), devices)
    assert_equal(restored, copy)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)


# Files of Orbax that are not read when a checkpoint is opened.
UNREAD = ("commit_success.txt", "_CHECKPOINT_METADATA")


@pytest.mark.parametrize(
    "how",
    [
        "one byte flipped",
        pytest.param("cut short", marks=pytest.mark.slow),
        pytest.param("gone", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_named_or_does_no_harm(tmp_path, how):
    state = init_state()
    save(tmp_path, [state], [0.5])
    files = [path for path in sorted((tmp_path / "checkpoints").rglob("*")) if path.is_file()]
    refusals = {}
    for path in (path for path in files if path.name not in UNREAD):
        content = path.read_bytes()
        damage(path, how)
        try:
            run, variables, step = checkpoint.load_run(tmp_path, "best")
        except UserError as error:
            refusals[path.relative_to(tmp_path / "checkpoints" / "10").parts[0]] = str(error)
        else:
            assert (run, step) == (RUN, 10)
            assert_equal(variables, state.eval_variables())
        path.write_bytes(content)
    assert {"state", "run", "checksum"} <= set(refusals)
    assert all(str(tmp_path / "checkpoints") in sentence and "damaged" in sentence for sentence in refusals.values())
    assert all("Delete the folder of that step" in refusals[item] for item in ("state", "run", "checksum"))


def test_the_checksum_is_that_of_names_and_contents():
    # Another one would make all earlier checkpoints damaged.
    arrays = {"a": {"b": np.arange(3, dtype=np.float32)}, "c": [np.int32(7)]}
    content = b"a/b" + np.arange(3, dtype=np.float32).tobytes() + b"c/0" + np.int32(7).tobytes()
    assert checkpoint._compute_checksum(arrays) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("checksum", ["0" * 64, "f" * 64])
def test_arrays_with_another_checksum_are_refused(tmp_path, monkeypatch, checksum):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_compute_checksum", lambda arrays: checksum)
        save(tmp_path, [init_state()], [0.5])
    with pytest.raises(UserError, match="its arrays are not those that were saved"):
        checkpoint.load_run(tmp_path, "best")


@pytest.mark.parametrize("which", ["best", "latest"])
def test_a_checkpoint_that_training_removes_while_it_is_read_is_replaced_by_the_next(tmp_path, monkeypatch, which):
    states = [init_state(), init_state(seed=1)]
    save(tmp_path, states[:1], [0.5])
    load_arrays, loaded = checkpoint._load_arrays, []

    def remove_first(checkpoints, step):
        loaded.append(step)
        if len(loaded) == 1:
            with checkpoint.open_checkpoints(tmp_path) as training:
                checkpoint.save_checkpoint(training, 20, states[1], RUN, 0.6)
            assert not (tmp_path / "checkpoints" / "10").exists()
        return load_arrays(checkpoints, step)

    monkeypatch.setattr(checkpoint, "_load_arrays", remove_first)
    _, variables, step = checkpoint.load_run(tmp_path, which)
    assert (loaded, step) == ([10, 20], 20)
    assert_equal(variables, states[1].eval_variables())


def test_a_read_that_fails_while_training_saves_is_repeated(tmp_path, monkeypatch):
    state = init_state()
    save(tmp_path, [state], [0.5])
    load_arrays, loaded = checkpoint._load_arrays, []

    def fail_first(checkpoints, step):
        loaded.append(step)
        if len(loaded) == 1:
            with checkpoint.open_checkpoints(tmp_path) as training:
                checkpoint.save_checkpoint(training, 20, state, RUN, 0.4)
            raise UserError("half of it is removed")
        return load_arrays(checkpoints, step)

    monkeypatch.setattr(checkpoint, "_load_arrays", fail_first)
    assert checkpoint.load_run(tmp_path, "best")[2] == 10
    assert loaded == [10, 10]


def test_a_checkpoint_of_another_network_is_refused_with_the_first_name_that_differs(tmp_path):
    save(tmp_path, [init_state()], [0.5])
    with pytest.raises(UserError, match=r"checkpoints/10.*norm2/mean has shape \(8,\), the network needs \(16,\)"):
        restore(tmp_path, init_state(cnn_widths=(4, 16)), 1)
    with pytest.raises(UserError, match="batch_stats/norm1/mean has shape .*, the network needs None"):
        restore(tmp_path, init_state(model="mlp", mlp_widths=(4,)), 1)


def test_a_folder_without_checkpoints_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints. Train a run there first"):
        checkpoint.load_run(tmp_path / "nothing", "best")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no finished checkpoint yet"):
        checkpoint.load_run(tmp_path, "best")


def test_another_config_is_refused_with_each_field_and_both_values(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RUN))
    checkpoint.check_same_run(path, RUN)
    other = RUN | {"config": RUN["config"] | {"seed": 3, "cnn_widths": [4, 16], "data_dir": "/elsewhere"}}
    with pytest.raises(UserError) as refusal:
        checkpoint.check_same_run(path, other)
    assert "cnn_widths was [4, 8], is [4, 16]; seed was 0, is 3." in str(refusal.value)
    assert "data_dir" not in str(refusal.value).split("Use another")[0]
    with pytest.raises(UserError, match="the data was f1, is f2"):
        checkpoint.check_same_run(path, RUN | {"data": {"fingerprint": "f2"}})


def test_other_pretrained_weights_are_refused_where_both_are_known(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RUN | {"pretrained_sha256": "abc"}))
    checkpoint.check_same_run(path, RUN | {"pretrained_sha256": "abc"})
    checkpoint.check_same_run(path, RUN)
    with pytest.raises(UserError, match="the content of .* was abc, is def"):
        checkpoint.check_same_run(path, RUN | {"pretrained_sha256": "def"})


def test_a_run_from_before_a_field_existed_had_its_default(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RUN | {"config": {k: v for k, v in RUN["config"].items() if k != "mixup_alpha"}}))
    checkpoint.check_same_run(path, RUN)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 3}', '{"config": {"layers": 3}}', "\x00"])
def test_a_config_json_that_is_damaged_or_foreign_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged or not of a run of pneumojax"):
        checkpoint.check_same_run(path, RUN)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    good = init_state()
    bad = dataclasses.replace(good, params=jax.tree.map(lambda leaf: leaf * np.nan, good.params))
    with pytest.raises(UserError, match="not finite at step 20"):
        save(tmp_path, [good, bad], [0.5, None])
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        assert list(checkpoints.all_steps()) == [10]


@pytest.mark.parametrize("item", ["10", "state", "checksum", "run"])
def test_a_folder_that_cannot_be_created_ends_the_save_and_leaves_no_thread(tmp_path, monkeypatch, item):
    mkdir, threads = os.mkdir, set(threading.enumerate())

    def fail(path, *arguments, **options):
        if os.fspath(path).endswith(f"/{item}.orbax-checkpoint-tmp"):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", fail)
    with pytest.raises(UserError, match="cannot be written .*No space left on device.* Free disk space"):
        save(tmp_path, [init_state()], [0.5])
    waiting = [thread for thread in set(threading.enumerate()) - threads if type(thread).__name__ == "_SignalingThread"]
    for thread in waiting:
        thread.join(1)
    assert not any(thread.is_alive() for thread in waiting)  # At exit, Python would wait for it.


@pytest.mark.parametrize(("reason", "closes"), [("Gloo all-reduce failed", False), ("out of memory", True)])
def test_where_another_process_is_lost_nobody_waits_for_its_part_of_a_save(tmp_path, monkeypatch, reason, closes):
    closed = []

    def fail(checkpoints):
        monkeypatch.setattr(checkpoints, "close", lambda: closed.append(True))
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        raise RuntimeError(reason)

    with pytest.raises(RuntimeError, match=reason), checkpoint.open_checkpoints(tmp_path) as checkpoints:
        fail(checkpoints)
    assert bool(closed) == closes
