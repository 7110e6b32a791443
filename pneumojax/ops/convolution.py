"""Convolution, with the fastest exact algorithm for each shape on CPU.

XLA's CPU backend is fast for one layout only (NHWC images, HWIO kernels). Inside `lax.scan`, jax 0.10 folds the
gradients of a convolution into other layouts, and XLA then runs them as plain loops, 10 to 60 times slower. This module
computes the gradients in the fast layout, with optimization barriers that preserve it. All algorithms are exact up to
rounding.

The table compares GFLOP/s, or milliseconds, of XLA's own algorithm and of this module's on two cores (Zen 4, peak about
230 GFLOP/s) at batch 32, both with the flags of `sharding.initialize`. Examples are [px, input -> output channels,
kernel size / stride].

  case                   algorithm                                         example                       XLA   ours
  kernel gradient        convolution of the images with the gradients as   [111, 32 -> 32, 4 / 1]        116    142
                         the kernel and the channels as the batch; one     [224, 1 -> 32, 3 / 1]          12     63
                         batch tile at a time, which fits into the cache
  image gradient         stride 1: convolution with the flipped kernel
                         stride 2: a small convolution for each of four    [56, 64 -> 128, 3 / 2]         65    150
                         phases (even or odd row, even or odd column)      [28, 128 -> 256, 3 / 2]       112    180
  many channels          Winograd's algorithm, with half the products      [28, 128 -> 128, 3 / 1]       193    302
                         the same for the kernel gradient                  [56, 64 -> 64, 3 / 1]         113    150
                         up to 7 px: the whole batch at once, with a       [4, 512 -> 512, 3 / 1]        184    239
                         matrix product for each kernel column
  output below 5 px      a matrix product for each kernel tap; positions   [2, 512 -> 512, 3 / 1]          2    252
                         where the tap is over padding are left out
  grey images            small kernels: a sum over the taps, which XLA     [224, 1 -> 32, 3 / 1]      120 ms  29 ms
                         fuses with the next operations
                         large kernels: convolution of one row, with the   [112, 1 -> 64, 7 / 2]     10.1 ms 5.6 ms
                         kernel's rows as channels

Other backends run XLA's own algorithms. So does CPU inside `with xla_algorithms(True)`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pneumojax.ops import winograd

# The smallest output height at which XLA's convolution is faster than a matrix product for each kernel tap.
MIN_CONVOLUTION_PX = 5
# The largest kernel of grey images that is written as a sum over its taps. A kernel of size 7 gains nothing from it,
# and XLA would repeat the sum for each use of the output.
MAX_GREY_SIZE = 3
# The smallest batch tile of the kernel gradient, in positions and in images. In a smaller tile, the overhead exceeds
# the gain from the cache. XLA vectorises over the images of a tile; with one channel and stride 1 it vectorises over
# positions, so the minimum of images does not apply.
MIN_TILE_POSITIONS = 12_500
MIN_TILE_IMAGES = 8
# Up to this output height Winograd's algorithm takes the whole batch, with a matrix product for each kernel column.
MAX_FEW_PX = 7
# Winograd's algorithm is used for these kernel sizes, if the output has at least this height and if the algorithm saves
# at least this many products for each addition. The kernel gradient uses it for the smallest size only. The smallest
# batch tile is different for this algorithm.
WINOGRAD_SIZES = (3, 4, 5)
MIN_WINOGRAD_PX = 4
MIN_WINOGRAD_RATIO = 60
MIN_WINOGRAD_TILE_IMAGES = 2
MIN_WINOGRAD_TILE_POSITIONS = 6_000

# Functions that are traced inside `with xla_algorithms(True):` use XLA's own algorithms on every backend.
xla_algorithms = jax.make_user_context(False)


def uses_xla_algorithms() -> bool:
    """Returns whether functions that are traced now use XLA's own algorithms."""
    return xla_algorithms.value or jax.default_backend() != "cpu"


def convolve(images: jax.Array, kernel: jax.Array, stride: int, pad: int | None = None) -> jax.Array:
    """Convolves zero-padded images.

    Args:
      images: [B, H, W, I].
      kernel: [K, K, I, O], of the same dtype.
      stride: step in pixels, at most K unless K is 1.
      pad: number of zeros at each edge, less than K; None: K // 2.

    Returns:
      [B, (H + 2 pad - K) // stride + 1, (W + 2 pad - K) // stride + 1, O]. With the default pad and an odd K, that is
      [B, ceil(H / stride), ceil(W / stride), O].
    """
    size = kernel.shape[0]
    pad = size // 2 if pad is None else pad
    if uses_xla_algorithms():
        return _convolve(images, kernel, stride, [(pad, pad)] * 2)
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


def _convolve(images, kernel, stride, padding, **dilation):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=layout, **dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_few_pixels(images: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """Applies Winograd's algorithm to the rows, with a matrix product for each kernel column."""

    def convolve_columns(rows, kernel):
        return _convolve_by_taps(rows, kernel, 1, (0, pad))

    return winograd.convolve(images, winograd.transform_kernel(kernel), pad, convolve_columns)


def _few_pixels_backward(pad, saved, grads):
    images, kernel = saved
    _, pull_back = jax.vjp(lambda images: _convolve_few_pixels.fun(images, kernel, pad), images)
    return *pull_back(grads), winograd.multiply_kernel_grads(images, grads, len(kernel), pad)


_convolve_few_pixels.defvjp(lambda *args: (_convolve_few_pixels(*args), args[:2]), _few_pixels_backward)


def _convolve_by_taps(images, kernel, stride, pads):
    """Sums a matrix product for each kernel tap over the output positions where the tap meets the image."""
    size, image_shape = kernel.shape[:2], images.shape[1:3]
    output_shape = [(px + 2 * pad - k) // stride + 1 for px, pad, k in zip(image_shape, pads, size, strict=True)]

    def find_overlap(tap, px, out, pad):
        """Returns (pixels, margins, meets) of a tap in one spatial dimension.

        pixels is the slice of the image under the tap. margins are the numbers of output positions before and after
        those where the tap meets the image. meets is whether there are such positions.
        """
        first, end = max(0, -((tap - pad) // stride)), min(out, (px - 1 + pad - tap) // stride + 1)
        start = first * stride + tap - pad
        return slice(start, start + stride * (end - first - 1) + 1, stride), (first, out - end), end > first

    total = 0
    taps = jnp.split(kernel.reshape(-1, *kernel.shape[2:]), math.prod(size))  # The gradient of a split is one array.
    for position, tap in zip(np.ndindex(*size), taps, strict=True):
        overlaps = map(find_overlap, position, image_shape, output_shape, pads)
        pixels, margins, meets = zip(*overlaps, strict=True)
        if all(meets):
            total += jnp.pad(images[:, *pixels] @ tap[0], ((0, 0), *margins, (0, 0)))
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_grey(images: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    """Sums over the kernel's taps; XLA fuses the sum with what follows."""
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = kernel.shape[0]
    rows, columns = (stride * ((px - size) // stride) + 1 for px in padded.shape[1:3])
    return sum(
        padded[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0]
        for i in range(size)
        for j in range(size)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_on_cpu(images: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    if images.shape[-1] == 1:
        return _convolve_grey_by_rows(images, kernel, stride, pad)
    if _is_for_winograd(images.shape[1] + 2 * pad + 1 - len(kernel), kernel.shape, stride, images.dtype):
        return _convolve_by_winograd(images, kernel, pad)
    return _convolve(images, kernel, stride, [(pad, pad)] * 2)


def _convolve_grey_by_rows(images, kernel, stride, pad):
    """Convolves grey images with the kernel's rows, and the columns of a stride, as channels.

    The convolution then has one row and sums over more channels, which XLA computes faster.
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
    return _convolve(channels, weights.reshape(1, steps, stride * size, -1), 1, [(0, 0), (0, 0)])


def _is_for_winograd(height, kernel_shape, stride, dtype):
    """Returns whether Winograd's algorithm is faster at this output height and precise enough in this dtype."""
    size, _, channels, features = kernel_shape
    if stride > 1 or size not in WINOGRAD_SIZES or height < MIN_WINOGRAD_PX or dtype != jnp.float32:
        return False
    saved_products = size * size * channels * features / 2
    additions = (channels + features) * winograd.TILE / (winograd.TILE + 1 - size)
    return saved_products >= MIN_WINOGRAD_RATIO * additions


def _convolve_by_winograd(images, kernel, pad):
    """Applies Winograd's algorithm to one batch tile at a time, so that its sums stay in the cache.

    A single tile would need no loop. Without one, XLA would repeat the operations that produced the images.
    """
    batch, *image_shape = images.shape[:3]
    shape = [px + 2 * pad + 1 - len(kernel) for px in image_shape]
    tiles = _count_batch_tiles(batch, math.prod(shape), MIN_WINOGRAD_TILE_IMAGES, MIN_WINOGRAD_TILE_POSITIONS)
    if tiles == 1:
        return _convolve(images, kernel, 1, [(pad, pad)] * 2)
    kernels = winograd.transform_kernel(kernel)

    def convolve_columns(rows, kernel):
        return _convolve(rows, kernel, 1, [(0, 0), (pad, pad)])

    def put_tile(i, results):
        result = winograd.convolve(_take_batch_tile(images, tiles, i), kernels, pad, convolve_columns)
        return lax.dynamic_update_index_in_dim(results, result, i, 1)

    results = jnp.zeros((batch // tiles, tiles, *shape, kernel.shape[-1]), images.dtype)
    return lax.fori_loop(0, tiles, put_tile, results).reshape(batch, *results.shape[2:])


def _backward(stride, pad, saved, grads):
    images, kernel = saved
    image_grads = _compute_image_grads(grads, kernel, stride, pad, images.shape[1:3])
    return image_grads, _compute_kernel_grads(images, grads, stride, pad, kernel.shape[0])


for algorithm in (_convolve_grey, _convolve_on_cpu):
    algorithm.defvjp(lambda *args, algorithm=algorithm: (algorithm(*args), args[:2]), _backward)


def _compute_image_grads(grads, kernel, stride, pad, image_shape):
    """For each phase of the stride, convolves the output's gradients with the flipped taps that meet its pixels."""
    if _is_for_winograd(image_shape[0], kernel.shape, stride, grads.dtype):
        # The loop keeps XLA from flipping the kernel again for each sum over its rows.
        flipped = lax.map(lambda row: row[::-1].swapaxes(1, 2), kernel[::-1])
        return _convolve_by_winograd(grads, flipped, len(kernel) - 1 - pad)

    def plan(phase, px, out):
        """Returns (first tap, padding of the gradients) for the pixels phase, phase + stride, ... of one dimension."""
        first = (phase + pad) % stride
        last = (kernel.shape[0] - 1 - first) // stride  # Index of the last tap in first, first + stride, ...
        reach = (phase + pad) // stride
        return first, (last - reach, -(-px // stride) + reach - out)

    def compute_phase(i, j):
        (top, rows), (left, columns) = (
            plan(phase, px, out) for phase, px, out in zip((i, j), image_shape, grads.shape[1:3], strict=True)
        )
        taps = kernel[top::stride, left::stride][::-1, ::-1].swapaxes(2, 3)
        operand, padding = grads, [rows, columns]
        if min(*rows, *columns) < 0:
            # XLA's CPU convolution reads outside of an operand if the padding is negative at one edge only.
            operand = lax.pad(grads, jnp.zeros((), grads.dtype), [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)])
            padding = [(0, 0), (0, 0)]
        return _convolve(operand, lax.optimization_barrier(taps), 1, padding)

    phases = [jnp.stack([compute_phase(i, j) for j in range(stride)], 3) for i in range(stride)]
    batch, height, width, _, channels = phases[0].shape
    interleaved = jnp.stack(phases, 2).reshape(batch, stride * height, stride * width, channels)
    return interleaved[:, : image_shape[0], : image_shape[1]]


def _compute_kernel_grads(images, grads, stride, pad, size):
    """Convolves the images, with channels as the batch, by the output's gradients as a large kernel, tile by tile."""
    batch, height, width, features = grads.shape
    # Rows and columns of the padded image, at its lower and right edge, that no kernel position covers.
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

    def add_tile(i, total):
        by_channel = _take_batch_tile(images, tiles, i).transpose(3, 1, 2, 0)
        as_kernel = _take_batch_tile(grads, tiles, i).transpose(1, 2, 0, 3)
        if by_winograd and tiles > 1:
            return total + winograd.compute_kernel_grads(by_channel, as_kernel, size, pad)
        by_channel, as_kernel = lax.optimization_barrier((by_channel, as_kernel))
        return total + _convolve(by_channel, as_kernel, 1, padding, rhs_dilation=(stride, stride))

    total = jnp.zeros((images.shape[-1], size, size, features), grads.dtype)
    return lax.fori_loop(0, tiles, add_tile, total).transpose(1, 2, 0, 3)


def _take_batch_tile(x, tiles, i):
    """Returns the i-th of equal batch tiles. It has every `tiles`-th image, so each device has a part of each tile."""
    return lax.dynamic_index_in_dim(x.reshape(-1, tiles, *x.shape[1:]), i, 1, keepdims=False)


def _count_batch_tiles(batch, positions, min_images, min_positions):
    """Returns the largest number of equal batch tiles that give each device `min_images` and `min_positions` at least.

    If no number above 1 does, a single device uses two tiles. Without a loop, XLA would fuse the operations that
    produced the images into their transposition, where they are many times slower. Several devices use one tile,
    because each tile costs a sum over the devices.
    """
    devices = jax.device_count()

    def fits(tiles):
        images, rest = divmod(batch, tiles * devices)
        return not rest and images >= min_images and images * positions >= min_positions

    return next(filter(fits, range(batch, 1, -1)), 1 if batch % 2 or devices > 1 else 2)
