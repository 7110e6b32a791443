"""A small training on some of the simulated devices, for the tests of the compiled step."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh

from pneumojax import parallel, steps
from pneumojax.config import config_from_dict, replace_fields
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import AXIS, put, replicated

IMAGES, PX, BATCH = 64, 32, 16
PLAIN = {
    "image_px": PX,
    "cnn_widths": (4, 8),
    "mlp_widths": (16,),
    "resnet_width": 4,
    "batch_size": BATCH,
    "rotate_degrees": 0.0,
    "shift": 0.0,
    "zoom": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "gamma": 0.0,
    "warmup": 0.0,
}
RANDOM = {
    "rotate_degrees": 20.0,
    "shift": 0.1,
    "zoom": 0.2,
    "crop_min_area": 0.7,
    "flip": True,
    "brightness": 0.2,
    "contrast": 0.2,
    "gamma": 0.3,
    "erase_probability": 0.5,
    "mixup_alpha": 0.4,
    "dropout": 0.3,
    "label_smoothing": 0.1,
    "ema_decay": 0.9,
}
# One range of augmentation, mixup and dropout use every kind of key, and compile in half the time of all ranges.
DRAWS = {"brightness": 0.2, "mixup_alpha": 0.4, "dropout": 0.3, "ema_decay": 0.9}
SGD = {"optimizer": "sgd", "learning_rate": 0.05}
CLASS_WEIGHTS = np.array([1.5, 0.75], np.float32)
SWEEP_RATES = """
learning_rate = [0.02, 0.05]
weight_decay = [0.0, 0.3]
"""
SWEEP = f"""{SWEEP_RATES}
label_smoothing = [0.3, 0]
augment_strength = [0.5, 1.2]
"""
PARALLEL = ("jit", "shard_map", "pmap")


def make_mesh(devices):
    return Mesh(np.array(jax.devices()[:devices]), (AXIS,))


@functools.cache
def draw_images():
    """Makes noise around a mean that differs slightly between the classes, so that it cannot be learned in one step."""
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 2, IMAGES).astype(np.int32)
    images = draws.normal(100 + 20 * labels[:, None, None], 60, (IMAGES, PX, PX))
    return images.clip(0, 255).astype(np.uint8), labels


def draw_batches(num_steps, batch_size=BATCH):
    draws = np.random.default_rng(1)
    return np.stack([draws.permutation(IMAGES)[:batch_size] for _ in range(num_steps)]).astype(np.int32)


@functools.cache
def make_functions(config, devices):
    """Returns (chunk, init) from a cache, so that a second Trainer of the same kind is not compiled again."""
    mesh, tx = make_mesh(devices), make_optimizer(config.optimizer, total_steps=200)
    chunk = steps.make_train_chunk(config, steps.make_graph(config), tx, CLASS_WEIGHTS, mesh)
    return chunk, steps.make_init(config, tx, mesh)


class Trainer:
    """A compiled chunk and its state on the first devices."""

    def __init__(self, devices, **fields):
        self.config = config_from_dict(PLAIN | fields)
        self.mesh = make_mesh(devices)
        self.chunk, init = make_functions(replace_fields(self.config, {"seed": 0}), devices)  # No program has the seed.
        self.state = init(jax.random.key(self.config.train.seed))
        images, labels = draw_images()
        key = jax.device_put(jax.random.key(5), replicated(self.mesh))
        self.constants = put(images, self.mesh), put(labels, self.mesh), key

    def arguments(self, batches):
        images, labels, key = self.constants
        return self.state, images, labels, parallel.put_batches(batches, self.config, self.mesh), key

    def train(self, batches):
        """Returns the metrics. They and the state are numpy arrays of one device."""
        self.state, metrics = self.chunk(*self.arguments(batches))
        return jax.device_get(metrics)


def assert_near(ours, theirs, tolerance):
    """Asserts that all leaves are close, relative to the largest value of each leaf."""
    ours, theirs = jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)
    for (path, mine), other in zip(ours, theirs, strict=True):
        scale = max(np.abs(other).max(), 1e-3)
        np.testing.assert_allclose(mine / scale, other / scale, atol=tolerance, err_msg=jax.tree_util.keystr(path))
