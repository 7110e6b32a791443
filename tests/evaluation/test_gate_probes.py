"""Tests of the images on which the gate is measured: all can be read, and each kind is there."""

import numpy as np
from encoded_images import smooth_pixels

from pneumojax.data.image_files import read_image
from pneumojax.evaluation import gate_probes
from pneumojax.evaluation.corruptions import CORRUPTIONS
from pneumojax.evaluation.defects import DEFECTS, make_unsuitable

IMAGES = np.stack([smooth_pixels(32, 32, seed) for seed in range(3)])


def test_all_probes_are_files_that_can_be_read(monkeypatch):
    monkeypatch.setattr(gate_probes, "CROPS", 2)
    monkeypatch.setattr(gate_probes, "GENERATED_IMAGES", 2)
    probes = list(gate_probes.list_probes(IMAGES))
    assert [probe.flag for probe in probes[: len(DEFECTS)]] == list(DEFECTS)
    assert len({probe.title for probe in probes}) == len(probes) == len(DEFECTS) + 4 + 9 + 2 + len(CORRUPTIONS)
    for probe in probes:
        files = probe.make_files()
        read = [read_image(data, 32) for data in files]
        assert all(one.pixels.shape == (32, 32) for one in read)
        if probe.kind != gate_probes.FOREIGN:
            assert len(files) == len(IMAGES)
        assert {one.is_colour for one in read} == {probe.flag == "colour"}, probe.title


def test_the_files_of_a_defect_hold_its_pixels():
    for probe in gate_probes.list_probes(IMAGES):
        if probe.kind == gate_probes.DEFECT:
            pixels = np.stack([read_image(data, 32).pixels for data in probe.make_files()])
            np.testing.assert_array_equal(pixels, make_unsuitable(probe.flag, IMAGES, gate_probes.SEED))
