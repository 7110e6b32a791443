"""scripts/mutation.py: which places are never mutated, and how the results are counted."""

import ast
import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).parents[2] / "scripts" / "mutation.py"


@pytest.fixture(scope="module")
def mutation():
    spec = importlib.util.spec_from_file_location("mutation", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_annotations_and_texts_are_excluded(mutation):
    source = 'def f(a: int | None, *b: 1 + 2) -> 3:\n  c: list[4] = [5]\n  raise ValueError(f"{6 + a}")\n'
    excluded = list(mutation.find_excluded(ast.parse(source)))
    left = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and not any(start <= (node.lineno, node.col_offset) < end for start, end in excluded)
    ]
    assert left == [5]


def test_the_table_has_the_first_and_the_last_outcome_of_each_mutant(mutation):
    metrics, steps = mutation.MODULES[0].path, mutation.MODULES[-1].path
    history = {
        mutation.Mutant(metrics, "core/AddNot", 0): ["killed"],
        mutation.Mutant(metrics, "core/AddNot", 1): ["survived", "killed"],
        mutation.Mutant(steps, "core/AddNot", 0): ["survived", "survived"],
        mutation.Mutant(steps, "core/AddNot", 1): ["timeout"],
    }
    rows = mutation.format_table(history).splitlines()[2:]
    assert rows[0] == "| metrics | 2 | 1 | 0 | 1 | 2 | 0 | 0 |"
    assert rows[-2] == "| steps | 2 | 0 | 1 | 1 | 0 | 1 | 1 |"
    assert rows[-1] == "| all | 4 | 1 | 1 | 2 | 2 | 1 | 1 |"


def test_every_module_and_its_tests_exist(mutation):
    for module in mutation.MODULES:
        assert (PATH.parents[1] / module.path).is_file()
        for test in module.tests.split():
            file, _, name = test.partition("::")
            assert name in (PATH.parents[1] / file).read_text()
