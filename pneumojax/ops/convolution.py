"""Convolution and max-pooling; on CPU in the forms that XLA runs fast there, exact up to rounding.

XLA's CPU backend has a fast convolution for one layout only (NHWC, HWIO). Left to itself jax 0.10 folds the gradients
into other layouts inside `lax.scan` and runs them as plain loops, 10 to 60 times slower. Here they are written in the
fast layout, with barriers that keep it there. GFLOP/s of two cores (Zen 4, peak about 230) at batch 32, of XLA's own
form and of this one, both with the flags of `sharding.initialize`; [px, channels in -> out, kernel / stride]:

  what                 form                                              example                          own   this
  kernel's gradient    images as channels, gradients as the kernel,      [111, 32 -> 32, 4 / 1]           116    142
                       a few images at a time, so that they stay in      [224, 1 -> 32, 3 / 1]             12     63
                       the cache
  images' gradient     stride 1: the turned kernel's convolution
                       stride 2: one small convolution for each of four  [56, 64 -> 128, 3 / 2]            65    150
                       phases (even or odd row, even or odd column)      [28, 128 -> 256, 3 / 2]          112    180
  many channels        `winograd.py`: half the products                  [28, 128 -> 128, 3 / 1]          193    302
                       the same for the kernel's gradient                [56, 64 -> 64, 3 / 1]            113    150
                       up to 7 px by column, the whole batch at once     [4, 512 -> 512, 3 / 1]           184    239
  fewer pixels         one product for each tap of the kernel, without   [2, 512 -> 512, 3 / 1]             2    252
                       the places where it meets padding alone
  grey images          the sum of the taps, fused into what follows:     [224, 1 -> 32, 3 / 1]         120 ms  29 ms
                       here max-pooling and tanh
                       large kernels: a convolution of one row, of       [112, 1 -> 64, 7 / 2]         10.1 ms 5.6 ms
                       which the others are channels

Max-pooling remembers which place of each window was the largest (one byte), so that its gradient, a scatter in XLA, is
one pass over the images. Other backends run XLA's own forms; so does CPU where `xla_forms` asks for them.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from pneumojax.ops import winograd

# Below this height of the result a convolution falls behind the products by tap.
MIN_CONVOLUTION_PX = 5
# Kernels of grey images up to this size are written out by tap. At 7 it is no faster, and what follows repeats it.
MAX_GREY_SIZE = 3
# What one turn of the kernel's gradient takes at least: below it, overhead costs more than the cache saves. Its images
# are what it vectorises over; but over places, where there is one channel and no stride.
MIN_TURN_PLACES = 12_500
MIN_TURN_IMAGES = 8
# Up to this height Winograd's form takes the whole batch and multiplies by column.
MAX_FEW_PX = 7
# Winograd's form pays for kernels of these sizes, from so many rows on, where it saves so many products for each sum;
# for the kernel's gradient at the smallest size alone. A turn takes two images and so many places at least.
WINOGRAD_SIZES = (3, 4, 5)
MIN_WINOGRAD_PX = 4
MIN_WINOGRAD_RATIO = 60
MIN_WINOGRAD_TURN_IMAGES = 2
MIN_WINOGRAD_TURN_PLACES = 6_000
# A row or column that no place of a window has.
NOWHERE = -9

# `with xla_forms(True):` traces and compiles what runs there in XLA's own forms on every backend.
xla_forms = jax.make_user_context(False)


def uses_xla_forms() -> bool:
    """Whether what is traced now takes XLA's own forms."""
    return xla_forms.value or jax.default_backend() != "cpu"


def convolve(images: jax.Array, kernel: jax.Array, stride: int, pad: int | None = None) -> jax.Array:
    """Convolution of zero-padded images.

    Args:
      images: [B, H, W, I].
      kernel: [K, K, I, O], of the same dtype.
      stride: step in pixels, at most K unless K is 1.
      pad: zeros on each side, less than K; None: K // 2.

    Returns:
      [B, (H + 2 pad - K) // stride + 1, (W + 2 pad - K) // stride + 1, O]; by default, for odd K, that is
      [B, ceil(H / stride), ceil(W / stride), O].
    """
    size = kernel.shape[0]
    pad = size // 2 if pad is None else pad
    if uses_xla_forms():
        return _convolve(images, kernel, stride, [(pad, pad)] * 2)
    if size == 1:
        return images[:, ::stride, ::stride] @ kernel[0, 0]
    if images.shape[-1] == 1 and size <= MAX_GREY_SIZE:
        return _convolve_grey(images, kernel, stride, pad)
    rows = (images.shape[1] + 2 * pad - size) // stride + 1
    if rows <= MAX_FEW_PX and _is_for_winograd(rows, kernel.shape, stride, images.dtype):
        return _convolve_few_pixels(images, kernel, pad)
    if rows < MIN_CONVOLUTION_PX:
        return _convolve_by_taps(images, kernel, stride, (pad, pad))
    return _convolve_on_cpu(images, kernel, stride, pad)


def max_pool(images: jax.Array, window: int, whole: bool = False) -> jax.Array:
    """Max-pooling at stride 2. In front of ReLU or tanh it gives what it gives behind them, and leaves them less to do.

    Args:
      images: [B, H, W, C].
      window: 2, padded at the lower and right edge where H or W is odd, or 3, padded by 1 on each side.
      whole: with window 2, whole windows only: an odd H or W loses its last row or column (H and W at least 2).

    Returns:
      [B, ceil(H / 2), ceil(W / 2), C]; if whole [B, H // 2, W // 2, C].
    """
    if whole:
        images = images[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]
    if uses_xla_forms():
        padding = "SAME" if window == 2 else ((1, 1), (1, 1))
        return nnx.max_pool(images, (window, window), strides=(2, 2), padding=padding)
    return _max_pool_on_cpu(images, window)


def _convolve(images, kernel, stride, padding, **dilation):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=layout, **dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_few_pixels(images: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """Winograd's form over the rows, and one product for each tap of the columns."""

    def convolve_columns(rows, kernel):
        return _convolve_by_taps(rows, kernel, 1, (0, pad))

    return winograd.convolve(images, winograd.transform_kernel(kernel), pad, convolve_columns)


def _few_pixels_backward(pad, saved, grads):
    images, kernel = saved
    _, pull_back = jax.vjp(lambda images: _convolve_few_pixels.fun(images, kernel, pad), images)
    return *pull_back(grads), winograd.multiply_kernel_grads(images, grads, len(kernel), pad)


_convolve_few_pixels.defvjp(lambda *args: (_convolve_few_pixels(*args), args[:2]), _few_pixels_backward)


def _convolve_by_taps(images, kernel, stride, pads):
    """The sum of one product for each tap of the kernel, at the places where it meets more than padding."""
    size, sides = kernel.shape[:2], images.shape[1:3]
    shape = [(s + 2 * pad - k) // stride + 1 for s, pad, k in zip(sides, pads, size, strict=True)]

    def meet(tap, side, out, pad):
        """Where in the image a tap meets it, and how many places of the result lie before and after those."""
        first, end = max(0, -((tap - pad) // stride)), min(out, (side - 1 + pad - tap) // stride + 1)
        start = first * stride + tap - pad
        return slice(start, start + stride * (end - first - 1) + 1, stride), (first, out - end), end > first

    total = 0
    taps = jnp.split(kernel.reshape(-1, *kernel.shape[2:]), math.prod(size))  # Its gradient is one array.
    for place, tap in zip(np.ndindex(*size), taps, strict=True):
        there, around, any_there = zip(*map(meet, place, sides, shape, pads), strict=True)
        if all(any_there):
            total += jnp.pad(images[:, *there] @ tap[0], ((0, 0), *around, (0, 0)))
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_grey(images: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    """The sum of its taps, which XLA fuses into what comes next."""
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = kernel.shape[0]
    rows, columns = (stride * ((side - size) // stride) + 1 for side in padded.shape[1:3])
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
    """The rows that a kernel meets, and in each the columns of a stride, as channels: one row of longer sums."""
    size = len(kernel)
    height, width = ((side + 2 * pad - size) // stride + 1 for side in images.shape[1:3])
    steps = -(-size // stride)
    columns = stride * (width + steps - 1)
    padded = jnp.pad(images[..., 0], ((0, 0), (pad, pad), (pad, max(0, columns - pad - images.shape[2]))))
    rows = [padded[:, i : i + stride * (height - 1) + 1 : stride, :columns] for i in range(size)]
    channels = jnp.stack(rows, -1).reshape(len(images), height, -1, stride * size)
    weights = jnp.pad(kernel[:, :, 0], ((0, 0), (0, steps * stride - size), (0, 0)))
    weights = weights.reshape(size, steps, stride, -1).transpose(1, 2, 0, 3)
    return _convolve(channels, weights.reshape(1, steps, stride * size, -1), 1, [(0, 0), (0, 0)])


def _is_for_winograd(rows, kernel_shape, stride, dtype):
    """Whether Winograd's form is the faster one for so many rows of the result, and exact enough."""
    size, _, channels, features = kernel_shape
    if stride > 1 or size not in WINOGRAD_SIZES or rows < MIN_WINOGRAD_PX or dtype != jnp.float32:
        return False
    saved = size * size * channels * features / 2
    sums = (channels + features) * winograd.TILE / (winograd.TILE + 1 - size)
    return saved >= MIN_WINOGRAD_RATIO * sums


def _convolve_by_winograd(images, kernel, pad):
    """A few images at a time, so that their sums stay in the cache; in a single turn XLA repeats what made them."""
    batch, *sides = images.shape[:3]
    shape = [side + 2 * pad + 1 - len(kernel) for side in sides]
    turns = _count_turns(batch, math.prod(shape), MIN_WINOGRAD_TURN_IMAGES, MIN_WINOGRAD_TURN_PLACES)
    if turns == 1:
        return _convolve(images, kernel, 1, [(pad, pad)] * 2)
    kernels = winograd.transform_kernel(kernel)

    def convolve_columns(rows, kernel):
        return _convolve(rows, kernel, 1, [(0, 0), (pad, pad)])

    def put_turn(i, results):
        result = winograd.convolve(_pick_turn(images, turns, i), kernels, pad, convolve_columns)
        return lax.dynamic_update_index_in_dim(results, result, i, 1)

    results = jnp.zeros((batch // turns, turns, *shape, kernel.shape[-1]), images.dtype)
    return lax.fori_loop(0, turns, put_turn, results).reshape(batch, *results.shape[2:])


def _backward(stride, pad, saved, grads):
    images, kernel = saved
    image_grads = _compute_image_grads(grads, kernel, stride, pad, images.shape[1:3])
    return image_grads, _compute_kernel_grads(images, grads, stride, pad, kernel.shape[0])


for form in (_convolve_grey, _convolve_on_cpu):
    form.defvjp(lambda *args, form=form: (form(*args), args[:2]), _backward)


def _compute_image_grads(grads, kernel, stride, pad, sides):
    """For every row and column between two strides, the gradients convolved with the turned taps that reach it."""
    if _is_for_winograd(sides[0], kernel.shape, stride, grads.dtype):
        # A loop, as else XLA turns the kernel anew for each sum of its rows.
        turned = lax.map(lambda row: row[::-1].swapaxes(1, 2), kernel[::-1])
        return _convolve_by_winograd(grads, turned, len(kernel) - 1 - pad)

    def plan(phase, side, out):
        first = (phase + pad) % stride
        last = (kernel.shape[0] - 1 - first) // stride  # of the taps first, first + stride, ...
        reach = (phase + pad) // stride
        return first, (last - reach, -(-side // stride) + reach - out)

    def compute_phase(i, j):
        (top, rows), (left, columns) = (
            plan(phase, side, out) for phase, side, out in zip((i, j), sides, grads.shape[1:3], strict=True)
        )
        taps = kernel[top::stride, left::stride][::-1, ::-1].swapaxes(2, 3)
        reached, padding = grads, [rows, columns]
        if min(*rows, *columns) < 0:
            # XLA's CPU convolution reads beyond an operand that its padding crops at one edge and extends at the other.
            reached = lax.pad(grads, jnp.zeros((), grads.dtype), [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)])
            padding = [(0, 0), (0, 0)]
        return _convolve(reached, lax.optimization_barrier(taps), 1, padding)

    phases = [jnp.stack([compute_phase(i, j) for j in range(stride)], 3) for i in range(stride)]
    batch, height, width, _, channels = phases[0].shape
    spread = jnp.stack(phases, 2).reshape(batch, stride * height, stride * width, channels)
    return spread[:, : sides[0], : sides[1]]


def _compute_kernel_grads(images, grads, stride, pad, size):
    """The images, with channels for batch, convolved with the gradients as one large kernel: a few images at a time."""
    batch, height, width, features = grads.shape
    # What the strides leave over of the padded image at its lower and right edge.
    sides = zip(images.shape[1:3], (height, width), strict=True)
    rest = [side + 2 * pad - size - stride * (out - 1) for side, out in sides]
    padding = [(pad, pad - r) for r in rest]
    kernel_shape = size, size, images.shape[-1], features
    by_winograd = size == min(WINOGRAD_SIZES) and _is_for_winograd(height, kernel_shape, stride, grads.dtype)
    turns = _count_turns(
        batch,
        height * width,
        1 if images.shape[-1] == stride == 1 else MIN_TURN_IMAGES,
        MIN_WINOGRAD_TURN_PLACES if by_winograd else MIN_TURN_PLACES,
    )

    def add_turn(i, total):
        by_channel = _pick_turn(images, turns, i).transpose(3, 1, 2, 0)
        as_kernel = _pick_turn(grads, turns, i).transpose(1, 2, 0, 3)
        if by_winograd and turns > 1:
            return total + winograd.compute_kernel_grads(by_channel, as_kernel, size, pad)
        by_channel, as_kernel = lax.optimization_barrier((by_channel, as_kernel))
        return total + _convolve(by_channel, as_kernel, 1, padding, rhs_dilation=(stride, stride))

    total = jnp.zeros((images.shape[-1], size, size, features), grads.dtype)
    return lax.fori_loop(0, turns, add_turn, total).transpose(1, 2, 0, 3)


def _pick_turn(x, turns, i):
    """The images of a turn. They lie `turns` apart, so that each device has its part in every turn."""
    return lax.dynamic_index_in_dim(x.reshape(-1, turns, *x.shape[1:]), i, 1, keepdims=False)


def _count_turns(batch, places, few, min_places):
    """The most turns of equal size in which each device has `few` images, and they are worth a turn.

    Or else two on one device, as in a single turn XLA fuses what made the images into their transposition, where it is
    many times as slow; on several one, as each turn adds up over them.
    """
    devices = jax.device_count()

    def fits(turns):
        images, rest = divmod(batch, turns * devices)
        return not rest and images >= few and images * places >= min_places

    return next(filter(fits, range(batch, 1, -1)), 1 if batch % 2 or devices > 1 else 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_on_cpu(images: jax.Array, window: int) -> jax.Array:
    return _choose(images, window)[0]


def _choose(images, window):
    """The largest value of each window, and its place there (int8): the first of equals."""
    sides = images.shape[1:3]
    rows, columns = ((side + 1) // 2 for side in sides)
    padding = [(window - 2, side % 2) for side in sides]
    padded = jnp.pad(images, [(0, 0), *padding, (0, 0)], constant_values=-jnp.inf)
    values = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(window) for j in range(window)
    ]
    largest, choice = values[0], jnp.zeros(values[0].shape, jnp.int8)
    for place, value in enumerate(values[1:], 1):
        choice = jnp.where(value > largest, jnp.int8(place), choice)
        largest = jnp.maximum(largest, value)
    return largest, choice


def _max_pool_forward(images, window):
    largest, choice = _compute_apart(lambda images: _choose(images, window), images)
    return largest, (choice, images)


def _max_pool_backward(window, saved, grads):
    choice, images = saved  # Of the images only the shape is used, so they are not kept.
    # Which row (or column) of window i rows 2i and 2i + 1 are, then, as windows of 3 overlap, of window i + 1.
    overlaps = np.array([[0, 1]] if window == 2 else [[1, 2], [NOWHERE, 0]])

    def compute_share(down, right):
        chosen, shifted = (
            jnp.pad(x[:, down:, right:], ((0, 0), (0, down), (0, right), (0, 0)))[:, :, None, :, None]
            for x in (choice, grads)
        )
        place = window * overlaps[down][:, None, None, None] + overlaps[right][:, None]
        return jnp.where(chosen == place, shifted, 0)

    spread = sum(compute_share(down, right) for down in range(len(overlaps)) for right in range(len(overlaps)))
    batch, rows, _, columns, _, channels = spread.shape
    spread = spread.reshape(batch, 2 * rows, 2 * columns, channels)
    return (spread[:, : images.shape[1], : images.shape[2]],)


_max_pool_on_cpu.defvjp(_max_pool_forward, _max_pool_backward)


def _compute_apart(function, *arrays):
    """What XLA neither fuses with what is around it nor computes again for each use: the taken branch of two."""

    def zeros(*arrays):
        return jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), jax.eval_shape(function, *arrays))

    return lax.cond(lax.optimization_barrier(True), function, zeros, *arrays)
