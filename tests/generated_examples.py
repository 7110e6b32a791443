"""Generates examples with hypothesis: some of them in each run of the tests, and many more in the slow tests."""

import hypothesis
import pytest


def generate(fast, slow, **strategies):
    """Decorates a test, which becomes a test of `fast` examples and a slow test of `slow` examples.

    Args:
      fast: number of examples. They are the same in each run.
      slow: number of examples in the slow test.
      **strategies: {argument of the test: strategy of its values}.
    """

    def decorate(test):
        @pytest.mark.parametrize("examples", [fast, pytest.param(slow, marks=pytest.mark.slow)])
        def run(examples):
            settings = hypothesis.settings(max_examples=examples, deadline=None, derandomize=True)
            settings(hypothesis.given(**strategies)(test))()

        run.__name__ = test.__name__
        return run

    return decorate
