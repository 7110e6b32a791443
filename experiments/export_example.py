"""Predicts a radiograph with an exported model. It needs jax, numpy and pillow only.

python example.py FOLDER IMAGE
"""

import hashlib
import json
import pathlib
import sys

import jax
import jax.export
import numpy as np
from PIL import Image

folder, image = map(pathlib.Path, sys.argv[1:])
model = json.loads((folder / "model.json").read_text())
program = (folder / "model.stablehlo").read_bytes()
assert hashlib.sha256(program).hexdigest() == model["files"]["model.stablehlo"], "the file was changed"

# Radiographs are squeezed to a square. `predict.py` also reads DICOM, and crops or pads where resize says so.
px = model["input"]["image_px"]
pixels = np.asarray(Image.open(image).convert("L").resize((px, px), Image.Resampling.BOX), np.uint8)

predict = jax.export.deserialize(bytearray(program)).call
calibrated, logits, _ = predict(pixels[None])
for name, probability in zip(model["class_names"], calibrated[0], strict=True):
    print(f"{name} {probability:.4f}")
score, threshold = 1 - jax.nn.softmax(logits[0])[0], model["threshold"]["value"]
print("PNEUMONIA" if score >= threshold else "NORMAL", f"at the threshold {threshold:.4f}")
