"""Plans the cases of benchmarks, for their tests."""

from experiments import benchmark
from experiments.benchmarks import cases

TINY = {"model": "mlp", "mlp_widths": "8", "image_px": "32", "batch_size": "8"}


def plan(*words):
    """Plans the cases of a command of benchmark.py."""
    return cases.plan_cases(benchmark.parse(list(words)))
