"""The data: decoded images, batches of them, and their augmentation."""
