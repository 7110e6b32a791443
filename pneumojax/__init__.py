"""pneumojax: classifies chest X-rays of children as normal, bacterial or viral pneumonia, in JAX.

Letters in the shapes of docstrings:
    N  images of a split        B  images of a batch (global, over all devices)
    H  height in pixels         W  width in pixels (images are square: H = W = image_px)
    C  classes                  S  steps of a chunk
    D  devices                  R  bootstrap resamples
"""

__version__ = "0.1.0"
