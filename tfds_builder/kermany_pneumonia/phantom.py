"""Makes synthetic chest radiographs of children in Kaggle's layout, for tests and a first run.

The attenuation of each organ is added on a grid (x is 0 at the spine; y is 0 at the neck and 1 below the diaphragm).
A simulated exposure converts the sum to grey values. Bacterial pneumonia is an opacity in one or two lobes.
Viral pneumonia is a diffuse pattern around both hila. The severity varies, and the mildest cases are hardly visible.
Exposure, pose and noise do not depend on the class.
"""

import os
import pathlib
import shutil

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfds_builder.kermany_pneumonia.progress import map_in_threads

NUM_IMAGES = 600
TEST_FRACTION = 0.25
# Shares of NORMAL, BACTERIA, VIRUS among the official training images and among the test images.
CLASS_SHARES = {"train": (0.26, 0.48, 0.26), "test": (0.375, 0.388, 0.237)}
LOBES = {"right upper": (-0.42, 0.30), "right middle": (-0.36, 0.56), "right lower": (-0.46, 0.70)}
LOBES |= {"left upper": (0.42, 0.32), "left lower": (0.48, 0.66)}


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Returns a mask: 1 where the distance is negative (inside), 0 outside, with a soft edge of the given width."""
    return 1.0 / (1.0 + np.exp(np.clip(distance / width, -30.0, 30.0)))


def _ellipse(x: np.ndarray, y: np.ndarray, center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """Returns a signed distance: negative inside an ellipse, 0 on its outline, positive outside."""
    return np.hypot((x - center[0]) / radii[0], (y - center[1]) / radii[1]) - 1.0


def _line(x: np.ndarray, y: np.ndarray, start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """Returns the distance to a line segment."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    return np.hypot(x - start[0] - along * dx, y - start[1] - along * dy)


def _texture(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Returns smooth noise with mean 0 and standard deviation 1, interpolated from a grid of `cells` random values."""
    coarse = rng.standard_normal((cells + 2, cells + 2)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
    return smooth / smooth.std()


def draw_radiograph(subtype: str, patient: np.random.Generator, view: np.random.Generator) -> np.ndarray:
    """Draws one synthetic radiograph.

    Args:
        subtype: NORMAL, BACTERIA or VIRUS.
        patient: random generator for anatomy and disease. Generators with the same seed give the same patient.
        view: random generator for size, pose, exposure and noise.

    Returns:
        [H, W] uint8, 0..255, bright where X-rays are absorbed, without a side marker.
    """
    height = int(view.integers(200, 320))
    shape = height, int(height * view.uniform(1.0, 1.45))
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    x, y = (x - shape[1] / 2) / (0.5 * height), y / height
    tilt, zoom = view.normal(0, 0.035), view.uniform(0.92, 1.12)
    shift_x, shift_y = view.normal(0, 0.04), view.normal(0, 0.025)
    x, y = (x - tilt * (y - 0.5)) * zoom - shift_x, (y + 0.5 * tilt * x - 0.5) * zoom + 0.5 - shift_y

    width, inflation = patient.uniform(0.70, 0.82), patient.normal(0, 0.02)
    heart_size, spacing = patient.uniform(0.92, 1.12), patient.uniform(0.076, 0.088)
    side = np.abs(x)
    # The right dome of the diaphragm (left in the picture) is higher.
    dome = 0.79 + inflation + 0.025 * (x > 0) + 0.95 * (side - 0.36) ** 2
    lungs = np.maximum(
        _soft(_ellipse(x, y, (-0.40, 0.56), (width - 0.41, 0.47)), 0.05),
        _soft(_ellipse(x, y, (0.41, 0.56), (width - 0.42, 0.46)), 0.05),
    ) * _soft(y - dome, 0.012)
    torso = _soft(side - width - 0.10 - 0.05 * y - 0.5 * _soft(y - 0.10, 0.04) - 0.05 * np.sin(5 * y), 0.02)
    torso *= _soft(0.15 * (side - 0.25) - y - 0.005, 0.012)  # Neck and shoulders.
    arms = np.exp(-((_line(side, y, (width + 0.22, 0.12), (width + 0.42, 0.75)) / 0.13) ** 4))
    cage = _soft(_ellipse(x, y, (0.0, 0.60), (width + 0.04, 0.60)), 0.03)

    absorbed = 0.62 * torso * np.sqrt(np.clip(1.15 - (x / (width + 0.35)) ** 2, 0.0, 1.0)) + 0.38 * arms * (1 - torso)
    absorbed += 0.10 * _texture(patient, shape, 6) * torso * 0.25
    absorbed -= 0.46 * lungs
    absorbed += 0.22 * _soft(dome - y, 0.02) * cage * torso
    if patient.random() < 0.6:  # Gas in the stomach.
        absorbed -= 0.16 * _soft(_ellipse(x, y, (0.40, 0.95), (0.17, 0.07)), 0.15)
    heart = np.maximum(
        _soft(_ellipse(x + 0.30 * (y - 0.66), y, (0.13, 0.66), (0.34 * heart_size, 0.23)), 0.07),
        _soft(_ellipse(x, y, (0.0, 0.38), (0.17 * heart_size, 0.40)), 0.12),
    )
    absorbed += 0.34 * heart * _soft(y - dome - 0.03, 0.03)
    vertebrae = 0.75 + 0.25 * np.tanh(3 * np.cos(2 * np.pi * y / 0.062))
    absorbed += 0.20 * _soft(side - 0.085, 0.014) * vertebrae
    absorbed -= 0.13 * _soft(np.abs(x + 0.01) - 0.032, 0.012) * _soft(y - 0.33, 0.03)  # Trachea.

    # Posterior ribs bend down outwards. Anterior ribs run down inwards and are fainter.
    back, front = 0.10 * side + 0.62 * side**2.6, -0.62 * (side - 0.2)
    for slope, strength, thickness in ((back, 0.15, 0.22), (front, 0.03, 0.25)):
        phase = (y - slope - 0.035) / spacing
        offset = np.abs(phase - np.round(phase))
        band = _soft(offset - thickness, 0.035) * (0.72 + 0.28 * np.exp(-(((offset - thickness) / 0.06) ** 2)))
        absorbed += strength * band * cage * _soft(0.10 - side, 0.02) * _soft(y - dome - 0.10, 0.05)
    clavicle = _line(side, y - 0.03 * np.sin(8 * side), (0.12, 0.15), (width - 0.02, 0.07))
    absorbed += 0.20 * np.exp(-((clavicle / 0.020) ** 4))
    absorbed += 0.24 * np.exp(-((_line(side, y, (width + 0.20, 0.09), (width + 0.40, 0.55)) / 0.045) ** 4))  # Humerus.
    absorbed += 0.07 * _soft(np.abs(_line(side, y, (width - 0.02, 0.10), (width + 0.03, 0.42)) - 0.05) - 0.012, 0.01)

    hila = np.exp(-(((side - 0.24) / 0.20) ** 2) - ((y - 0.52) / 0.20) ** 2)
    vessels = np.clip(_texture(patient, shape, 34), 0.0, 3.0)
    absorbed += lungs * (0.035 + 0.07 * hila * patient.uniform(0.6, 1.5)) * vessels
    absorbed += _draw_disease(subtype, patient, x, y, lungs, hila)

    return _expose(absorbed, view)


def _draw_disease(
    subtype: str, patient: np.random.Generator, x: np.ndarray, y: np.ndarray, lungs: np.ndarray, hila: np.ndarray
) -> np.ndarray:
    """Returns the attenuation that pneumonia adds. A severity near 0 is hardly visible."""
    severity = patient.beta(1.6, 1.8)
    if subtype == "BACTERIA":
        added = np.zeros_like(x)
        for lobe in patient.choice(list(LOBES), size=1 + (patient.random() < 0.3), replace=False):
            center = LOBES[lobe][0] + patient.normal(0, 0.03), LOBES[lobe][1] + patient.normal(0, 0.03)
            radii = patient.uniform(0.13, 0.26), patient.uniform(0.11, 0.20)
            ragged = _ellipse(x, y, center, radii) + 0.16 * _texture(patient, x.shape, 9)
            airways = 1.0 - 0.18 * np.clip(_texture(patient, x.shape, 26), 0.0, 2.0)
            added += (0.09 + 0.30 * severity) * _soft(ragged, 0.13) * airways
        return np.minimum(added, 0.42) * lungs
    if subtype == "VIRUS":
        streaks = np.abs(_texture(patient, x.shape, 24)) + 0.6 * np.abs(_texture(patient, x.shape, 48)) - 0.5
        spread = 0.35 + 0.65 * hila
        return lungs * spread * (0.025 + (0.05 + 0.13 * severity) * streaks + 0.10 * severity)
    return np.float32(0.0) * lungs


def _expose(absorbed: np.ndarray, view: np.random.Generator) -> np.ndarray:
    """Converts attenuation, [H, W] float, to grey values, [H, W] uint8, with noise and the edges of the collimator."""
    image = 1.0 - np.exp(-view.uniform(1.25, 2.1) * np.clip(absorbed + 0.02, 0.0, None))
    image = (image / float(np.quantile(image[::4, ::4], 0.995))).clip(0.0, 1.0) ** view.uniform(0.8, 1.35)
    image = image * view.uniform(0.82, 1.0) + view.uniform(0.0, 0.06)
    image += view.standard_normal(absorbed.shape, dtype=np.float32) * view.uniform(0.006, 0.02)
    edge = view.integers(0, max(2, absorbed.shape[1] // 25), 2)
    image[:, : edge[0]] *= 0.05
    image[:, absorbed.shape[1] - edge[1] :] *= 0.05
    return (image.clip(0.0, 1.0) * 255).astype(np.uint8)


def _name_images(folder: str, num_images: int, rng: np.random.Generator) -> list[tuple[str, str, int]]:
    """Makes (file name, subtype, patient number) for each image of an official folder. Patients can have several."""
    shares = CLASS_SHARES[folder]
    counts = [round(num_images * share) for share in shares[:2]]
    names = []
    for subtype, count in zip(("NORMAL", "BACTERIA", "VIRUS"), (*counts, num_images - sum(counts)), strict=True):
        number, serial, repeats = 1, 1, 0
        for _ in range(count):
            if subtype == "NORMAL":
                prefix = "IM" if number % 2 else "NORMAL2-IM"
                repeat = f"-{repeats:04d}" if repeats else ""
                name = f"{prefix}-{100 + number:04d}-0001{repeat}.jpeg"
            else:
                name = f"person{number}_{subtype.lower()}_{serial}.jpeg"
            names.append((name, subtype, number))
            serial += 1
            repeats += 1
            if rng.random() < (0.85 if subtype == "NORMAL" else 0.6):
                number, repeats = number + 1, 0
    return names


def draw_folder(folder: str | os.PathLike[str], num_images: int = NUM_IMAGES, seed: int = 0) -> pathlib.Path:
    """Writes synthetic radiographs as JPEG files in Kaggle's layout: train, a small val, and test.

    train and test contain one byte-identical copy each, because the real images have such copies too.

    Args:
        folder: the folder in which the folder `chest_xray` is made.
        num_images: number of images. A quarter of them is in test.
        seed: seed of all patients.

    Returns:
        Path of the folder `chest_xray`.
    """
    root = pathlib.Path(folder, "chest_xray")
    num_test = round(num_images * TEST_FRACTION)
    jobs = []
    for code, (official, count) in enumerate({"train": num_images - num_test, "test": num_test}.items()):
        names = _name_images(official, count, np.random.default_rng([seed, code]))
        for index, (name, subtype, number) in enumerate(names):
            label = "NORMAL" if subtype == "NORMAL" else "PNEUMONIA"
            # As in Kaggle's val: a few images out of train, equally many of each class.
            last = [other for other, other_subtype, _ in names if (other_subtype == "NORMAL") == (label == "NORMAL")]
            in_val = official == "train" and name in last[-max(1, num_images // 75) :]
            path = root / ("val" if in_val else official) / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = ("NORMAL", "BACTERIA", "VIRUS").index(subtype)
            jobs.append((path, subtype, (seed, code, kind, number), (seed, code, index)))
    for _ in map_in_threads(_draw_file, jobs, "drawing synthetic radiographs"):
        pass
    for subset in ("train", "test"):  # The real images, too, have byte-identical files under two names.
        first, second = [job[0] for job in jobs if job[0].parts[-3:-1] == (subset, "NORMAL")][:2]
        shutil.copyfile(first, second)
    return root


def _draw_file(job: tuple[pathlib.Path, str, tuple[int, ...], tuple[int, ...]]) -> None:
    path, subtype, patient_seed, view_seed = job
    view = np.random.default_rng([*view_seed, 1])
    image = Image.fromarray(draw_radiograph(subtype, np.random.default_rng(patient_seed), view))
    if view.random() < 0.85:  # The side marker: R on the patient's right side, or L on the left.
        mark = "R" if view.random() < 0.8 else "L"
        size = int(image.height * view.uniform(0.05, 0.09))
        across = view.uniform(0.03, 0.12) if mark == "R" else view.uniform(0.84, 0.93)
        place = int(image.width * across), int(image.height * view.uniform(0.02, 0.25))
        ImageDraw.Draw(image).text(place, mark, fill=int(view.integers(200, 256)), font=ImageFont.load_default(size))
    if view.random() < 0.05:
        image = image.convert("RGB")
    image.save(path, quality=int(view.integers(80, 95)))
