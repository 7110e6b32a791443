"""The data: splits of decoded images, batches, and augmentation."""
