"""What training changes."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Arrays only, in nested dicts with string keys; the same on every device.

    Attributes:
      step: [] int32, steps done.
      params: the network's parameters, float32.
      batch_stats: running mean and variance of its batch normalisations, float32.
      opt_state: the optimizer's state.
      ema: moving averages {"params", "batch_stats"} that are evaluated in their place; {} without averaging.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    ema: dict[str, Any]

    def eval_variables(self) -> dict[str, Any]:
        """{"params", "batch_stats"} to predict with."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}
