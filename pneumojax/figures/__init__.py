"""Pictures, as PNG files: a module for each subject, one style.

Each function takes numbers, as of `pneumojax.metrics`, or images, draws one picture and replaces the file in one go, so
a reader never finds half of one. Where there is nothing to draw, the picture says why; the set of files is the same for
every split.
"""
