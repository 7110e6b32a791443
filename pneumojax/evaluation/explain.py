"""Explains the decisions of a run: maps of the pixels that support them, as pictures."""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from pneumojax.attribution import METHODS, has_maps, make_attribute
from pneumojax.data.dataset import SUBTYPES, Split, load_split
from pneumojax.data.decoder_process import Decoders
from pneumojax.data.image_sources import ImageSource
from pneumojax.evaluation import point_metrics
from pneumojax.evaluation.classifier import Classifier, make_classifier
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import Predictor, Run
from pneumojax.files import write_text
from pneumojax.reporting.figures.explanation import save_explanation
from pneumojax.reporting.tables import format_csv
from pneumojax.reporting.worst_errors import MAP_METHOD, ErrorMaps, find_shown

logger = logging.getLogger(__name__)

# Images that are explained together. It bounds the memory of the gradients.
BATCH_SIZE = 16

COLUMNS = ("file", "picture", "decision", "calibrated_probability", "error")


@dataclasses.dataclass(frozen=True)
class Explainer:
    """The compiled methods of a run. With several test_time_views, only the image itself is explained.

    Attributes:
      run: the run.
      methods: {name: function of `attribution.make_attribute`} of the methods that the network allows.
    """

    run: Run
    methods: Mapping[str, Any]

    def explain(
        self, method: str, images: np.ndarray, positive: np.ndarray, variables: dict | None = None
    ) -> np.ndarray:
        """Computes the maps of images in batches.

        Args:
          method: a key of `methods`.
          images: [N, H, W] uint8, of the size of the run.
          positive: [N] bool, whether to explain pneumonia (True) or NORMAL (False).
          variables: {"params", "batch_stats"}; None: those of the run.

        Returns:
          [N, H, W] float32, positive where the image supports the explained class.
        """
        variables = self.run.variables if variables is None else variables
        maps = [
            np.asarray(self.methods[method](variables, batch, sign))[:kept]
            for batch, sign, kept in make_batches(images, positive)
        ]
        return np.concatenate(maps)


def make_explainer(run: Run) -> Explainer:
    """Makes the compiled methods of a run. Grad-CAM is left out, with a log message, if the network has no maps."""
    names = list(METHODS)
    if not has_maps(run.config):
        names.remove("grad_cam")
        logger.warning(
            "Grad-CAM is left out: it needs a layer with spatial positions, which %s does not have.",
            run.config.model.model,
        )
    return Explainer(run, {name: make_attribute(run.config, name) for name in names})


def make_batches(images: np.ndarray, positive: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Splits images into batches of one size, so that each function is compiled once.

    Args:
      images: [N, H, W] uint8.
      positive: [N] bool.

    Yields:
      (batch, sign, number): BATCH_SIZE images, of which the last batch repeats its first one; sign [BATCH_SIZE]
      float32, 1 or -1; and the number of images that are not repeated.
    """
    for start in range(0, len(images), BATCH_SIZE):
        chosen = np.arange(start, min(start + BATCH_SIZE, len(images)))
        padded = np.pad(chosen, (0, BATCH_SIZE - len(chosen)), constant_values=start)
        yield np.asarray(images[padded]), np.where(positive[padded], 1, -1).astype(np.float32), len(chosen)


def explain_files(run: Run, sources: Iterable[ImageSource], out: pathlib.Path) -> list[dict[str, Any]]:
    """Writes a picture for each image file, and explanations.csv. A file that cannot be read is a row with the error.

    Args:
      run: the run.
      sources: the files. They may be generated while they are read.
      out: folder of the pictures. It is made if it is missing.

    Returns:
      The rows of explanations.csv, {column: value} with COLUMNS.

    Raises:
      UserError: the stored threshold or calibration is damaged, or has to be chosen and the data set is missing.
    """
    data = run.config.data
    writer = _Writer(run, out)
    with Decoders() as decoders:
        for source in sources:
            try:
                (image,) = decoders.read(source.read(), [(data.image_px, data.resize)])
            except OSError as error:
                reason = error.strerror or str(error) or type(error).__name__
                writer.add_error(source.name, " ".join(reason.split()))
                continue
            writer.add(source.name, image.pixels)
    return writer.finish()


def explain_split(run: Run, split_name: str, count: int, choose: str, out: pathlib.Path) -> list[dict[str, Any]]:
    """Writes pictures of some images of a split, and explanations.csv. Arguments and errors as in `explain_files`.

    Args:
      run: the run.
      split_name: train, validation or test.
      count: number of images; at most all.
      choose: random; or certain, which takes the images with the most certain decisions, half of them wrong ones.
      out: folder of the pictures.
    """
    split = load_split(run.config.data, split_name)
    writer = _Writer(run, out)
    if choose == "certain":
        scores = point_metrics.compute_binary_scores(compute_probabilities(run.predict(split.images)))
        chosen = choose_certain(split, scores, writer.classifier.threshold["value"], count)
    else:
        chosen = choose_random(len(split), count)
    for i in chosen:
        writer.add(str(split.filenames[i]), np.asarray(split.images[i]), SUBTYPES[split.subtypes[i]])
    return writer.finish()


def choose_random(images: int, count: int, seed: int = 0) -> np.ndarray:
    """Chooses `count` of a number of images, or all of them, in increasing order. Returns [count] int."""
    return np.sort(np.random.default_rng(seed).permutation(images)[:count])


def choose_certain(split: Split, scores: np.ndarray, threshold: float, count: int) -> np.ndarray:
    """Chooses the wrong and the right decisions whose scores are the most extreme.

    Args:
      split: the split.
      scores: [N] float, 0..1.
      threshold: the threshold of the decision.
      count: number of images. Half of them, or as many as there are, are wrong decisions.

    Returns:
      [count] int, the wrong decisions first, and the most certain first among the wrong and among the right ones.
    """
    positive = scores >= threshold
    certain = np.argsort(-np.where(positive, scores, 1 - scores), kind="stable")
    is_wrong = (positive != (split.subtypes > 0))[certain]
    wrong = certain[is_wrong][: count // 2]
    return np.concatenate([wrong, certain[~is_wrong][: count - len(wrong)]])


def explain_errors(predictor: Predictor, split: Split, scores: np.ndarray, positive: np.ndarray) -> ErrorMaps:
    """Computes the maps of the wrong decisions that a report shows. Those of an ensemble are means over its networks.

    Args:
      predictor: the run or ensemble that decided.
      split: the evaluated split, with images of the size of the first network.
      scores: [N] float, 0..1, higher for pneumonia.
      positive: [N] bool, whether the image is called pneumonia.
    """
    members = predictor.members
    if len({(run.config.data.image_px, run.config.data.resize) for run in members}) > 1:
        return ErrorMaps(note="There are no maps of the decisions, because the networks see different images.")
    shown = find_shown(split, scores, positive)
    if not len(shown):
        return ErrorMaps()
    logger.info("Computing maps of %d wrong decisions; --noexplain leaves them out", len(shown))
    images, sign = np.asarray(split.images[shown]), np.where(positive[shown], 1, -1).astype(np.float32)
    maps = [np.asarray(make_attribute(run.config, MAP_METHOD)(run.variables, images, sign)) for run in members]
    notes = [f"The map is the mean of the maps of {len(members)} networks."] if len(members) > 1 else []
    if any(run.config.augment.test_time_views > 1 for run in members):
        notes.append("It explains the scores of the image itself, without those of its other views.")
    return ErrorMaps(dict(zip(shown.tolist(), np.mean(maps, axis=0), strict=True)), " ".join(notes))


class _Writer:
    """Explains images in batches, and writes their pictures and table."""

    def __init__(self, run: Run, out: pathlib.Path):
        self.classifier: Classifier = make_classifier(run, BATCH_SIZE)
        self.explainer = make_explainer(run)
        self.out = out
        self.rows: list[dict[str, Any]] = []
        self.pending: list[tuple[int, dict[str, Any], np.ndarray, str | None]] = []
        out.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, pixels: np.ndarray, label: str | None = None) -> None:
        """Adds an image, [H, W] uint8. Its class is shown if it is known."""
        row = dict.fromkeys(COLUMNS) | {"file": name}
        self.rows.append(row)
        self.pending.append((len(self.rows), row, pixels, label))
        if len(self.pending) == BATCH_SIZE:
            self._write()

    def add_error(self, name: str, reason: str) -> None:
        """Adds a file that cannot be read."""
        logger.warning("%s cannot be explained: %s.", name, reason)
        self.rows.append(dict.fromkeys(COLUMNS) | {"file": name, "error": reason})

    def finish(self) -> list[dict[str, Any]]:
        """Writes the remaining images and the table. Returns its rows."""
        if self.pending:
            self._write()
        table = format_csv(COLUMNS, [[row[column] for column in COLUMNS] for row in self.rows])
        write_text(self.out / "explanations.csv", table)
        return self.rows

    def _write(self) -> None:
        images = np.stack([pixels for _, _, pixels, _ in self.pending])
        predicted = self.classifier.predict({self.classifier.squares[0]: images})
        positive = np.array([one["decision"] == "PNEUMONIA" for one in predicted])
        maps = {name: self.explainer.explain(name, images, positive) for name in self.explainer.methods}
        for i, (number, row, pixels, label) in enumerate(self.pending):
            probability = predicted[i]["calibrated_probability_PNEUMONIA"]
            row["decision"], row["calibrated_probability"] = predicted[i]["decision"], probability
            row["picture"] = f"{number:04}_{_make_stem(row['file'])}.png"
            truth = f", labelled {label}" if label else ""
            title = f"{row['decision']}, probability of pneumonia {probability:.1%}{truth}"
            own = {name: values[i] for name, values in maps.items()}
            save_explanation(self.out / row["picture"], pixels, own, title, row["file"])
        self.pending.clear()


def _make_stem(name: str) -> str:
    """Makes a safe file name of the last part of a path, which may contain any character."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", pathlib.PurePath(name).stem)[:60] or "image"
