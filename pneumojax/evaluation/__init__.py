"""Trained runs: predictions, operating points, metrics with intervals, reports."""
