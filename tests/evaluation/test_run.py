"""Tests of opened runs: their predictions are those of the network, and damaged runs are refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from source_files import edit_metadata

from pneumojax.data.augment import make_augment
from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import open_run
from pneumojax.models import make_model
from pneumojax.sharding import AXIS


def with_eval_batch_size(run, size):
    train = dataclasses.replace(run.config.train, eval_batch_size=size)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, train=train))


@functools.partial(jax.jit, static_argnums=0)
def apply_network(config, variables, images):
    """Returns the network's outputs for images with pixels 0..1."""
    model = make_model(config.model, config.data.image_px, jax.random.key(0))
    nnx.update(model, variables["params"], variables["batch_stats"])
    return model((images[..., None] - 0.5) / 0.25, train=False)


@pytest.mark.parametrize(("task", "devices"), [("binary", 1), ("binary", 8), ("three_class", 8)])
def test_logits_are_those_of_the_network_for_any_batch_and_number_of_devices(trained, monkeypatch, task, devices):
    run = open_run(trained[task])
    images = load_split(run.config.data, "test").images
    plain = np.asarray(apply_network(run.config, run.variables, np.float32(images) / 255))
    if task == "binary":
        plain = np.concatenate([np.zeros_like(plain), plain], axis=1)
    monkeypatch.setattr("pneumojax.evaluation.run.make_mesh", lambda: Mesh(np.array(jax.devices()[:devices]), (AXIS,)))
    for size in (1, 7, 1000):
        logits = with_eval_batch_size(run, size).predict(images)
        np.testing.assert_allclose(logits, plain, atol=1e-5, err_msg=str(size))
    one = run.predict(images[3:4])
    np.testing.assert_allclose(one, plain[3:4], atol=1e-5)


def test_a_run_scored_on_another_data_set_warns(workdir, data_dir, tmp_path, caplog):
    other = edit_metadata(data_dir, tmp_path / "data", lambda metadata: metadata["fingerprints"].update(train="0" * 64))
    with caplog.at_level("WARNING", "pneumojax"):
        results = evaluate(open_run(workdir, data_dir=other), "test")
    assert "the run was trained on another training split" in caplog.text
    assert results["run"]["trained_on_this_data"] is False


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 64, 64), np.uint8), "32 x 32 pixels, not on uint8 images of shape 64x64"),
        (np.zeros((2, 32, 32), np.float32), "not on float32 images of shape 32x32"),
        (np.zeros((2, 32, 32, 3), np.uint8), "of shape 32x32x3"),
        (np.zeros((0, 32, 32), np.uint8), "no images"),
    ],
)
def test_images_that_the_network_does_not_take_are_refused(trained, images, words):
    with pytest.raises(UserError, match=words):
        open_run(trained["binary"]).predict(images)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"cnn_widths": [4, 16]}, r"norm2/mean has shape \(8,\), the network needs \(16,\)"),
        ({"model": "mlp"}, "has shape"),
        ({"image_px": "32"}, "does not fit its config"),
        ({"layers": 3}, "unknown config fields: layers"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_a_checkpoint_with_an_edited_config_is_refused(workdir, edit, words):
    for path in (workdir / "checkpoints").glob("*/run/metadata"):
        run = json.loads(path.read_text())
        path.write_text(json.dumps(run | {"config": run["config"] | edit}))
    with pytest.raises(UserError, match=words):
        open_run(workdir)


def test_a_checkpoint_that_lacks_the_runs_record_is_refused(workdir):
    for path in (workdir / "checkpoints").glob("*/run/metadata"):
        path.write_text(json.dumps({"config": {}}))
    with pytest.raises(UserError, match="cannot be opened"):
        open_run(workdir)


def test_views_are_averaged_the_same_for_any_batch_device_and_neighbour(trained, monkeypatch):
    run = open_run(trained["three_class"], test_time_views=3)
    erasing = dataclasses.replace(run.config.augment, erase_probability=1.0)  # Views must not change this.
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, augment=erasing))
    images = load_split(run.config.data, "test").images
    augment = jax.jit(make_augment(dataclasses.replace(erasing, erase_probability=0.0)))
    views = [np.float32(images) / 255]
    views += [augment(jnp.broadcast_to(key, len(images)), views[0]) for key in jax.random.split(jax.random.key(0), 2)]
    logits = [apply_network(run.config, run.variables, view) for view in views]
    expected = np.mean([compute_probabilities(one) for one in logits], axis=0)
    for devices, size, of in ((1, 7, slice(None)), (8, 1000, slice(None)), (8, 1, slice(3, 4))):
        mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
        monkeypatch.setattr("pneumojax.evaluation.run.make_mesh", lambda mesh=mesh: mesh)
        probabilities = compute_probabilities(with_eval_batch_size(run, size).predict(images[of]))
        np.testing.assert_allclose(probabilities, expected[of], atol=1e-5, err_msg=f"{devices} {size}")
