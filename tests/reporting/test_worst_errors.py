"""Tests of the worst errors in a report: which images are shown, as the network saw them, and the maps beside them."""

import io

import numpy as np
from PIL import Image

from pneumojax.data.dataset import SUBTYPES, Split
from pneumojax.reporting.worst_errors import SHOWN_ERRORS, ErrorMaps, find_errors, find_shown, show_errors

# 20 NORMAL images and 20 of pneumonia: 2 false positives and 5 false negatives at 0.5.
KINDS = np.array([0] * 20 + [1] * 12 + [2] * 8)
SCORES = np.array([0.1] * 13 + [0.3] * 5 + [0.6, 0.8] + [0.9] * 13 + [0.7] * 2 + [0.2, 0.05, 0.3, 0.4, 0.45])


def make_split(subtypes):
    """Makes a split whose images differ in brightness."""
    n = len(subtypes)
    texts, numbers = np.array([f"image{i:02}.jpeg" for i in range(n)]), np.ones(n, np.int32)
    images = np.full((n, 4, 4), np.arange(n)[:, None, None], np.uint8)
    return Split("test", images, np.asarray(subtypes, np.int32), texts, texts, *[numbers] * 3, texts, "f" * 64)


def show(missed, subtypes=KINDS, scores=SCORES, explained=None):
    return show_errors(make_split(subtypes), SUBTYPES, scores, scores >= 0.5, missed, explained or ErrorMaps())


def read_pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_the_most_certain_errors_come_first_as_the_network_saw_them():
    alarms, missed = show(False), show(True)
    assert [one.caption for one in alarms.blocks] == [
        "NORMAL, score 0.8\nimage19.jpeg",
        "NORMAL, score 0.6\nimage18.jpeg",
    ]
    assert [one.caption.split("\n")[1][5:7] for one in missed.blocks] == ["36", "35", "37", "38", "39"]
    assert missed.blocks[0].caption.startswith("VIRUS, score 0.05")
    np.testing.assert_array_equal(read_pixels(missed.blocks[0].content), np.full((4, 4), 36, np.uint8))
    assert not missed.blocks[0].overlay and len(missed.text) == 1


def test_of_many_errors_the_worst_are_shown_and_of_none_the_section_says_so():
    subtypes, scores = [0] * 12 + [1] * 12, np.array([0.6 + i / 100 for i in range(12)] + [0.9] * 12)
    section = show(False, subtypes, scores)
    assert "NORMAL images that were called pneumonia: 12, of which the 8 with the worst scores" in section.text[0]
    assert section.blocks[0].caption == "NORMAL, score 0.71\nimage11.jpeg" and len(section.blocks) == SHOWN_ERRORS
    none = show(True, subtypes, scores)
    assert (none.text, none.blocks) == (["Images with pneumonia that were called NORMAL: none."], ())


def test_all_shown_images_are_found_and_images_with_equal_scores_keep_their_order():
    split, positive = make_split(KINDS), SCORES >= 0.5
    assert find_shown(split, SCORES, positive).tolist() == [19, 18, 36, 35, 37, 38, 39]
    assert find_errors(split, np.full(40, 0.9), np.ones(40, bool), missed=False).tolist() == list(range(20))


def test_a_map_is_painted_beside_its_image():
    values = np.zeros((4, 4))
    values[0], values[-1] = 1, -1
    section = show(True, explained=ErrorMaps({36: values}, "A note."))
    image, *others = section.blocks
    assert not image.small and all(one.small and not one.overlay for one in others)
    np.testing.assert_array_equal(read_pixels(image.content), np.full((4, 4), 36, np.uint8))
    red, _, blue = read_pixels(image.overlay)[[0, -1]].mean(1).T
    assert red[0] > blue[0] and blue[1] > red[1]
    assert "less sure of NORMAL" in section.text[1] and "explain.md" in section.text[1] and section.text[2] == "A note."
