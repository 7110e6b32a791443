"""Which images are in which batch: arrays of indices, as functions of their arguments alone."""

import math

import numpy as np

from pneumojax.errors import UserError


def split_epoch(num_images: int, batch_size: int, chunk_steps: int) -> tuple[int, int]:
    """Splits an epoch into chunks of equal length, so that one compiled chunk serves for all.

    The length is near `chunk_steps`. The remaining images (less than one batch, and less than one step for each chunk)
    are not used in this epoch. Each epoch is shuffled anew, so that each leaves out other images.

    Args:
      num_images: N, images of the training split.
      batch_size: B.
      chunk_steps: wanted length of a chunk, in steps.

    Returns:
      (chunks of an epoch, steps of a chunk).

    Raises:
      UserError: the batch is larger than the split.
    """
    steps = num_images // batch_size
    if steps == 0:
        raise UserError(f"batch_size {batch_size} is larger than the training split of {num_images} images.")
    chunks = max(1, round(steps / chunk_steps))
    return chunks, steps // chunks


def make_epoch_batches(num_images: int, batch_size: int, chunks: int, steps: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffles the image indices of one epoch.

    The result depends on nothing but the arguments, so that a run can resume at any epoch.

    Returns:
      [chunks, steps, batch_size] int32, each index at most once.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_images).astype(np.int32)
    return order[: chunks * steps * batch_size].reshape(chunks, steps, batch_size)


def make_eval_batches(num_images: int, batch_size: int, devices: int) -> np.ndarray:
    """Lists the indices of all images in order, and fills the last batch up with image 0.

    Args:
      num_images: N.
      batch_size: wanted batch size. It is raised to a multiple of `devices`, and lowered for a small split.
      devices: D.

    Returns:
      [S, B] int32. In row order, the first N are 0..N-1, and the results of the others are to be dropped.
    """
    batch_size = math.ceil(min(batch_size, num_images) / devices) * devices
    batches = np.zeros((math.ceil(num_images / batch_size), batch_size), np.int32)
    batches.reshape(-1)[:num_images] = np.arange(num_images)
    return batches
