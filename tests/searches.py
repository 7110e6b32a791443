"""A search whose trials are scored by a formula, for the tests of searches."""

import numpy as np

from pneumojax.training.search_space import Choices, Range

SPACE = {
    "learning_rate": Range(1e-4, 1e-1, log=True),
    "dropout": Range(0.0, 0.5),
    "cnn_widths": Choices(((4, 8), (8,))),
}


def score(config, epoch):
    """Returns an AUROC that is best at a learning rate of 0.01 and increases with each epoch."""
    return 0.9 - 0.1 * abs(np.log10(config.optimizer.learning_rate) + 2) + 0.001 * epoch


def run_trials(opened, trials):
    """Runs trials until this many are finished. Returns their rows without the seconds, which differ between runs."""
    from pneumojax.training import search  # It imports optuna, which not every environment has.

    search.run_trials(opened, trials, lambda row, total_steps: None)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in search.list_trials(opened)]
