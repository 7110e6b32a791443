"""Packs the decoded images of a prepared data set into a zip file, for a machine that only trains.

    scripts/run scripts/pack_data.py --image_px=16,128 --out=packed.zip      # where the data set is prepared
    python3 -m zipfile -e packed.zip DIR                                     # on the other machine
    scripts/run experiments/train.py --data_dir=DIR --dataset=kermany --image_px=128

The other machine needs neither the image files nor tensorflow_datasets. It can read only the sizes and splits that were
packed. Images that have not been decoded to a size yet are decoded first, and cached as in a training.
"""

import os
import pathlib
import zipfile

from absl import flags

from experiments.cli import run
from pneumojax.config import DataConfig, config_from_dict
from pneumojax.errors import UserError

DATASET = flags.DEFINE_string("dataset", "kermany", "data set to pack, as in train.py")
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets, as in train.py")
SIZES = flags.DEFINE_list("image_px", ["128"], "heights and widths of the images in pixels, separated by commas")
RESIZE = flags.DEFINE_string("resize", DataConfig.resize, "how a file becomes a square, as in train.py")
SPLITS = flags.DEFINE_list("splits", ["train", "validation"], "splits to pack: train, validation, test")
OUT = flags.DEFINE_string("out", "packed.zip", "zip file to write")


def main() -> int:
    fields = {"dataset": DATASET.value, "data_dir": DATA_DIR.value, "resize": RESIZE.value}
    try:
        configs = [config_from_dict(fields | {"image_px": int(size)}).data for size in SIZES.value]
    except ValueError as error:
        raise UserError(f"--image_px must be whole numbers separated by commas: {error}.") from error
    files = [file for config in configs for split in SPLITS.value for file in find_files(config, split)]
    out = pathlib.Path(OUT.value).expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"{out.name}.tmp")
    try:
        # Of the methods of zip, bzip2 makes the smallest file of X-rays: 0.60 of their bytes; deflate makes 0.81.
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_BZIP2) as packed:
            for path, name in dict(files).items():  # The metadata once, although each split needs them.
                packed.write(path, name)
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)
    print(
        f"Written: {out}, {out.stat().st_size / 1e6:.1f} MB. Unpack it where you train: python3 -m zipfile -e {out} DIR"
    )
    return 0


def find_files(config: DataConfig, split: str) -> list[tuple[pathlib.Path, str]]:
    """Returns (path, path in the data folder) of each file from which a training loads a split.

    Args:
      config: the data set, its folder and the image size.
      split: train, validation or test.

    Raises:
      UserError: the data set has no such split, or its decoded images cannot be cached.
    """
    import numpy as np

    from pneumojax.data.dataset import load_split
    from tfds_builder import kermany_pneumonia

    images = load_split(config, split).images
    if not isinstance(images, np.memmap):
        raise UserError(f"the decoded images of {config.dataset} cannot be cached. Check the disk and --data_dir.")
    prepared = kermany_pneumonia.dataset_dir(config.dataset, config.data_dir).resolve()
    decoded = pathlib.Path(str(images.filename)).parent
    root = prepared.parents[2]
    paths = [prepared / "metadata.json", *sorted(decoded.iterdir())]
    return [(path, str(path.relative_to(root))) for path in paths]


if __name__ == "__main__":
    run(main)
