"""Tests of pretraining without labels: its step, its loop and its weight file."""

import dataclasses
import functools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from pneumojax import checkpoint, parallel, preprocessing, steps
from pneumojax.config import ModelConfig, config_from_dict
from pneumojax.errors import UserError
from pneumojax.evaluation.run import open_run
from pneumojax.models import make_pretraining_model
from pneumojax.models.weight_import import check_pretraining_images, load_pretrained, save_backbone
from pneumojax.optimizer import make_optimizer
from pneumojax.pretrain_steps import make_pretrain_chunk
from pneumojax.sharding import AXIS, put
from pneumojax.training import plan, pretrain
from pneumojax.training.fit import fit

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = {"image_px": 32, "cnn_widths": (4, 8), "batch_size": 32, "chunk_steps": 1, "epochs": 2}
FIELDS |= {"rotate_degrees": 0.0, "shift": 0.0, "zoom": 0.0}  # Their compilation would take longest.


@pytest.fixture(scope="module")
def config(data_dir):
    return config_from_dict(FIELDS | {"data_dir": str(data_dir)})


@pytest.fixture(scope="module", autouse=True)
def compiled_as_users_do(compile_as_users_do):
    with compile_as_users_do():
        yield


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """An uninterrupted run. Tests must not change it."""
    workdir = tmp_path_factory.mktemp("backbone")
    return workdir, pretrain.pretrain(config, workdir, count_flops=True)


def read_losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["perf/peak_memory_bytes"] > 0
    return [(row["step"], row["train/loss"]) for row in rows]


def train_steps(config, devices):
    """Returns (state, metrics) after three steps, as numpy arrays."""
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    tx = make_optimizer(config.optimizer, 10)
    chunk = make_pretrain_chunk(config, steps.make_graph(config, make_pretraining_model), tx, mesh)
    state = steps.init_state(config, tx, mesh, make_pretraining_model)
    draws = np.random.default_rng(0)
    # Images of different brightness, because normalisation would amplify rounding errors of nearly equal features.
    images = draws.normal(draws.uniform(30, 220, (64, 1, 1)), 40, (64, 32, 32)).clip(0, 255).astype(np.uint8)
    batches = draws.permutation(64)[:48].reshape(3, 16).astype(np.int32)
    arrays = put(images, mesh), parallel.put_batches(batches, config, mesh), steps.make_key(config, mesh)
    return jax.device_get(chunk(state, *arrays))


@pytest.mark.slow
def test_eight_devices_pretrain_as_one_does(config):
    changed = {"optimizer": "sgd", "learning_rate": 1e-3, "warmup": 0.0, "crop_min_area": 0.5}
    config = config_from_dict(FIELDS | changed)
    (one, one_metrics), (eight, eight_metrics) = (train_steps(config, devices) for devices in (1, 8))
    for (path, mine), other in zip(
        jax.tree_util.tree_leaves_with_path((eight, eight_metrics)), jax.tree.leaves((one, one_metrics)), strict=True
    ):
        scale = max(np.abs(other).max(), 1e-3)
        np.testing.assert_allclose(mine / scale, other / scale, atol=1e-4, err_msg=jax.tree_util.keystr(path))
    assert (one_metrics["count"] == 16).all()
    assert (one_metrics["loss"] / 16 < 1.2 * np.log(31)).all()  # By chance, one of 31 views is found.


@pytest.mark.slow
def test_a_streamed_run_is_bitwise_the_resident_one(finished, config, tmp_path):
    streamed = config_from_dict(FIELDS | {"data_dir": config.data.data_dir, "loader": "stream"})
    result = pretrain.pretrain(streamed, tmp_path)
    assert read_losses(tmp_path) == read_losses(finished[0])
    assert result.backbone.read_bytes() == finished[1].backbone.read_bytes()


def test_a_stopped_run_goes_on_bitwise_and_leaves_the_same_file(finished, config, tmp_path):
    whole, result = finished
    assert (result.step, result.trained_steps, result.backbone) == (6, 6, whole / "backbone.safetensors")

    def stop(row, total_steps):
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    first = pretrain.pretrain(config, tmp_path, report=stop)
    assert (first.stopped_by, first.backbone) == (signal.SIGTERM, None)
    assert 2 <= first.step < 6
    assert not (tmp_path / "backbone.safetensors").exists()
    assert pretrain.pretrain(config, tmp_path).trained_steps == 6 - first.step
    assert read_losses(tmp_path) == read_losses(whole)
    assert (tmp_path / "backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()
    assert pretrain.pretrain(config, tmp_path).trained_steps == 0


def test_neither_labels_nor_other_splits_are_read(finished, config, tmp_path, monkeypatch):
    load = plan.load_split

    def load_train_without_labels(data, name):
        assert name == "train"
        split = load(data, name)
        return dataclasses.replace(split, subtypes=np.zeros_like(split.subtypes), patient_ids=split.patient_ids[::-1])

    monkeypatch.setattr(plan, "load_split", load_train_without_labels)
    pretrain.pretrain(config, tmp_path)
    assert (tmp_path / "backbone.safetensors").read_bytes() == (finished[0] / "backbone.safetensors").read_bytes()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"model": "cnn"}, id="cnn", marks=pytest.mark.slow),
        pytest.param({"model": "vgg16", "vgg_width": 2, "vgg_dense_widths": []}, id="vgg16", marks=pytest.mark.slow),
    ],
)
def test_the_backbone_gives_the_same_features_in_the_network_that_starts_from_it(tmp_path, fields):
    mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,))
    config = config_from_dict(FIELDS | fields)
    tx = make_optimizer(config.optimizer, 1)
    state = jax.device_get(steps.init_state(config, tx, mesh, make_pretraining_model))
    draws = np.random.default_rng(0)  # With the initial zeros and ones, missing statistics would not be detected.
    variables = jax.tree.map(lambda leaf: leaf + draws.random(leaf.shape, np.float32), state.eval_variables())
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, config.model, variables, "fingerprint")
    tuned = config_from_dict(FIELDS | fields | {"pretrained": str(path)})
    fresh = jax.device_get(steps.init_state(tuned, tx, mesh)).eval_variables()
    loaded = load_pretrained(path, tuned.model, fresh, preprocessing.PIXEL_MEAN, preprocessing.PIXEL_STD)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"]["head"], fresh["params"]["head"])
    images = draws.normal(size=(2, 32, 32, 1)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def extract(graph, variables):
        return nnx.merge(graph, variables["params"], variables["batch_stats"]).extract(images, train=False)

    features = [
        extract(steps.make_graph(config, make_pretraining_model), variables),
        extract(steps.make_graph(tuned), loaded),
    ]
    assert np.abs(features[0]).max() > 0.1
    np.testing.assert_allclose(features[1], features[0], rtol=1e-5, atol=1e-5)


def test_another_network_or_width_is_refused_with_the_flags_that_fit(finished, config, tmp_path):
    path = finished[1].backbone
    with pytest.raises(UserError, match=r"backbone\.safetensors holds the backbone of a cnn: give --model=cnn\."):
        load_pretrained(path, ModelConfig(model="resnet18"), {}, preprocessing.PIXEL_MEAN, preprocessing.PIXEL_STD)
    wider = FIELDS | {"data_dir": config.data.data_dir, "pretrained": str(path), "cnn_widths": [4, 16]}
    with pytest.raises(UserError, match=r"holds the backbone of another cnn: give --cnn_widths=4,8\."):
        fit(config_from_dict(wider), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_classifier_and_a_pretraining_keep_out_of_each_others_folders(finished, config):
    workdir, _ = finished
    with pytest.raises(UserError, match="it trained a backbone, this one a classifier"):
        fit(config, workdir)
    with pytest.raises(UserError, match=r"holds a backbone without a classifier.*--pretrained=\S+/backbone\.sa"):
        open_run(workdir)


def test_a_backbone_of_other_training_images_is_told(finished, config, caplog):
    path = finished[1].backbone
    check_pretraining_images(path, plan.load_split(config.data, "train").fingerprint)
    assert not caplog.records
    check_pretraining_images(path, "another")
    assert "was pretrained on another training split" in caplog.text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": "mlp"}, "pretraining needs model=cnn, vgg16, resnet18, resnet34, resnet50, not mlp"),
        ({"model": "vgg16", "vgg_width": 2}, "only a backbone is pretrained, and vgg16 has dense layers"),
        ({"parallel": "shard_map"}, "pretraining needs parallel=jit, not shard_map"),
        ({"parallel": "pmap"}, "pretraining needs parallel=jit, not pmap"),
        ({"batch_size": 12}, "batch_size 12 is not divisible by the 8 devices"),
    ],
)
def test_what_cannot_be_pretrained_is_refused_before_anything_is_written(config, tmp_path, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        pretrain.pretrain(config_from_dict(FIELDS | {"data_dir": config.data.data_dir} | fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def run(*words):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_script_ends_with_a_command_that_trains_on_the_backbone(data_dir, tmp_path):
    tiny = [f"--data_dir={data_dir}", "--image_px=32", "--epochs=1"]
    done = run("experiments/pretrain.py", f"--workdir={tmp_path / 'a b'}", "--model=vgg16", "--vgg_width=2", *tiny)
    assert done.returncode == 0, done.stderr
    start, *words = shlex.split(done.stdout.splitlines()[-1].removeprefix("Next: "))
    assert start == "scripts/run"
    trained = run(*words, "--epochs=1", "--vgg_dense_widths=")
    assert trained.returncode == 0, trained.stderr
    run_of = checkpoint.read_run(tmp_path / "a b_tuned" / "config.json")
    assert len(run_of["pretrained_sha256"]) == 64
    refused = run("experiments/pretrain.py", "--task=three_class")
    assert refused.returncode == 1
    assert "Unknown command line flag 'task'" in refused.stderr
