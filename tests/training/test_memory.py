"""Compares the estimate of a training's memory with that of the compiler."""

import jax
from trainer import PLAIN, Trainer, draw_batches, make_mesh

from pneumojax.config import config_from_dict
from pneumojax.optimizer import make_optimizer
from pneumojax.steps import make_graph
from pneumojax.training.memory import estimate_memory


def test_the_estimate_of_memory_is_near_what_the_compiler_takes():
    config, mesh = config_from_dict(PLAIN | {"replicas": 4}), make_mesh(1)
    graph, tx = make_graph(config), make_optimizer(config.optimizer, 200)
    each, once = estimate_memory(config, graph, tx, mesh)
    trainer = Trainer(1, **PLAIN)
    assert each == sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.state))
    taken = trainer.chunk.lower(*trainer.arguments(draw_batches(1))).compile().memory_analysis().temp_size_in_bytes
    print(once, taken)
    assert taken / 3 < once < 3 * taken
