"""Pictures, as PNG files: a module for each subject, one style.

Each function draws numbers or images as one picture and replaces the file atomically, so that a reader never finds an
incomplete one. Where there is nothing to draw, the picture says why; the set of files is the same for every split.
"""
