"""Reads all that is stored about a run, and writes its model card, its data card and reporting checklists."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pneumojax.config import config_to_dict
from pneumojax.data.dataset import SUBTYPES, Split, ensure_prepared, load_split
from pneumojax.errors import UserError
from pneumojax.evaluation.run import Run
from pneumojax.files import compute_sha256, replace_folder, write_text
from pneumojax.reporting import model_card
from pneumojax.reporting.checklists import load_checklists, make_checklist
from pneumojax.reporting.data_card import make_data_card
from pneumojax.reporting.run_record import RunRecord, make_facts
from tfds_builder import kermany_pneumonia

# The files of a run whose hashes are in the model card.
FILES = ("config.json", "threshold.json", "calibration.json")


def make_model_card(run: Run) -> str:
    """Makes the model card of a run in Markdown, such as for an export. See `make_cards` for the errors."""
    return make_cards(run)["model_card.md"]


def make_cards(run: Run) -> dict[str, str]:
    """Makes the model card, the data card and the checklists of a run.

    Returns:
      {file name: Markdown}.

    Raises:
      UserError: a stored result is damaged.
    """
    record = read_record(run)
    try:
        facts = make_facts(record)
        texts = {"model_card.md": model_card.make_model_card(record), "data_card.md": make_data_card(record)}
        return texts | {one["file"]: make_checklist(one, facts, record.name) for one in load_checklists().values()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"a result in {run.workdir / 'evaluation'} is damaged or of another version ({error!r}). Evaluate the run "
            "again: experiments/evaluate.py, and robustness.py, audit.py and explain.py if they were used."
        ) from error


def write_cards(run: Run, out: pathlib.Path) -> list[str]:
    """Writes the texts of `make_cards` into a new folder, which appears with all files or not at all.

    Args:
      run: the run.
      out: the folder to make.

    Returns:
      The names of the files.

    Raises:
      UserError: `out` exists, or a stored result is damaged.
      OSError: `out` cannot be written.
    """
    if out.exists():
        raise UserError(
            f"{out} exists already, and may have entries of the authors. Name a new folder with --out, or delete it."
        )
    texts = make_cards(run)
    with replace_folder(out) as folder:
        for name, text in texts.items():
            write_text(folder / name, text)
    return list(texts)


def read_record(run: Run) -> RunRecord:
    """Reads all that is stored about a run. What is missing is None or empty.

    Raises:
      UserError: a stored result is damaged.
    """
    patients, metadata = _read_data(run)
    evaluations = _read_results(run.workdir, "metrics.json", "evaluate.py", _check_metrics)
    return RunRecord(
        workdir=str(run.workdir),
        info=run.info | {"config": config_to_dict(run.config)},
        step=run.step,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])),
        weights_sha256=_hash_weights(run.variables),
        threshold=_read(
            run.workdir / "threshold.json", "evaluate.py", lambda one: (one["value"] + 0.0, one["rule"], one["split"])
        ),
        calibration=_read(
            run.workdir / "calibration.json",
            "evaluate.py",
            lambda one: (one["temperature"] + 0.0, one["biases"][0] + 0.0, one["split"]),
        ),
        evaluations=dict(sorted(evaluations.items(), key=lambda item: (item[0] != "test", item[0]))),
        robustness=_read_results(
            run.workdir,
            "robustness.json",
            "robustness.py",
            lambda one: one["nuisances"][one["worst"]]["change"]["value"] + 0.0,
        ),
        audits=_read_results(run.workdir, "audit.json", "audit.py", lambda one: one["altered"].items()),
        explanations=_read_results(
            run.workdir, "explanations.json", "explain.py --measure=200", lambda one: one["counts"]
        ),
        patients=patients,
        metadata=metadata,
        files={name: compute_sha256(run.workdir / name) for name in FILES},
    )


def _read_results(workdir: pathlib.Path, name: str, script: str, check: Callable) -> dict[str, Any]:
    """Reads a file of all evaluations: {folder: content}."""
    paths = sorted(workdir.glob(f"evaluation/*/{name}"))
    return {path.parent.name: _read(path, script, check) for path in paths}


def _read(path: pathlib.Path, script: str, check: Callable) -> dict[str, Any] | None:
    """Reads a JSON file. Returns None if there is none.

    Raises:
      UserError: the file is no JSON object, or `check` does not find what it needs.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        check(content)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Delete it, and run experiments/{script} again.") from error
    return content


def _check_metrics(content: dict) -> None:
    """Raises an error unless metrics.json has its main parts, which an interrupted or foreign writer may have lost."""
    for metric in content["metrics"].values():
        metric["ci95"], 0.0 if metric["value"] is None else metric["value"] + 0.0
    content["run"]["split"]["name"], content["counts"]["images"], content["threshold"], content["calibration"]
    content["subgroups"].items()


def _hash_weights(variables: dict) -> str:
    """Computes a sha256 of all weights with their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _read_data(run: Run) -> tuple[dict[str, dict[str, int]] | None, dict | None]:
    """Counts the patients of the run's data set, and reads its metadata. Both are None if it is not on this machine."""
    data = run.config.data
    if not kermany_pneumonia.dataset_dir(data.dataset, data.data_dir).exists():
        return None, None  # `ensure_prepared` would generate the synthetic radiographs.
    try:
        metadata = ensure_prepared(data)
        if metadata["fingerprint"] != run.info["data"]["fingerprint"]:
            return None, None  # The folder now has another data set.
        names = run.info["data"]["counts"]
        return {name: _count_patients(load_split(data, name)) for name in names}, metadata
    except (UserError, OSError):
        return None, None


def _count_patients(split: Split) -> dict[str, int]:
    counts = {kind: len(np.unique(split.patient_ids[split.subtypes == i])) for i, kind in enumerate(SUBTYPES)}
    return counts | {"all": len(np.unique(split.patient_ids))}
