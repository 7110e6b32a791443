"""Figures as PNG files in a common style. Each module contains the figures of one topic.

Each function plots one figure and replaces its file atomically, so that a reader never finds an incomplete one. If
there is nothing to plot, the figure shows the reason. Every split therefore has the same set of files.
"""
