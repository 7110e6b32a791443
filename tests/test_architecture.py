"""Tests of the structure of the code: imports, lengths, docstrings and the names of test files."""

import ast
import functools
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted((ROOT / "pneumojax").rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# What one reads to understand a plain training of a ResNet.
MAIN_PATH = (
    "experiments/train.py",
    "pneumojax/config.py",
    "pneumojax/training/fit.py",
    "pneumojax/steps.py",
    "pneumojax/models/resnet.py",
)


def find_public(path):
    """Yields (name, node) for the public functions, classes and methods of a file."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, FUNCTIONS) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


EVERY_SOURCE = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def test_imports_keep_to_the_contracts():
    command = [
        sys.executable,
        "-c",
        "import sys; from importlinter.cli import lint_imports_command as c; c()",
        "--no-cache",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken." in done.stdout


PRINT_MODULES = """
import sys, json
print(json.dumps({name: getattr(module, "__file__", None) for name, module in sys.modules.items()}))
"""


@functools.cache
def list_loaded(*modules):
    """Returns {name: file or None} of all modules that are loaded by importing some modules in a new process."""
    program = f"import {', '.join(modules)}\n{PRINT_MODULES}"
    return json.loads(subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT))


def import_alone(*modules):
    """Returns the names of all packages that are loaded by importing some modules in a new process."""
    return {name.split(".")[0] for name in list_loaded(*modules)}


RESNET_TRAINING = ("pneumojax.training.fit", "pneumojax.models.resnet")


@pytest.mark.parametrize("modules", [RESNET_TRAINING, ("pneumojax.evaluation.audit",)])
def test_training_loads_no_tensorflow_and_nothing_it_does_not_need(modules):
    loaded = import_alone(*modules)
    assert "jax" in loaded
    assert not loaded & {"tensorflow", "tensorflow_datasets", "matplotlib", "sklearn", "skimage", "torch", "grain"}


@pytest.mark.parametrize("module", ["pneumojax.config", "experiments.flags"])
def test_flags_are_checked_before_jax_is_loaded(module):
    assert not import_alone(module) & {"jax", "flax", "numpy", "tensorflow_datasets"}


def count_lines(path):
    return len(path.read_text().splitlines())


def test_the_main_path_of_a_training_is_short():
    assert sum(count_lines(ROOT / name) for name in MAIN_PATH) < 1000


def test_a_training_imports_few_lines_of_this_repository():
    folders = [ROOT / name for name in ("pneumojax", "tfds_builder", "experiments")]
    paths = map(pathlib.Path, filter(None, set(list_loaded(*RESNET_TRAINING).values())))
    ours = [path for path in paths if any(path.is_relative_to(folder) for folder in folders)]
    assert ROOT / "pneumojax" / "steps.py" in ours
    assert sum(map(count_lines, ours)) < 5000


@pytest.mark.parametrize("folder", ["pneumojax", "experiments", "tfds_builder", "scripts"])
def test_modules_and_functions_are_short(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert count_lines(path) <= 400, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, FUNCTIONS):
                assert node.end_lineno - node.lineno < 70, f"{path}: {node.name}"


@EVERY_SOURCE
def test_every_module_and_everything_public_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
    bare = [name for name, node in find_public(path) if not ast.get_docstring(node)]
    # A config group is described by its fields.
    assert [name for name in bare if not name.endswith("Config")] == []


@EVERY_SOURCE
def test_docstrings_describe_the_parameters_there_are(path):
    for name, node in find_public(path):
        docstring = ast.get_docstring(node) or ""
        section = re.search(r"^Args:\n((?:  .*\n?|\n)+)", docstring, re.MULTILINE)
        if isinstance(node, FUNCTIONS) and section:
            described = re.findall(r"^  (\w+): ", section[1], re.MULTILINE)
            parameters = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert described == [parameter for parameter in parameters if parameter != "self"], f"{path.name}: {name}"


@EVERY_SOURCE
def test_the_library_does_not_print_or_read_flags_and_compiles_in_the_modules_of_steps_only(path):
    names = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Name, ast.Attribute))
    }
    assert not names & {"print", "flags.FLAGS", "FLAGS"}
    steps = ("steps.py", "parallel.py", "replica_steps.py", "inference.py", "attribution.py", "exported_program.py")
    if path.name not in steps:
        assert not names & {"jax.jit", "jax.pmap", "nnx.jit"}


# Modules of pneumojax without a test file of their own name.
WITHOUT_TESTS = {
    "errors.py": "it only defines the exceptions",
    "state.py": "it only defines the training state",
}


@EVERY_SOURCE
def test_every_module_has_a_test_file_of_its_name(path):
    module = path.relative_to(ROOT / "pneumojax")
    tests = ROOT / "tests" / module.parent / f"test_{module.name}"
    if module.name != "__init__.py" and str(module) not in WITHOUT_TESTS:
        assert tests.is_file(), f"{tests.relative_to(ROOT)} is missing"


def test_modules_without_tests_exist():
    assert all((ROOT / "pneumojax" / name).is_file() for name in WITHOUT_TESTS)
