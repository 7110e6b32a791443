"""The compiled training of a speedrun, which is timed for each seed. The protocol is described in speedrun.py."""

import dataclasses
import pathlib
import time
from collections.abc import Callable

import jax

from pneumojax import steps
from pneumojax.config import Config, replace_fields
from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation.aspect import add_swapped
from pneumojax.evaluation.predict import make_predict_images
from pneumojax.training.compile_cost import compile_chunk, count_step_flops
from pneumojax.training.fit import make_train_chunks
from pneumojax.training.input_pipeline import make_chunk_inputs
from pneumojax.training.plan import load_selection_split, make_plan
from pneumojax.training.validation import score_validation


class Racer:
    """The compiled training of a config. All seeds use the same compiled program.

    Args:
      config: the config of the trainings. Its seed is not used.
      compile_cache: empty folder for the programs that this process compiles; None: JAX's usual folder.
    """

    def __init__(self, config: Config, compile_cache: pathlib.Path | None = None):
        if compile_cache:
            jax.config.update("jax_compilation_cache_dir", str(compile_cache))
        self.config, self.plan = config, make_plan(config)  # Also writes the decoded cache if it does not exist yet.
        self.selection, self.mesh = add_swapped(load_selection_split(config)), self.plan.mesh
        self.train_chunks = make_train_chunks(self.plan)
        self.init = steps.make_init(config, self.plan.tx, self.mesh)
        self.predict_images = make_predict_images(config, self.selection.images, self.mesh)
        self.images = self.plan.total_steps * config.train.batch_size
        self.compiled: dict[int, Callable] = {}
        self.costs = {"compile_seconds": 0.0}

    def train(self, seed: int) -> dict:
        """Trains, starting from the decoded cache.

        Args:
          seed: seed of initialisation, order and augmentation.

        Returns:
          {"params", "batch_stats"} to evaluate, ready on the devices. On CPU, `fit` gives bitwise equal arrays.
        """
        config = replace_fields(self.config, {"seed": seed})
        # The images are loaded again, because loading is part of what is timed.
        plan = dataclasses.replace(self.plan, config=config, data=load_split(config.data, "train"))
        state, key = self.init(jax.random.key(seed)), steps.make_key(config, self.mesh)
        chunk_inputs = make_chunk_inputs(plan, (plan.data.images, plan.labels()), key, 0)
        for number, inputs in enumerate(chunk_inputs):
            size = plan.find_size_index(number * plan.chunk_steps)
            state, _ = self._compile(size, (state, *inputs))(state, *inputs)
        return jax.block_until_ready(state.eval_variables())

    def _compile(self, size: int, arguments: tuple) -> Callable:
        """Returns the compiled chunk for a size and stores its costs. Compile times are summed over the sizes."""
        if size not in self.compiled:
            mapped, chunk = self.config.train.parallel != "jit", self.train_chunks[size]
            self.compiled[size], costs = compile_chunk(chunk, arguments)
            costs |= count_step_flops(chunk, arguments, self.mesh.size, mapped)
            costs = {name.removeprefix("perf/"): number for name, number in costs.items()}
            costs["compile_seconds"] += self.costs["compile_seconds"]
            self.costs |= costs
        return self.compiled[size]

    def time(self, seed: int) -> dict:
        """Measures the time of a training, and evaluates it on validation afterwards.

        Args:
          seed: as in `train`.

        Returns:
          {"seed", "seconds", "cpu_seconds" (of all threads), "images", "evaluation_seconds", "auroc"}.

        Raises:
          UserError: the training has diverged.
        """
        started, cpu_started = time.perf_counter(), time.process_time()
        variables = self.train(seed)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        started = time.perf_counter()
        labels = self.selection.labels(self.config.model.task)
        scores = score_validation(labels, self.predict_images(variables))
        if "val/auroc" not in scores:
            raise UserError(f"seed {seed} has diverged: its loss is not finite. Set a lower --learning_rate.")
        return {
            "seed": seed,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "images": self.images,
            "evaluation_seconds": time.perf_counter() - started,
            "auroc": scores["val/auroc"],
        }
