"""Tests of the list of reference systems: each is rebuilt by a preset, and its metrics are computed here."""

import pathlib

import numpy as np
import pytest

from experiments import flags
from experiments.benchmarks.systems import FIGURES, LEAKY, SYSTEMS
from pneumojax.config import CLASS_NAMES
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.metrics import compute_metrics

PRESETS = pathlib.Path(__file__).parents[3] / "experiments" / "presets"


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_has_a_preset_that_gives_its_metrics(name):
    config = flags.read_preset(PRESETS / f"{name}.flags")
    classes = len(CLASS_NAMES[config.model.task])
    labels = np.arange(2 * classes) % classes
    given = compute_metrics(labels, np.full((len(labels), classes), 1 / classes), 0.5, PatientBootstrap(labels, 0))
    reported = SYSTEMS[name].reported
    assert reported.keys() <= given.keys() & FIGURES.keys()
    assert all(0.5 < value < 1 for value in reported.values())


def test_the_leaky_protocol_is_no_system():
    assert LEAKY not in SYSTEMS and not (PRESETS / f"{LEAKY}.flags").exists()
    assert {metric for system in SYSTEMS.values() for metric in system.reported} == FIGURES.keys()
