"""Small networks of every kind, with random weights."""

from experiments.benchmarks.parity import make_random_variables
from pneumojax.config import config_from_dict

# The networks that take seconds to compile.
LARGE = ("resnet9", "resnet18", "resnet50", "vgg16")

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
    return config, make_random_variables(config)
