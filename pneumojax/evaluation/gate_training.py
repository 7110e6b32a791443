"""Trains the gate of a run or ensemble on its training images, and stores it as gate.npz in its folder."""

import dataclasses
import logging

import jax
import numpy as np

from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation.classifier import Classifier, Square
from pneumojax.evaluation.defects import DEFECTS, make_unsuitable, vary
from pneumojax.evaluation.gate import VERSION, Gate, describe_images, read_gate, write_gate
from pneumojax.evaluation.run import Predictor, check_data

logger = logging.getLogger(__name__)

# Share of the training images and their varied copies that are below each of the two limits. With it, less than 2 % of
# the validation images of the flagship presets are flagged.
LIMIT_QUANTILE = 0.99

# Number of images that are made with each defect. All training images and their varied copies have none.
MADE_IMAGES = 1000

# The logistic regression: the inverse strength of its L2 penalty, and when it ends. It takes 140 iterations. With 50,
# only 63 % of mirrored images were detected instead of 90 %. A linear discriminant analysis detected 70 %.
INVERSE_PENALTY = 0.01
TOLERANCE, MAX_ITERATIONS = 0.01, 300

# Largest number of principal components, and the fewest training images for each.
MAX_COMPONENTS = 100
IMAGES_PER_COMPONENT = 20

SEED = 0


def load_or_train_gate(predictor: Predictor, classifier: Classifier) -> Gate:
    """Loads gate.npz, or trains the gate and stores it.

    The stored gate is used if it belongs to the same model, which needs no data set.

    Args:
      predictor: the run or ensemble.
      classifier: its classifier.

    Returns:
      The gate.

    Raises:
      UserError: gate.npz is damaged, or the gate must be trained and the training images of the run are missing.
    """
    path = predictor.workdir / "gate.npz"
    if path.exists():
        gate = read_gate(path)
        if (gate.model, gate.version, gate.names.tolist()) == (classifier.model, VERSION, list(DEFECTS)):
            return gate
    try:
        squares = load_squares(predictor, classifier, "train")
        if not check_data(predictor):
            raise UserError("the data set is not the one on which it was trained.")
    except UserError as error:
        raise UserError(
            f"{predictor.workdir} has no gate for this model, and it cannot be trained here ({error}) Run "
            "experiments/gate.py where the data set is, or give --nogate to predict without flags."
        ) from error
    gate = train_gate(classifier, squares)
    if jax.process_index() == 0:
        write_gate(path, gate)
    return gate


def load_squares(predictor: Predictor, classifier: Classifier, split_name: str) -> dict[Square, np.ndarray]:
    """Loads the images of a split as all squares that the members take.

    Args:
      predictor: the run or ensemble. The fold of its config decides on the split.
      classifier: its classifier.
      split_name: train or validation.

    Returns:
      For each square [N, H, W] uint8, in the same order.

    Raises:
      UserError: the split is missing or damaged.
    """
    config = predictor.config.data
    return {
        square: load_split(
            dataclasses.replace(config, image_px=square.image_px, resize=square.resize), split_name
        ).images
        for square in classifier.squares
    }


def train_gate(classifier: Classifier, squares: dict[Square, np.ndarray]) -> Gate:
    """Trains a gate.

    A varied copy of each training image is added, so that images of another hospital are not flagged for a slightly
    different position, field of view, exposure or contrast. Without the copies, 41 % of the validation images were
    flagged if they were rotated by 10 degrees, and all if they were shrunk to 85 % in a black frame.

    Args:
      classifier: the classifier whose features are used.
      squares: [N, H, W] uint8 for each square of the classifier, all training images.

    Returns:
      The gate.
    """
    # Imported here, because a stored gate does not need it.
    from sklearn.decomposition import PCA

    squares = {square: np.concatenate([images, vary(images, SEED)]) for square, images in squares.items()}
    images = squares[classifier.squares[0]]
    logger.info("Gate (once): the network's features of %d training images", len(images))
    features = extract_features(classifier, squares)
    described = describe_images(images)
    own = described.shape[1]
    descriptions = np.concatenate([described, features], axis=1)
    mean, scale = descriptions.mean(0), descriptions.std(0)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)  # A feature can be 0 for all training images.
    scaled = (descriptions - mean) / scale
    weights, biases = _learn_defects(images, scaled[:, :own], mean[:own], scale[:own])
    components = max(1, min(MAX_COMPONENTS, len(images) // IMAGES_PER_COMPONENT, scaled.shape[1] - 1))
    pca = PCA(components, svd_solver="covariance_eigh").fit(scaled.astype(np.float64))
    gate = Gate(
        model=classifier.model,
        names=np.array(list(DEFECTS)),
        mean=mean,
        scale=scale,
        weights=weights,
        biases=biases,
        defect_limit=np.inf,
        components=pca.components_.astype(np.float32),
        variances=pca.explained_variance_.astype(np.float32),
        residual_variance=float(pca.noise_variance_),
        far_limit=np.inf,
    )
    numbers = gate.compute_log_odds(scaled).max(1), gate.measure_distance(scaled)
    defect_limit, far_limit = (float(np.quantile(values, LIMIT_QUANTILE)) for values in numbers)
    return dataclasses.replace(gate, defect_limit=defect_limit, far_limit=far_limit)


def _learn_defects(
    images: np.ndarray, scaled: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Learns to distinguish training images from images with each defect. Returns `weights` and `biases` of a Gate.

    Args:
      images: [N, H, W] uint8, the training images.
      scaled: [N, T] float32, their scaled descriptions, without features.
      mean, scale: [T] float32, by which they were scaled.
    """
    from sklearn.linear_model import LogisticRegression

    logger.info("Gate (once): making images with %d defects", len(DEFECTS))
    originals = images[:: max(1, len(images) // MADE_IMAGES)]
    made = [(describe_images(make_unsuitable(name, originals, SEED)) - mean) / scale for name in DEFECTS]
    logger.info("Gate (once): learning to recognise them, which takes up to a minute")
    labels = np.repeat(np.arange(len(made) + 1), [len(scaled), *map(len, made)])
    regression = LogisticRegression(C=INVERSE_PENALTY, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    regression.fit(np.concatenate([scaled, *made]), labels)
    weights, biases = regression.coef_, regression.intercept_
    return (weights[1:] - weights[0]).astype(np.float32), (biases[1:] - biases[0]).astype(np.float32)


def extract_features(classifier: Classifier, squares: dict[Square, np.ndarray]) -> np.ndarray:
    """Computes the features of all members for images, batch after batch.

    Args:
      classifier: the classifier.
      squares: [N, H, W] uint8 for each square of the classifier.

    Returns:
      [N, F] float32, the features of the members one after another.
    """
    number = len(squares[classifier.squares[0]])
    batches = [slice(i, i + classifier.batch_size) for i in range(0, number, classifier.batch_size)]
    return np.concatenate(
        [classifier.compute({square: images[batch] for square, images in squares.items()})[1] for batch in batches]
    )
