"""Published figures and the counts that give them: against scikit-learn, and for figures known to be consistent."""

import numpy as np
import pytest
from forked import run_script
from sklearn import metrics

from experiments.benchmarks.published import PUBLISHED
from experiments.protocols import NORMAL, PNEUMONIA, compute_figures, find_counts, format_counts


@pytest.mark.parametrize(("positives", "negatives"), [(390, 100), (200, 234), (371, 188), (1, 1)])
def test_figures_are_scikit_learns(positives, negatives):
    labels = np.repeat([1, 0], [PNEUMONIA, NORMAL])
    decisions = np.repeat([1, 0, 0, 1], [positives, PNEUMONIA - positives, negatives, NORMAL - negatives])
    expected = {
        "accuracy": metrics.accuracy_score(labels, decisions),
        "sensitivity": metrics.recall_score(labels, decisions),
        "specificity": metrics.recall_score(labels, decisions, pos_label=0),
        "f1": metrics.f1_score(labels, decisions),
        "precision_macro": metrics.precision_score(labels, decisions, average="macro"),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, decisions),
        "f1_macro": metrics.f1_score(labels, decisions, average="macro"),
    }
    found = compute_figures(np.array(positives), np.array(negatives))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


def test_counts_of_figures_that_are_true_together_are_found():
    assert find_counts({"accuracy": "0.9103", "sensitivity": "0.9744", "specificity": "0.8034"}) == [(380, 188)]
    assert (386, 80) in find_counts({"sensitivity": "0.99", "f1": "0.83"})
    assert find_counts({"sensitivity": "0.99", "specificity": "0.99", "accuracy": "0.90"}) == []


def test_a_figure_that_no_count_gives_is_named():
    [kermany] = [one for one in PUBLISHED if "Kermany" in one.system]
    # 363 of 390 is 0.931 and 364 is 0.933; 210 of 234 is 0.897 and 211 is 0.902.
    assert format_counts(kermany) == "none (sensitivity, specificity cannot be reached by any count)"


def test_the_command_writes_every_system(processes, tmp_path):
    done = run_script(processes, tmp_path, "experiments/protocols.py", f"--out={tmp_path / 'page.md'}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text()
    assert page.strip() in done.stdout
    assert all(one.system in page for one in PUBLISHED)
