"""Tests of experiments/pneumojax_colab.ipynb: it runs from its first to its last cell, and stores no outputs."""

import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")  # An environment that is only for GPU benchmarks does not have it.

NOTEBOOK = pathlib.Path(__file__).parents[2] / "experiments" / "pneumojax_colab.ipynb"

# The smallest training that has something to show.
PARAMETERS = """
SOURCE = ""
FLAGS = "--image_px=32 --cnn_widths=4,8 --epochs=2"
RUN = {run!r}
REPOSITORY = ""
"""

# `!command` does not raise an error, so each cell is followed by this check.
CHECK = "\nassert not globals().get('_exit_code'), _exit_code"


def read_notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_valid_and_stores_no_outputs():
    notebook = read_notebook()
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert [cell.metadata.get("tags") for cell in cells].count(["parameters"]) == 1


@pytest.mark.slow
def test_the_notebook_runs_on_synthetic_radiographs(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    notebook, run = read_notebook(), tmp_path / "run"
    for cell in notebook.cells:
        if cell.metadata.get("tags") == ["parameters"]:
            cell.source = PARAMETERS.format(run=str(run))
        elif cell.cell_type == "code":
            cell.source += CHECK
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    for part in ("devices: [", "Finished", "AUROC", "Written to", "24 files, 24 predicted"):
        assert part in text
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 6
    for name in ("export/model.json", "cards/model_card.md", "predictions.csv"):
        assert (run / name).is_file()
