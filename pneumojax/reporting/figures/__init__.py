"""Figures as PNG files, in one style; each module holds the figures of one subject.

Each function draws one figure and replaces its file atomically, so that a reader never finds an incomplete one. Where
there is nothing to draw, the figure says why, so every split has the same set of files.
"""
