"""The work of a benchmark in PyTorch or Keras, written as a user of these libraries would write it.

benchmark.py runs this file with the Python interpreter of --peer_python. It needs torch or keras (with TensorFlow),
numpy and Pillow, but not pneumojax. It communicates as measure.py does: it prints a JSON line when it is ready, and
then a JSON line for each line that it reads. The networks are the same as in pneumojax/models/, the optimizer is AdamW,
images are uint8 on the device, and the augmentation is rotation, shift and zoom.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import torch

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2
MEAN, STD = 0.5, 0.25  # of the pixel values 0..1; as in pneumojax/preprocessing.py

# The same type as `measure.Measure`, which this file cannot import.
Measure = tuple[dict, Callable[[], dict]]


def make_torch_network(config: dict[str, Any]) -> "torch.nn.Module":
    """Returns a network that maps [B, 1, H, W] float images to one logit each."""
    import torch
    from torch import nn

    if config["model"] == "flatiron":
        pools = [nn.MaxPool2d(2), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, ceil_mode=True)]
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 3), nn.Tanh(), pools[0], nn.Conv2d(32, 32, 4), nn.ReLU(), pools[1]),
            *(nn.LeakyReLU(0.3), pools[2], nn.Dropout(config["dropout"]), nn.Flatten()),
            *(nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)),
        )
    bottleneck = config["model"] == "resnet50"
    expansion = 4 if bottleneck else 1

    def normed(channels: int, features: int, kernel: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, features, kernel, stride, padding=kernel // 2, bias=False)
        return [convolution, nn.BatchNorm2d(features)]

    class Residual(nn.Module):
        def __init__(self, channels: int, width: int, stride: int):
            super().__init__()
            features = width * expansion
            if bottleneck:
                layers = [
                    *normed(channels, width, 1, 1),
                    nn.ReLU(True),
                    *normed(width, width, 3, stride),
                    nn.ReLU(True),
                ]
                layers += normed(width, features, 1, 1)
            else:
                layers = [*normed(channels, width, 3, stride), nn.ReLU(True), *normed(width, width, 3, 1)]
            self.main = nn.Sequential(*layers)
            projects = stride != 1 or channels != features
            self.shortcut = nn.Sequential(*normed(channels, features, 1, stride)) if projects else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu_(self.main(x) + self.shortcut(x))

    channels = config["resnet_width"]
    layers = [*normed(1, channels, 7, 2), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
    for stage, blocks in enumerate(BLOCKS[config["model"]]):
        width = config["resnet_width"] * 2**stage
        for block in range(blocks):
            layers.append(Residual(channels, width, 2 if stage and not block else 1))
            channels = width * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))


def augment_torch(images: "torch.Tensor", config: dict[str, Any]) -> "torch.Tensor":
    """Rotates, shifts and zooms each image of [B, 1, H, W] at random."""
    import torch
    import torch.nn.functional as F

    def draw(size: float, *shape: int) -> torch.Tensor:
        return size * (2 * torch.rand(len(images), *shape, device=images.device) - 1)

    angle = draw(config["rotate_degrees"] * torch.pi / 180)
    scale, shift = 1 / (1 + draw(config["zoom"])), 2 * draw(config["shift"], 2)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), images.shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def make_torch_loader(
    files: list[tuple[str, int]], image_px: int, batch_size: int, cores: int, pin_memory: bool
) -> "torch.utils.data.DataLoader":
    """Returns a loader that decodes JPEG files in one process for each core."""
    import numpy as np
    import torch
    from PIL import Image

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, float]:
            path, label = files[i]
            image = Image.open(path).convert("L").resize((image_px, image_px), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(image))[None], float(label)

    workers = {"num_workers": cores, "persistent_workers": True, "pin_memory": pin_memory}
    return torch.utils.data.DataLoader(Files(), batch_size, shuffle=True, drop_last=True, **workers)


def start_torch(case: dict[str, Any]) -> Measure:
    """Prepares a training in PyTorch. Returns (costs, function), as described at `measure.Measure`."""
    import torch

    config, batch_size = case["config"], case["config"]["batch_size"]
    px = config["image_px"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = make_torch_network(config).to(device)
    network(torch.zeros(2, 1, px, px, device=device))  # Gives the lazy layer its shape.
    layout = torch.channels_last if "channels_last" in case["framework"] else torch.contiguous_format
    network = network.to(memory_format=layout)
    forward = torch.compile(network) if "compile" in case["framework"] else network
    torch.backends.cudnn.benchmark = True  # Choose the fastest convolutions by measuring, as XLA does. Unused on CPU.
    optimizer = torch.optim.AdamW(
        network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=device == "cuda" or None
    )

    def train(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        images = images.float() / 255
        if case["augment"]:
            images = augment_torch(images, config)
        images = ((images - MEAN) / STD).contiguous(memory_format=layout)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=config["dtype"] == "bfloat16"):
            logits = forward(images)[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss

    def finish(loss: torch.Tensor) -> None:
        loss.item()  # Waits for the device.

    drawn = torch.randint(0, 256, (batch_size, 1, px, px), dtype=torch.uint8, device=device)
    half = (torch.arange(batch_size, device=device) % 2).float()
    started = time.perf_counter()
    for _ in range(3):
        finish(train(drawn, half))
    ready = {
        "device": {"kind": torch.cuda.get_device_name() if device == "cuda" else "cpu", "platform": device, "count": 1},
        "versions": {"torch": torch.__version__},
        "compile_seconds": time.perf_counter() - started,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    if case["what"] == "step":

        def repeat_steps() -> dict:
            started = time.perf_counter()
            for _ in range(case["steps"]):
                loss = train(drawn, half)
            finish(loss)
            return {"seconds": time.perf_counter() - started, "images": case["steps"] * batch_size}

        return ready, repeat_steps

    files = read_files(case)
    loader = make_torch_loader(files, px, batch_size, case["cores"], pin_memory=device == "cuda")

    def repeat_epoch() -> dict:
        started = time.perf_counter()
        for images, labels in loader:
            loss = train(images.to(device, non_blocking=True), labels.float().to(device, non_blocking=True))
        finish(loss)
        return {"seconds": time.perf_counter() - started, "images": len(files) // batch_size * batch_size}

    return ready, repeat_epoch


def make_keras_network(config: dict[str, Any]) -> "keras.Model":
    """Returns a network that maps [B, H, W, 1] float images to one logit each."""
    import keras
    from keras import layers

    def normed(x: keras.KerasTensor, features: int, kernel: int, stride: int = 1) -> keras.KerasTensor:
        x = layers.Conv2D(features, kernel, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    def residual(x: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
        if config["model"] == "resnet50":
            y = layers.ReLU()(normed(x, width, 1))
            y = normed(layers.ReLU()(normed(y, width, 3, stride)), 4 * width, 1)
        else:
            y = normed(layers.ReLU()(normed(x, width, 3, stride)), width, 3)
        shortcut = x if x.shape == y.shape else normed(x, y.shape[-1], 1, stride)
        return layers.ReLU()(y + shortcut)

    inputs = x = keras.Input((config["image_px"], config["image_px"], 1))
    if config["model"] == "flatiron":
        x = layers.MaxPooling2D()(layers.Conv2D(32, 3, activation="tanh")(x))
        x = layers.MaxPooling2D(padding="same")(layers.Conv2D(32, 4, activation="relu")(x))
        x = layers.MaxPooling2D(padding="same")(layers.LeakyReLU(0.3)(x))
        x = layers.Flatten()(layers.Dropout(config["dropout"])(x))
        x = layers.Dense(64, "relu")(layers.Dense(128, "relu")(x))
    else:
        width = config["resnet_width"]
        x = layers.ReLU()(normed(x, width, 7, 2))
        x = layers.MaxPooling2D(3, 2, padding="same")(x)
        for stage, blocks in enumerate(BLOCKS[config["model"]]):
            for block in range(blocks):
                x = residual(x, width * 2**stage, 2 if stage and not block else 1)
        x = layers.GlobalAveragePooling2D(dtype="float32")(x)
    return keras.Model(inputs, layers.Dense(1, dtype="float32")(x))


def start_keras(case: dict[str, Any]) -> Measure:
    """Prepares a training in Keras on TensorFlow. Returns (costs, function), as described at `measure.Measure`."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # Otherwise TensorFlow reserves all of the GPU's memory.
    import keras
    import numpy as np
    import tensorflow as tf
    from keras import layers

    config, batch_size = case["config"], case["config"]["batch_size"]
    px = config["image_px"]
    if config["dtype"] == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    network = make_keras_network(config)
    parts = [keras.Input((px, px, 1), dtype="uint8"), layers.Rescaling(1 / 255, dtype="float32")]
    if case["augment"]:
        fill = {"fill_mode": "constant", "dtype": "float32"}
        zoom, shift = config["zoom"], config["shift"]
        parts += [
            layers.RandomRotation(config["rotate_degrees"] / 360, **fill),
            layers.RandomZoom((-zoom, zoom), **fill),
            layers.RandomTranslation(shift, shift, **fill),
        ]
    model = keras.Sequential([*parts, layers.Rescaling(1 / STD, -MEAN / STD, dtype="float32"), network])
    optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
    drawn = np.random.default_rng(0).integers(0, 256, (batch_size, px, px, 1)).astype("uint8")
    drawn, half = tf.constant(drawn), tf.constant(np.arange(batch_size) % 2, tf.float32)
    started = time.perf_counter()
    model.fit(tf.data.Dataset.from_tensors((drawn, half)).repeat(3), verbose=0)
    gpus = tf.config.list_physical_devices("GPU")
    kind = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "cpu"
    ready = {
        "device": {"kind": kind, "platform": "cuda" if gpus else "cpu", "count": 1},
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "compile_seconds": time.perf_counter() - started,
        "parameters": sum(int(np.prod(weight.shape)) for weight in network.trainable_weights),
    }
    if case["what"] == "step":
        data = tf.data.Dataset.from_tensors((drawn, half)).repeat(case["steps"])
        images = case["steps"] * batch_size
    else:
        files = read_files(case)

        def load(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = tf.io.decode_jpeg(tf.io.read_file(path), channels=1)
            return tf.cast(tf.image.resize(image, (px, px), antialias=True), tf.uint8), label

        paths, labels = [path for path, _ in files], [float(label) for _, label in files]
        data = tf.data.Dataset.from_tensor_slices((paths, labels)).map(load, tf.data.AUTOTUNE).cache()
        data = data.shuffle(len(files)).batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
        images = len(files) // batch_size * batch_size

    def repeat() -> dict:
        started = time.perf_counter()
        model.fit(data, epochs=1, verbose=0)
        return {"seconds": time.perf_counter() - started, "images": images}

    return ready, repeat


def read_files(case: dict[str, Any]) -> list[tuple[str, int]]:
    """Reads the list of the JPEG files of a case. Returns [(path, label), ...]."""
    with open(case["files"]) as file:
        return json.load(file)


def main() -> None:
    case = json.loads(sys.argv[1])
    # The libraries may print too, so only the lines for benchmark.py go to the original standard output.
    out, sys.stdout = sys.stdout, sys.stderr

    def send(content: dict) -> None:
        print(json.dumps(content), file=out, flush=True)

    ready, repeat = (start_torch if case["framework"].startswith("torch") else start_keras)(case)
    send(ready)
    for _ in sys.stdin:
        send(repeat())


if __name__ == "__main__":
    main()
