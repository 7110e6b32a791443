import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted((ROOT / "pneumojax").rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


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


def import_alone(module):
    """Returns the names of all modules that are loaded by importing one module in a new process."""
    program = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT).split())


@pytest.mark.parametrize("module", ["pneumojax.training.fit", "pneumojax.evaluation.audit"])
def test_training_loads_no_tensorflow_and_nothing_it_does_not_need(module):
    loaded = import_alone(module)
    assert "jax" in loaded
    assert not loaded & {"tensorflow", "tensorflow_datasets", "matplotlib", "sklearn", "skimage", "torch", "grain"}


@pytest.mark.parametrize("module", ["pneumojax.config", "experiments.flags"])
def test_flags_are_checked_before_jax_is_loaded(module):
    assert not import_alone(module) & {"jax", "flax", "numpy", "tensorflow_datasets"}


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
    if path.name not in ("steps.py", "replica_steps.py", "inference.py"):
        assert not names & {"jax.jit", "jax.pmap", "nnx.jit"}
