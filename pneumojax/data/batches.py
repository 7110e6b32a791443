"""Batches of an epoch and of an evaluation, as arrays of image indices."""

import math

import numpy as np

from pneumojax.errors import UserError


def split_epoch(num_images: int, batch_size: int, chunk_steps: int) -> tuple[int, int]:
    """Splits an epoch into chunks of equal length, so that a single compiled program computes all of them.

    The length is near `chunk_steps`. Images that do not fill a batch, and batches that do not fill a chunk, are not
    used in this epoch. Each epoch is shuffled differently, so each leaves out different images.

    Args:
      num_images: N, images of the training split.
      batch_size: B.
      chunk_steps: wanted length of a chunk, in steps.

    Returns:
      (number of chunks in an epoch, number of steps in a chunk).

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

    The result depends only on the arguments, so that a run can resume at any epoch.

    Args:
      num_images: N, images of the training split.
      batch_size: B.
      chunks: number of chunks in an epoch, from `split_epoch`.
      steps: number of steps in a chunk, from `split_epoch`.
      seed: seed of the run.
      epoch: index of the epoch.

    Returns:
      [chunks, steps, batch_size] int32, each index at most once.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_images).astype(np.int32)
    return order[: chunks * steps * batch_size].reshape(chunks, steps, batch_size)


def make_eval_batches(num_images: int, batch_size: int, devices: int) -> np.ndarray:
    """Lists the indices of all images in order, and pads the last batch with image 0.

    Args:
      num_images: N.
      batch_size: wanted batch size. It is rounded up to a multiple of `devices`, and reduced for a small split.
      devices: D.

    Returns:
      [S, B] int32. In row order, the first N indices are 0..N-1. The caller must drop the results of all others.
    """
    batch_size = math.ceil(min(batch_size, num_images) / devices) * devices
    batches = np.zeros((math.ceil(num_images / batch_size), batch_size), np.int32)
    batches.reshape(-1)[:num_images] = np.arange(num_images)
    return batches
