"""Evaluation of trained runs: predictions, operating points, metrics with intervals, and reports."""
