"""Pretrains a backbone without labels, for use if no ImageNet weights are available.

    scripts/run experiments/pretrain.py                                                    # synthetic radiographs
    scripts/run experiments/pretrain.py --dataset=kermany --model=resnet18 --resnet_width=24 --workdir=runs/backbone
    scripts/run experiments/train.py --dataset=kermany --model=resnet18 --resnet_width=24 \\
        --pretrained=runs/backbone/backbone.safetensors --workdir=runs/tuned

The method is SimCLR (Chen et al. 2020). It uses only the training images, without their labels.
"""

import time

STARTED = time.perf_counter()  # Before the imports, because a user waits for them too.

import faulthandler  # noqa: E402
import pathlib  # noqa: E402
import shlex  # noqa: E402

from absl import flags  # noqa: E402

from experiments.cli import run  # noqa: E402
from experiments.flags import config_from_flags, define_config_flags, format_flags  # noqa: E402
from experiments.progress import Progress, format_stop  # noqa: E402
from pneumojax.config import Config, config_fields  # noqa: E402

WORKDIR = flags.DEFINE_string("workdir", "runs/backbone", "folder of the run: checkpoints, log, backbone.safetensors")
RESTART = flags.DEFINE_bool("restart", False, "delete the run in the workdir and start again")

# The fields that matter without labels and a classifier. None keeps the config's default. The two views of an image
# must differ strongly and are compared with all others of the batch, so augmentation and batch are larger than with
# labels.
FIELDS = {
    **dict.fromkeys(("dataset", "data_dir", "image_px", "model", "cnn_widths", "vgg_width", "resnet_width")),
    **dict.fromkeys(("resnet_stride", "dtype", "shift", "zoom", "optimizer", "momentum", "chunk_steps")),
    **dict.fromkeys(("rotate_degrees", "ema_decay", "seed", "multihost", "loader", "weight_decay", "warmup")),
    "crop_min_area": 0.2,
    "brightness": 0.3,
    "contrast": 0.5,
    "gamma": 0.5,
    "flip": True,
    "erase_probability": 0.0,
    "learning_rate": 2e-3,
    "epochs": 60,
    "batch_size": 128,
}


def main() -> int:
    config = config_from_flags(vgg_dense_widths=[])
    if config.train.multihost:
        faulthandler.disable()  # JAX aborts if its coordinator is lost; its own message is enough.
    workdir = pathlib.Path(WORKDIR.value)
    from pneumojax.training.pretrain import pretrain  # Imports JAX, so it comes after the flags were checked.

    progress = Progress(STARTED)
    try:
        result = pretrain(config, workdir, RESTART.value, progress.report)
    finally:
        progress.close()
    progress.print_cost()
    if result.stopped_by:
        print(format_stop(result.step, result.total_steps, workdir))
        return 128 + result.stopped_by
    assert result.backbone is not None  # It is written after the last step.
    done = "Finished" if result.trained_steps else "Nothing to do: this run has already finished its"
    print(
        f"{done} {result.total_steps} steps. The backbone is in {result.backbone}.\n"
        f"Next: scripts/run {shlex.join(_train_words(config, result.backbone))}"
    )
    return 0


def _train_words(config: Config, backbone: pathlib.Path) -> list[str]:
    """Returns the command that trains a classifier from the backbone, as a list of words."""
    from pneumojax.models.weight_import import SHAPING

    data, model = config.data, config.model
    given: dict[str, object] = {
        "dataset": data.dataset,
        "data_dir": data.data_dir,
        "image_px": data.image_px,
        "model": model.model,
    }
    given |= {name: getattr(model, name) for name in SHAPING[model.model]}
    given |= {"pretrained": backbone, "workdir": f"{backbone.parent}_tuned"}
    return ["experiments/train.py", *format_flags(given)]


if __name__ == "__main__":
    define_config_flags(fields=[field for field in config_fields() if field.name in FIELDS])
    for name, value in FIELDS.items():
        if value is not None:
            flags.FLAGS.set_default(name, value)
    run(main)
