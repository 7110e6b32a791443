"""From stored pixels to a network's input, inside the compiled functions: gather, scale, shrink, mix, augment."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from pneumojax.config import CLASS_NAMES, Config
from pneumojax.data.augment import keep_pneumonia, make_augment, mixup, shrink
from pneumojax.losses import make_targets
from pneumojax.ops.fusion import compute_unfused
from pneumojax.sharding import AXIS

# Radiographs have a mean near 0.5 and a standard deviation near 0.25 of their range. These are constants rather than
# statistics of the training split, so that a network needs only its weights to predict.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25

# Added to the standard deviation of an image, so that the pixels of a constant image stay finite.
SMALLEST_STD = 0.02


def scale_pixels(images: jax.Array) -> jax.Array:
    """[B, H, W] uint8 0..255 -> float32 0..1."""
    return images.astype(jnp.float32) / 255


def normalise(images: jax.Array, pixel_scaling: str = "fixed") -> jax.Array:
    """Scales images for a network.

    Args:
      images: [B, H, W] float32, 0..1.
      pixel_scaling: fixed scales all images alike, to -2..2. image scales each image to mean 0 and standard deviation
        1, so that its exposure and contrast do not reach the network.

    Returns:
      [B, H, W, 1] float32.
    """
    if pixel_scaling == "image":
        images = images - images.mean((1, 2), keepdims=True)
        return (images / (jnp.sqrt((images**2).mean((1, 2), keepdims=True)) + SMALLEST_STD))[..., None]
    return ((images - PIXEL_MEAN) / PIXEL_STD)[..., None]


def gather(column: jax.Array, index: jax.Array) -> jax.Array:
    """The rows of a batch: index is [B] row numbers of a resident column, or the [] batch number of a streamed one."""
    # XLA would fuse each loader's own indexing into the step, and sums would then be rounded in different orders.
    return compute_unfused(lambda column, index: column[index], column, index)


def make_prepare(config: Config, mapped: bool, image_px: int | None) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Makes the function that turns the rows of a batch into the network's input and its targets.

    Args:
      config: the run.
      mapped: whether it runs under a mapped axis, on its device's share of the batch.
      image_px: size to which the images are shrunk; None: the config's.

    Returns:
      `prepare(images, labels, index, mixup_keys, augment_keys) -> (batch, targets)`: images and index as in
      `steps.make_train_step`, labels [B] int32, keys [B]; batch [B, H, W, 1] float32, targets [B, C] float32.
    """
    augment, alpha = make_class_augment(config), config.augment.mixup_alpha
    classes, smoothing = len(CLASS_NAMES[config.model.task]), config.optimizer.label_smoothing
    smaller_px = image_px if image_px and image_px < config.data.image_px else None

    def prepare(
        images: jax.Array, labels: jax.Array, index: jax.Array, mixup_keys: jax.Array, augment_keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        batch = scale_pixels(gather(images, index))
        batch = shrink(batch, smaller_px) if smaller_px else batch
        targets = make_targets(labels, classes, smoothing)
        if alpha:
            batch, targets = mixup(mixup_keys, alpha, (batch, targets), (take_next(batch), take_next(targets)))
        return normalise(augment(augment_keys, batch, labels), config.data.pixel_scaling), targets

    def take_next(rows: jax.Array) -> jax.Array:
        """For each row of the global batch the row after it."""
        if not mapped:
            return jnp.roll(rows, -1, axis=0)
        devices = lax.axis_size(AXIS)
        first_of_next = lax.ppermute(rows[:1], AXIS, [((d + 1) % devices, d) for d in range(devices)])
        return jnp.concatenate([rows[1:], first_of_next])

    return prepare


def make_prepare_features(
    config: Config, mapped: bool, image_px: int | None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """As `make_prepare`, with a random one of the cached views of each image."""
    del mapped, image_px
    views = config.model.cached_views
    assert views is not None  # Only a run with cached views takes features.
    classes, smoothing = len(CLASS_NAMES[config.model.task]), config.optimizer.label_smoothing

    def prepare_features(
        features: jax.Array, labels: jax.Array, index: jax.Array, mixup_keys: jax.Array, augment_keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del mixup_keys
        view = jax.vmap(lambda key: jax.random.randint(key, (), 0, views))(augment_keys)
        return features[index, view], make_targets(labels, classes, smoothing)

    return prepare_features


def make_class_augment(config: Config) -> Callable:
    """Returns `augment(keys, images, labels)`; with augment_classes=normal, images of pneumonia stay unchanged."""
    augment = make_augment(config.augment)
    if config.augment.augment_classes == "normal":
        return lambda keys, images, labels: keep_pneumonia(images, augment(keys, images), labels)
    return lambda keys, images, labels: augment(keys, images)
