"""Flags images for which a network is not made: photographs, text, rotated, mirrored or badly exposed X-rays.

An image is described by a coarse thumbnail, a few statistics and the network's own features. Two numbers of an image
are compared with limits, which are quantiles of the training images and of varied copies of them:
  The log-odds of the most probable defect of `defects.DEFECTS`. A logistic regression distinguishes training images
    from images with each defect, which were made from them.
  The distance to the training images under a Gaussian distribution. It finds what was not foreseen.
"""

import dataclasses
import io
import pathlib
import zipfile

import numpy as np

from pneumojax.errors import UserError
from pneumojax.files import write_bytes

# Changes when an older gate.npz no longer fits the code.
VERSION = 1

# Height and width of the thumbnail. With 16 pixels, fewer mirrored images were detected (75 % instead of 82 %).
THUMBNAIL_PX = 24

# Grey values up to BLACK, and from WHITE on, count as clipped.
BLACK, WHITE = 5, 250

# Added to the standard deviation of a thumbnail, so that the noise of a blank image is not amplified.
SMALLEST_STD = 4.0

# The flag of an image that differs from the training images in any way.
FAR = "far"


@dataclasses.dataclass(frozen=True)
class Gate:
    """Decides which images are unsuitable for a model. It holds only averages over the training images.

    Attributes:
      model: fingerprint of the model whose features are used, as in `Classifier.model`.
      names: [K] names of the defects.
      mean, scale: [D] float32, mean and standard deviation of the descriptions of the training images. The first T
        values of a description come from `describe_images`, the others are the network's features.
      weights, biases: [K, T] and [K] float32. They map the scaled description of an image to the log-odds of each
        defect against none.
      defect_limit: an image has a defect if the largest log-odds are above the limit.
      components: [P, D] float32, principal components of the scaled descriptions.
      variances: [P] float32, variances along the components.
      residual_variance: variance in each of the other directions.
      far_limit: an image is far if its distance is above this limit.
      version: `VERSION` at the time of the training.
    """

    model: str
    names: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    biases: np.ndarray
    defect_limit: float
    components: np.ndarray
    variances: np.ndarray
    residual_variance: float
    far_limit: float
    version: int = VERSION

    def check(self, images: np.ndarray, features: np.ndarray) -> list[list[str]]:
        """Finds the flags of images.

        Args:
          images: [N, H, W] uint8, the squares that the network takes.
          features: [N, F] float32, the features of these images from `inference.make_predict`.

        Returns:
          For each image up to two flags: "far" if it is far from the training images, and the name of its most probable
          defect if it has one.
        """
        scaled = self.scale_descriptions(images, features)
        is_far = self.measure_distance(scaled) > self.far_limit
        log_odds = self.compute_log_odds(scaled)
        has_defect, names = log_odds.max(1) > self.defect_limit, self.names[log_odds.argmax(1)]
        return [[FAR] * bool(is_far[i]) + [str(names[i])] * bool(has_defect[i]) for i in range(len(scaled))]

    def scale_descriptions(self, images: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Describes images and scales each number to mean 0 and standard deviation 1 of the training: [N, D]."""
        return (np.concatenate([describe_images(images), features], axis=1) - self.mean) / self.scale

    def compute_log_odds(self, scaled: np.ndarray) -> np.ndarray:
        """Computes the log-odds of each defect against none, [N, K], of scaled descriptions [N, D]."""
        return _multiply(scaled[:, : self.weights.shape[1]], self.weights) + self.biases

    def measure_distance(self, scaled: np.ndarray) -> np.ndarray:
        """Computes the squared Mahalanobis distances of scaled descriptions from the training images.

        The covariance is that of probabilistic principal component analysis: the variances of the first components,
        and one common variance for all other directions.

        Args:
          scaled: [N, D] from `scale_descriptions`.

        Returns:
          [N] float.

        References:
          Tipping and Bishop, "Probabilistic Principal Component Analysis", 1999.
        """
        projected = _multiply(scaled, self.components)
        residual = (scaled**2).sum(1) - (projected**2).sum(1)
        return (projected**2 / self.variances).sum(1) + residual / self.residual_variance


def describe_images(images: np.ndarray) -> np.ndarray:
    """Describes images without a network.

    Args:
      images: [N, H, W] uint8.

    Returns:
      [N, T] float32: the pixels of a thumbnail with mean 0 and standard deviation 1, the mean and the standard
      deviation of its grey values, the shares of black and of white pixels, and the mean vertical and horizontal
      gradients.
    """
    grey = images.astype(np.float32)
    rows, columns = (_average(size, THUMBNAIL_PX) for size in images.shape[1:])
    thumbnails = (rows @ grey @ columns.T).reshape(len(images), -1)
    mean, deviation = thumbnails.mean(1, keepdims=True), thumbnails.std(1, keepdims=True)
    statistics = [
        mean[:, 0],
        deviation[:, 0],
        (images <= BLACK).mean((1, 2)),
        (images >= WHITE).mean((1, 2)),
        # Logarithms, because the gradients of noise or text are many times those of a radiograph.
        *(np.log1p(np.abs(np.diff(grey, axis=axis)).mean((1, 2))) for axis in (1, 2)),
    ]
    pattern = (thumbnails - mean) / (deviation + SMALLEST_STD)
    return np.concatenate([pattern, np.stack(statistics, 1)], axis=1).astype(np.float32)


def _multiply(rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Multiplies rows [N, D] with directions [P, D]: [N, P]."""
    # The threads of a matrix product would wait for each other for 20 ms while other threads decode images.
    return np.einsum("nd,pd->np", rows, directions)


def _average(size: int, new_size: int) -> np.ndarray:
    """Computes the weights, [new_size, size] float32, that average an axis over equal intervals."""
    edges = np.linspace(0, size, new_size + 1)
    pixels = np.arange(size)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(covered, 0) * new_size / size).astype(np.float32)


def write_gate(path: pathlib.Path, gate: Gate) -> None:
    """Writes a gate to a .npz file.

    Raises:
      OSError: the file cannot be written.
    """
    file = io.BytesIO()
    np.savez_compressed(file, **dataclasses.asdict(gate))
    write_bytes(path, file.getvalue())


def read_gate(path: pathlib.Path) -> Gate:
    """Reads a gate from `write_gate`.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: value if value.ndim else value.item() for name, value in file.items()}
        return Gate(**content)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error!r}). Delete it. The gate is then trained again.") from error
