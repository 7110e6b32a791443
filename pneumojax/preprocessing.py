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
    """Scales images [B, H, W] from uint8, 0..255, to float32, 0..1."""
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
    """Returns the rows of a batch.

    Args:
      column: [N, ...] the rows of all images; with loader=stream [S, B, ...], the rows of a chunk.
      index: [B] int32 indices of the rows; with loader=stream [] int32, the index of the step in its chunk.

    Returns:
      [B, ...], of the same dtype as the column.
    """
    # XLA would fuse each loader's own indexing into the step, and sums would then be rounded in different orders.
    return compute_unfused(lambda column, index: column[index], column, index)


def make_prepare(config: Config, mapped: bool, image_px: int | None) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Makes the function that converts the rows of a batch to the network's input and targets.

    Args:
      config: the run.
      mapped: whether the function runs inside shard_map or pmap, on one device's shard of the batch.
      image_px: height and width to which the images are reduced; None: the image size of the config.

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
        """Returns, for each row, the next row of the global batch. The first row follows the last one."""
        if not mapped:
            return jnp.roll(rows, -1, axis=0)
        devices = lax.axis_size(AXIS)
        first_of_next = lax.ppermute(rows[:1], AXIS, [((d + 1) % devices, d) for d in range(devices)])
        return jnp.concatenate([rows[1:], first_of_next])

    return prepare


def make_prepare_features(
    config: Config, mapped: bool, image_px: int | None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Makes the function that replaces `make_prepare` for cached features. It chooses a random view of each image.

    Args:
      config: the run.
      mapped: ignored.
      image_px: ignored, because features have only one size.

    Returns:
      `prepare(features, labels, index, mixup_keys, augment_keys) -> (batch, targets)`: features [N, K, ...] with K
      views of each image, batch [B, ...]. mixup_keys is ignored. The others are as in `make_prepare`.
    """
    del mapped, image_px
    views = config.model.cached_views
    assert views is not None  # Only a run with cached views has features.
    classes, smoothing = len(CLASS_NAMES[config.model.task]), config.optimizer.label_smoothing

    def prepare_features(
        features: jax.Array, labels: jax.Array, index: jax.Array, mixup_keys: jax.Array, augment_keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del mixup_keys
        view = jax.vmap(lambda key: jax.random.randint(key, (), 0, views))(augment_keys)
        return features[index, view], make_targets(labels, classes, smoothing)

    return prepare_features


def make_class_augment(config: Config) -> Callable:
    """Makes the augmentation of a batch. With augment_classes=normal, images of pneumonia stay unchanged.

    Args:
      config: the run.

    Returns:
      `augment(keys, images, labels)`: keys [B], images [B, H, W] float32 0..1, labels [B] int32 -> images.
    """
    augment = make_augment(config.augment)
    if config.augment.augment_classes == "normal":
        return lambda keys, images, labels: keep_pneumonia(images, augment(keys, images), labels)
    return lambda keys, images, labels: augment(keys, images)
