"""Convolution on CPU, with the fastest exact algorithm for each shape.

XLA's CPU backend is fast for one layout only (NHWC images, HWIO kernels). Inside `lax.scan`, jax 0.10 folds the
gradients of a convolution into other layouts, and XLA then runs them as plain loops, 10 to 60 times slower. This module
computes the gradients in the fast layout, with optimization barriers that preserve it. All algorithms are exact up to
rounding.

Terms: A tap is one position of the kernel, [i, j]. A batch tile is a part of the batch that is small enough for the CPU
cache. The image gradient and the kernel gradient are the gradients of the loss with respect to images and kernel.

The table compares XLA's own algorithm with the algorithm of this module, in GFLOP/s or milliseconds (ms). It was
measured on two cores (Zen 4, peak about 230 GFLOP/s) at batch 32, with the flags of `sharding.initialize`. Shapes are
[height and width in pixels, input -> output channels, kernel size / stride].

  case                   algorithm of this module                          shape                         XLA   here
  kernel gradient        convolution of the images by the gradients of     [111, 32 -> 32, 4 / 1]        116    142
                         the output; the images' channels are the batch;   [224, 1 -> 32, 3 / 1]          12     63
                         one batch tile at a time
  image gradient         stride 1: convolution by the flipped kernel
                         stride 2: a small convolution for each of four    [56, 64 -> 128, 3 / 2]         65    150
                         phases (even or odd row, even or odd column)      [28, 128 -> 256, 3 / 2]       112    180
  many channels          Winograd, with half the multiplications           [28, 128 -> 128, 3 / 1]       193    302
                         Winograd for the kernel gradient                  [56, 64 -> 64, 3 / 1]         113    150
                         up to 7 px: Winograd for the whole batch, one     [4, 512 -> 512, 3 / 1]        184    239
                         matrix product for each kernel column
  below 5 px             one matrix product for each kernel tap, only at   [2, 512 -> 512, 3 / 1]          2    252
                         the positions where the tap is on the image
  grey images            small kernels: a sum over the taps, which XLA     [224, 1 -> 32, 3 / 1]      120 ms  29 ms
                         fuses with later operations (max-pooling, tanh)
                         large kernels: convolution of one row, with the   [112, 1 -> 64, 7 / 2]     10.1 ms 5.6 ms
                         kernel's rows as channels
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pneumojax.ops import winograd, xla

# The smallest output height at which XLA's convolution is faster than a matrix product for each tap.
MIN_CONVOLUTION_PX = 5
# The largest kernel for which the convolution of grey images is a sum over the taps. With a kernel of size 7 the sum is
# not faster, and XLA would repeat it for each use of the output.
MAX_GREY_SIZE = 3
# The smallest number of output positions, summed over its images, in a batch tile of the kernel gradient. In a smaller
# tile, the overhead exceeds the gain from the cache.
MIN_TILE_POSITIONS = 12_500
# The smallest number of images in such a tile, because XLA vectorises over the images. With one channel and stride 1 it
# vectorises over positions, and there is no such minimum.
MIN_TILE_IMAGES = 8
# Up to this output height, Winograd's algorithm computes the whole batch at once, with a matrix product for each kernel
# column.
MAX_FEW_PX = 7
# Winograd's algorithm is used for these kernel sizes. The kernel gradient uses it for the smallest size only.
WINOGRAD_SIZES = (3, 4, 5)
# The smallest output height for Winograd's algorithm.
MIN_WINOGRAD_PX = 4
# Winograd's algorithm is used if it saves at least this many multiplications for each addition of its transforms.
MIN_WINOGRAD_RATIO = 60
# The smallest numbers of images and of output positions in a batch tile of Winograd's algorithm.
MIN_WINOGRAD_TILE_IMAGES = 2
MIN_WINOGRAD_TILE_POSITIONS = 6_000


def convolve(images: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    """Convolves zero-padded images on CPU. See `convolution.convolve`.

    Args:
      images: [B, H, W, I], of any float dtype.
      kernel: [K, K, I, O], of the same dtype.
      stride: step in pixels, at most K unless K is 1.
      pad: number of zeros at each edge, less than K.

    Returns:
      [B, (H + 2 pad - K) // stride + 1, (W + 2 pad - K) // stride + 1, O].
    """
    size = kernel.shape[0]
    if size == 1:
        return images[:, ::stride, ::stride] @ kernel[0, 0]
    if images.shape[-1] == 1 and size <= MAX_GREY_SIZE:
        return _convolve_grey(images, kernel, stride, pad)
    height = (images.shape[1] + 2 * pad - size) // stride + 1
    if height <= MAX_FEW_PX and _is_for_winograd(height, kernel.shape, stride, images.dtype):
        return _convolve_few_pixels(images, kernel, pad)
    if height < MIN_CONVOLUTION_PX:
        return _convolve_by_taps(images, kernel, stride, (pad, pad))
    return _convolve_on_cpu(images, kernel, stride, pad)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_few_pixels(images: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """Applies Winograd's algorithm to the rows, with a matrix product for each kernel column."""

    def convolve_columns(rows: jax.Array, kernel: jax.Array) -> jax.Array:
        return _convolve_by_taps(rows, kernel, 1, (0, pad))

    return winograd.convolve(images, winograd.transform_kernel(kernel), pad, convolve_columns)


def _few_pixels_backward(pad: int, saved: tuple[jax.Array, jax.Array], grads: jax.Array) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved
    _, pull_back = jax.vjp(lambda images: _convolve_few_pixels.fun(images, kernel, pad), images)
    return *pull_back(grads), winograd.multiply_kernel_grads(images, grads, len(kernel), pad)


_convolve_few_pixels.defvjp(lambda *args: (_convolve_few_pixels(*args), args[:2]), _few_pixels_backward)


def _convolve_by_taps(images: jax.Array, kernel: jax.Array, stride: int, pads: tuple[int, int]) -> jax.Array:
    """Convolves as a sum over the kernel's taps, with one matrix product for each tap.

    The product of a tap is computed only for the output positions at which the tap is on the image, not on the padding.
    """
    size, image_shape = kernel.shape[:2], images.shape[1:3]
    output_shape = [(px + 2 * pad - k) // stride + 1 for px, pad, k in zip(image_shape, pads, size, strict=True)]

    def find_overlap(tap: int, px: int, out: int, pad: int) -> tuple[slice, tuple[int, int], bool]:
        """Finds the pixels that a tap reads from the image in one spatial dimension.

        Returns:
          (pixels, margins, overlaps): the slice of these pixels; the numbers of output positions before and after
          them, at which the tap is on the padding; and whether there are any such pixels.
        """
        first, end = max(0, -((tap - pad) // stride)), min(out, (px - 1 + pad - tap) // stride + 1)
        start = first * stride + tap - pad
        return slice(start, start + stride * (end - first - 1) + 1, stride), (first, out - end), end > first

    products = []
    taps = jnp.split(kernel.reshape(-1, *kernel.shape[2:]), math.prod(size))  # Its gradient is a single array.
    for position, tap in zip(np.ndindex(*size), taps, strict=True):
        found = map(find_overlap, position, image_shape, output_shape, pads)
        pixels, margins, overlaps = zip(*found, strict=True)
        if all(overlaps):
            products.append(jnp.pad(images[:, *pixels] @ tap[0], ((0, 0), *margins, (0, 0))))
    return functools.reduce(operator.add, products)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_grey(images: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    """Convolves grey images as a sum over the kernel's taps. XLA fuses the sum with the operations that follow it."""
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = kernel.shape[0]
    rows, columns = (stride * ((px - size) // stride) + 1 for px in padded.shape[1:3])
    products = [
        padded[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0]
        for i in range(size)
        for j in range(size)
    ]
    return functools.reduce(operator.add, products)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_on_cpu(images: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    if images.shape[-1] == 1:
        return _convolve_grey_by_rows(images, kernel, stride, pad)
    if _is_for_winograd(images.shape[1] + 2 * pad + 1 - len(kernel), kernel.shape, stride, images.dtype):
        return _convolve_by_winograd(images, kernel, pad)
    return xla.convolve(images, kernel, stride, [(pad, pad)] * 2)


def _convolve_grey_by_rows(images: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    """Convolves grey images as a convolution with more channels, whose kernel has only one row.

    XLA computes this faster than a convolution with one input channel. The images and the kernel are rearranged: each
    row of the original kernel becomes a channel. If the stride is above 1, each of `stride` adjacent columns becomes a
    channel too.
    """
    size = len(kernel)
    height, width = ((px + 2 * pad - size) // stride + 1 for px in images.shape[1:3])
    steps = -(-size // stride)
    columns = stride * (width + steps - 1)
    padded = jnp.pad(images[..., 0], ((0, 0), (pad, pad), (pad, max(0, columns - pad - images.shape[2]))))
    rows = [padded[:, i : i + stride * (height - 1) + 1 : stride, :columns] for i in range(size)]
    channels = jnp.stack(rows, -1).reshape(len(images), height, -1, stride * size)
    weights = jnp.pad(kernel[:, :, 0], ((0, 0), (0, steps * stride - size), (0, 0)))
    weights = weights.reshape(size, steps, stride, -1).transpose(1, 2, 0, 3)
    return xla.convolve(channels, weights.reshape(1, steps, stride * size, -1), 1, [(0, 0), (0, 0)])


def _is_for_winograd(height: int, kernel_shape: tuple[int, ...], stride: int, dtype: np.dtype) -> bool:
    """Returns whether Winograd's algorithm is faster at this output height and precise enough in this dtype."""
    size, _, channels, features = kernel_shape
    if stride > 1 or size not in WINOGRAD_SIZES or height < MIN_WINOGRAD_PX or dtype != jnp.float32:
        return False
    saved_products = size * size * channels * features / 2
    additions = (channels + features) * winograd.TILE / (winograd.TILE + 1 - size)
    return saved_products >= MIN_WINOGRAD_RATIO * additions


def _convolve_by_winograd(images: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """Applies Winograd's algorithm to one batch tile at a time, so that its sums stay in the cache.

    If the batch is a single tile, XLA's own algorithm is used. Without a loop over tiles, XLA would fuse Winograd's
    algorithm with the operations that produced the images, and repeat them.
    """
    batch, *image_shape = images.shape[:3]
    shape = [px + 2 * pad + 1 - len(kernel) for px in image_shape]
    tiles = _count_batch_tiles(batch, math.prod(shape), MIN_WINOGRAD_TILE_IMAGES, MIN_WINOGRAD_TILE_POSITIONS)
    if tiles == 1:
        return xla.convolve(images, kernel, 1, [(pad, pad)] * 2)
    kernels = winograd.transform_kernel(kernel)

    def convolve_columns(rows: jax.Array, kernel: jax.Array) -> jax.Array:
        return xla.convolve(rows, kernel, 1, [(0, 0), (pad, pad)])

    def put_tile(i: jax.Array, results: jax.Array) -> jax.Array:
        result = winograd.convolve(_take_batch_tile(images, tiles, i), kernels, pad, convolve_columns)
        return lax.dynamic_update_index_in_dim(results, result, i, 1)

    results = jnp.zeros((batch // tiles, tiles, *shape, kernel.shape[-1]), images.dtype)
    return lax.fori_loop(0, tiles, put_tile, results).reshape(batch, *results.shape[2:])


def _backward(
    stride: int, pad: int, saved: tuple[jax.Array, jax.Array], grads: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = saved
    image_grads = _compute_image_grads(grads, kernel, stride, pad, images.shape[1:3])
    return image_grads, _compute_kernel_grads(images, grads, stride, pad, kernel.shape[0])


for algorithm in (_convolve_grey, _convolve_on_cpu):
    algorithm.defvjp(lambda *args, algorithm=algorithm: (algorithm(*args), args[:2]), _backward)


def _compute_image_grads(
    grads: jax.Array, kernel: jax.Array, stride: int, pad: int, image_shape: tuple[int, ...]
) -> jax.Array:
    """Computes the image gradient from the gradients of the output.

    With stride s, the pixels have s * s phases: pixel [y, x] has the phase [y % s, x % s]. All pixels of a phase are
    multiplied by the same kernel taps. To compute their gradients, the gradients of the output are convolved by a small
    kernel: these taps, flipped.
    """
    if _is_for_winograd(image_shape[0], kernel.shape, stride, grads.dtype):
        # Without a loop, XLA would flip the kernel again for each sum over its rows.
        flipped = lax.map(lambda row: row[::-1].swapaxes(1, 2), kernel[::-1])
        return _convolve_by_winograd(grads, flipped, len(kernel) - 1 - pad)

    def plan(phase: int, px: int, out: int) -> tuple[int, tuple[int, int]]:
        """Returns (first tap, padding of the gradients) for the pixels of a phase in one spatial dimension."""
        first = (phase + pad) % stride
        last = (kernel.shape[0] - 1 - first) // stride  # The last index in the list first, first + stride, ...
        reach = (phase + pad) // stride
        return first, (last - reach, -(-px // stride) + reach - out)

    def compute_phase(i: int, j: int) -> jax.Array:
        (top, rows), (left, columns) = (
            plan(phase, px, out) for phase, px, out in zip((i, j), image_shape, grads.shape[1:3], strict=True)
        )
        taps = kernel[top::stride, left::stride][::-1, ::-1].swapaxes(2, 3)
        operand, padding = grads, [rows, columns]
        if min(*rows, *columns) < 0:
            # If the padding is negative at one edge and positive at the other, XLA's CPU convolution reads outside of
            # its operand. lax.pad does not.
            operand = lax.pad(grads, jnp.zeros((), grads.dtype), [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)])
            padding = [(0, 0), (0, 0)]
        return xla.convolve(operand, lax.optimization_barrier(taps), 1, padding)

    phases = [jnp.stack([compute_phase(i, j) for j in range(stride)], 3) for i in range(stride)]
    batch, height, width, _, channels = phases[0].shape
    interleaved = jnp.stack(phases, 2).reshape(batch, stride * height, stride * width, channels)
    return interleaved[:, : image_shape[0], : image_shape[1]]


def _compute_kernel_grads(images: jax.Array, grads: jax.Array, stride: int, pad: int, size: int) -> jax.Array:
    """Computes the kernel gradient as a sum over batch tiles.

    In each tile, the images are convolved by the output's gradients, which have the role of a large kernel. The
    channels of the images have the role of the batch.
    """
    batch, height, width, features = grads.shape
    # The numbers of rows and columns at the lower and right edge of the padded images that the kernel never reaches.
    dimensions = zip(images.shape[1:3], (height, width), strict=True)
    rest = [px + 2 * pad - size - stride * (out - 1) for px, out in dimensions]
    padding = [(pad, pad - r) for r in rest]
    kernel_shape = size, size, images.shape[-1], features
    by_winograd = size == min(WINOGRAD_SIZES) and _is_for_winograd(height, kernel_shape, stride, grads.dtype)
    tiles = _count_batch_tiles(
        batch,
        height * width,
        1 if images.shape[-1] == stride == 1 else MIN_TILE_IMAGES,
        MIN_WINOGRAD_TILE_POSITIONS if by_winograd else MIN_TILE_POSITIONS,
    )

    def add_tile(i: jax.Array, total: jax.Array) -> jax.Array:
        by_channel = _take_batch_tile(images, tiles, i).transpose(3, 1, 2, 0)
        as_kernel = _take_batch_tile(grads, tiles, i).transpose(1, 2, 0, 3)
        if by_winograd and tiles > 1:
            return total + winograd.compute_kernel_grads(by_channel, as_kernel, size, pad)
        by_channel, as_kernel = lax.optimization_barrier((by_channel, as_kernel))
        return total + xla.convolve(by_channel, as_kernel, 1, padding, rhs_dilation=(stride, stride))

    total = jnp.zeros((images.shape[-1], size, size, features), grads.dtype)
    return lax.fori_loop(0, tiles, add_tile, total).transpose(1, 2, 0, 3)


def _take_batch_tile(x: jax.Array, tiles: int, i: jax.Array) -> jax.Array:
    """Returns batch tile i: the images i, i + tiles, i + 2 * tiles, ... Each device thus has a part of each tile."""
    return lax.dynamic_index_in_dim(x.reshape(-1, tiles, *x.shape[1:]), i, 1, keepdims=False)


def _count_batch_tiles(batch: int, positions: int, min_images: int, min_positions: int) -> int:
    """Returns the number of batch tiles. Each device gets at least `min_images` and `min_positions` of each tile.

    The result is the largest number of tiles of equal size that satisfies this. If no number above 1 does, the result
    depends on the number of devices:

    A single device uses two tiles, or one if the batch size is odd. With one tile there would be no loop, and XLA would
    fuse the transposition of the images with the operations that produced them. Fused, these operations are many times
    slower.

    Several devices use one tile, because each tile requires a sum over the devices.
    """
    devices = jax.device_count()

    def fits(tiles: int) -> bool:
        images, rest = divmod(batch, tiles * devices)
        return not rest and images >= min_images and images * positions >= min_positions

    return next(filter(fits, range(batch, 1, -1)), 1 if batch % 2 or devices > 1 else 2)
