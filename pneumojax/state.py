"""The training state."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All arrays that a training step updates, in nested dicts with string keys. They are replicated over the devices.

    Attributes:
      step: [] int32, number of completed steps.
      params: the network's parameters, float32.
      batch_stats: running means and variances of the batch normalisations, float32.
      opt_state: the optimizer's state.
      ema: moving averages {"params", "batch_stats"}, which are evaluated instead of the current values; {} if the run
        has no averages.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    ema: dict[str, Any]

    def eval_variables(self) -> dict[str, Any]:
        """Returns the {"params", "batch_stats"} that predictions use."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


# The result of a training step or a chunk: the new state, and {name: float32 array} of metrics.
StepResult = tuple[TrainState, dict[str, jax.Array]]
