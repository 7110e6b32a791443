"""Tests of pretraining without labels: its loop and its weight file."""

import contextlib
import dataclasses
import functools
import json
import os
import signal

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from pneumojax import preprocessing, steps
from pneumojax.config import ModelConfig, config_from_dict
from pneumojax.errors import UserError
from pneumojax.evaluation.run import open_run
from pneumojax.models import make_pretraining_model
from pneumojax.models.weight_import import check_pretraining_images, load_pretrained, save_backbone
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import AXIS
from pneumojax.training import plan, pretrain
from pneumojax.training.fit import fit

FIELDS = {"image_px": 32, "cnn_widths": (4, 8), "batch_size": 32, "chunk_steps": 1, "epochs": 2}
FIELDS |= {"rotate_degrees": 0.0, "shift": 0.0, "zoom": 0.0}  # Their compilation would take longest.


@pytest.fixture(scope="module")
def config(data_dir):
    return config_from_dict(FIELDS | {"data_dir": str(data_dir)})


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["fast", "as users do"])
def compiled(request, compile_as_users_do):
    """Compiles in the way that takes least time and, in the slow tests, as users do."""
    with compile_as_users_do() if request.param else contextlib.nullcontext():
        yield


@pytest.fixture(scope="module")
def finished(config, compiled, tmp_path_factory):
    """An uninterrupted run. Tests must not change it."""
    workdir = tmp_path_factory.mktemp("backbone")
    return workdir, pretrain.pretrain(config, workdir)


def read_losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["perf/peak_memory_bytes"] > 0
    return [(row["step"], row["train/loss"]) for row in rows]


@pytest.mark.slow
def test_a_streamed_run_is_bitwise_the_resident_one(config, tmp_path, compile_as_users_do):
    streamed = config_from_dict(FIELDS | {"data_dir": config.data.data_dir, "loader": "stream"})
    with compile_as_users_do():
        results = [pretrain.pretrain(one, tmp_path / one.train.loader) for one in (config, streamed)]
    assert read_losses(tmp_path / "stream") == read_losses(tmp_path / "resident")
    assert results[0].backbone.read_bytes() == results[1].backbone.read_bytes()


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
