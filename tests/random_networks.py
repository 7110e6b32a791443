"""Small networks of every kind, with random weights."""

import jax
import numpy as np
from flax import nnx

from pneumojax.config import config_from_dict
from pneumojax.models import make_model

NETWORKS = {
    "cnn": {"cnn_widths": [4, 8]},
    "flatiron": {},
    "vgg16": {"vgg_width": 4, "vgg_dense_widths": [8, 8]},
    "resnet9": {"resnet_width": 4, "resnet_stem": "strided", "pixel_scaling": "image"},
    "resnet18": {"resnet_width": 4},
    "mlp": {"mlp_widths": [8]},
}


def make_network(name, task="binary", **fields):
    """Returns the config and the variables, {"params", "batch_stats"}, of a network for images of 32 px."""
    config = config_from_dict({"image_px": 32, "model": name, "task": task, **NETWORKS.get(name, {}), **fields})
    model = make_model(config.model, 32, jax.random.key(1))
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return config, {key: nnx.to_pure_dict(nnx.state(model, kind)) for key, kind in kinds.items()}


def randomise_statistics(variables):
    """Replaces the statistics of batch normalisation, which are 0 and 1 in a new network, by random ones."""
    rng = np.random.default_rng(2)
    statistics = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype("float32"), variables["batch_stats"]
    )
    return variables | {"batch_stats": statistics}
