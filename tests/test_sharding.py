"""Tests of the devices: how JAX is initialised, and how arrays are placed."""

import os

import pytest
from multihost import join_all, start

from pneumojax.errors import UserError
from pneumojax.sharding import initialize


def start_without_port():
    os.environ.update(JAX_COORDINATOR_ADDRESS="localhost", JAX_NUM_PROCESSES="1", JAX_PROCESS_ID="0")
    with pytest.raises(UserError, match="cannot connect .* JAX_COORDINATOR_ADDRESS .host:port."):
        initialize(multihost=True)


def test_an_address_without_a_port_ends_in_a_sentence(processes):
    assert join_all([start(processes, start_without_port)]) == [0]
