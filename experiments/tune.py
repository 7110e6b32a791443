"""Searches for better hyperparameters.

    scripts/run experiments/tune.py --space=experiments/spaces/resnet.toml --dataset=kermany \\
        --flagfile=experiments/presets/resnet.flags --trials=30 --workdir=runs/tune
    scripts/run experiments/train.py --flagfile=runs/tune/best.flags --workdir=runs/tuned

The space file lists the config fields to vary and their values. All other fields are set by the flags, as in train.py.
optuna's TPE sampler proposes the values of each trial from the results of the earlier ones. Successive halving prunes
trials whose val/auroc is low compared with other trials at the same epoch. The best trial has the largest val/auroc.
This value is optimistic, because the trial was selected on validation. Evaluate the best run on test.

Each trial is a run in `<workdir>/trial_<number>`, which evaluate.py accepts. If the search is stopped, the same command
resumes it. With a larger --trials it runs more trials. If the command is started several times, the processes work on
one search in parallel. The results are written to `<workdir>/trials.csv`, best.flags, tune.png and tune.html.
"""

import pathlib
import shlex
import signal
import time
from typing import TYPE_CHECKING

from absl import flags

from experiments.cli import fail, run
from experiments.flags import config_from_flags, define_config_flags, format_flagfile, format_value
from experiments.progress import Progress, format_resume
from pneumojax.config import Config, replace_fields
from pneumojax.files import write_text
from pneumojax.reporting.caveats import describe_synthetic
from pneumojax.reporting.tables import Table, format_csv
from pneumojax.training.search_space import Choices, Range, read_space

if TYPE_CHECKING:
    from pneumojax.training.search import Search

WORKDIR = flags.DEFINE_string("workdir", "runs/tune", "folder of the trials' runs and of the results")
SPACE = flags.DEFINE_string("space", None, "TOML file of the fields to vary; experiments/spaces has an example")
TRIALS = flags.DEFINE_integer(
    "trials", 20, "total number of finished trials, including those of earlier starts", lower_bound=1
)
STORAGE = flags.DEFINE_string("storage", None, "SQLite file of the search (default: study.db in the workdir)")

PRINTED_TRIALS = 10


def main() -> int:
    if not SPACE.value:
        return fail("--space is missing: name the file of the fields to vary, such as experiments/spaces/resnet.toml.")
    base, workdir = config_from_flags(), pathlib.Path(WORKDIR.value).expanduser()
    space = read_space(SPACE.value, base)
    from pneumojax.training.search import open_search, run_trials  # Imports JAX, so it comes after the flag checks.

    search = open_search(STORAGE.value or workdir / "study.db", workdir, base, space)
    signal.signal(signal.SIGTERM, stop)
    progress = TrialProgress()
    stopped_by = None
    try:
        run_trials(search, TRIALS.value, progress.report)
    except KeyboardInterrupt as error:
        stopped_by = getattr(error, "number", signal.SIGINT)
    finally:
        progress.close()
    results = write_results(search)
    if results:
        print(results)
    if stopped_by:
        print(f"Stopped. The current trial is saved.\n{format_resume()}")
        return 128 + stopped_by
    print(f"Written to {workdir}: trials.csv, tune.png, tune.html, best.flags and the run of each trial.")
    print(f"Next: scripts/run {shlex.join(suggest_next(workdir))}")
    return 0


def stop(number: int, frame: object) -> None:
    """Stops the search at a SIGTERM outside of the training loop. Inside of it, fit() catches the signal.

    Args:
      number: number of the signal.
      frame: ignored. Python passes it to each handler of a signal.

    Raises:
      Stopped: always.
    """
    del frame
    from pneumojax.training.search import Stopped

    raise Stopped(number)


class TrialProgress:
    """Shows the progress of each trial as a bar or as log lines."""

    def __init__(self) -> None:
        self.progress = Progress(time.perf_counter())
        self.last_step = 0

    def report(self, row: dict, total_steps: int) -> None:
        if row["step"] < self.last_step:
            self.close()
            self.progress = Progress(time.perf_counter())
        self.last_step = row["step"]
        self.progress.report(row, total_steps)

    def close(self) -> None:
        self.progress.close()


def suggest_next(workdir: pathlib.Path) -> list[str]:
    return ["experiments/train.py", f"--flagfile={workdir / 'best.flags'}", f"--workdir={workdir}_best"]


def write_results(search: "Search") -> str:
    """Writes trials.csv, best.flags, tune.png and tune.html. Without finished trials, it writes nothing.

    Args:
      search: from `search.open_search`.

    Returns:
      A text for the terminal with a table of the best trials, or "" without finished trials.
    """
    from pneumojax.reporting.figures.search import save_search
    from pneumojax.training.search import compute_importances, find_best, list_trials

    rows = list_trials(search)
    best = find_best(rows)
    if not rows:
        return ""
    workdir, importances = search.workdir, compute_importances(search)
    write_text(workdir / "trials.csv", format_trials(rows, list(search.space)))
    if best:
        config = replace_fields(search.base, best["values"])
        write_text(workdir / "best.flags", format_best(best, rows, config))
    scales = {name: find_scale(values) for name, values in search.space.items()}
    save_search(workdir / "tune.png", rows, scales, importances)
    write_text(workdir / "tune.html", format_page(search, rows, importances, best))
    lines = [make_table(rank(rows)[:PRINTED_TRIALS], list(search.space)).format_text()]
    if importances:
        words = ", ".join(f"{name} {share:.2f}" for name, share in importances.items())
        lines += ["", f"Share of the variance of val/auroc that each field explains (fANOVA): {words}"]
    return "\n".join([*lines, ""])


def find_scale(values: Range | Choices) -> str:
    """Returns the scale of a field's axis in the figure: choices, log or linear."""
    if isinstance(values, Choices):
        return "choices"
    return "log" if values.log else "linear"


def rank(rows: list[dict]) -> list[dict]:
    """Sorts trials from best to worst: complete trials come before all others, and larger AUROCs before smaller ones.

    Args:
      rows: from `search.list_trials`.
    """
    return sorted(rows, key=lambda row: (row["state"] != "complete", row["auroc"] is None, -(row["auroc"] or 0)))


def make_table(rows: list[dict], fields: list[str]) -> Table:
    """Returns a table with a row for each trial.

    Args:
      rows: from `search.list_trials`.
      fields: the config fields that the search varies.
    """
    cells = []
    for row in rows:
        auroc = "-" if row["auroc"] is None else f"{row['auroc']:.4f}"
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f}"
        values = [row["values"].get(field, "") for field in fields]
        values = [f"{value:.4g}" if isinstance(value, float) else format_value(value) for value in values]
        cells.append([row["name"].removeprefix("trial_"), auroc, row["state"], str(row["epochs"]), seconds, *values])
    caption = "seconds: time of training and validation, summed over all starts of the trial."
    return Table(("trial", "val AUROC", "state", "epochs", "seconds", *fields), cells, caption)


def format_trials(rows: list[dict], fields: list[str]) -> str:
    """Returns CSV text with a row for each trial. Numbers are not rounded. The arguments are as in `make_table`."""
    cells = [
        [row["name"], row["state"], row["auroc"], row["epochs"], row["seconds"]]
        + [format_value(row["values"].get(field, "")) for field in fields]
        for row in rows
    ]
    return format_csv(["trial", "state", "val/auroc", "epochs", "seconds", *fields], cells)


def format_best(best: dict, rows: list[dict], config: Config) -> str:
    """Returns the text of a flagfile, with which train.py trains the best config.

    Args:
      best: the row of the best trial, from `search.find_best`.
      rows: from `search.list_trials`.
      config: the config of the best trial.
    """
    return (
        f"# {best['name']}, best of {len(rows)} trials of experiments/tune.py: validation AUROC {best['auroc']:.4f}.\n"
        "# The trial was selected on validation, so this value is optimistic.\n" + format_flagfile(config)
    )


def format_page(search: "Search", rows: list[dict], importances: dict | None, best: dict | None) -> str:
    """Returns the text of the search's HTML page.

    Args:
      search: from `search.open_search`.
      rows: from `search.list_trials`.
      importances: from `search.compute_importances`.
      best: from `search.find_best`.
    """
    from pneumojax.data.dataset import ensure_prepared
    from pneumojax.reporting.html import Section, load_picture, render_page

    workdir, fields = search.workdir, list(search.space)
    states = {state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "diverged")}
    lead = [
        f"{len(rows)} trials: {states['complete']} complete, {states['pruned']} pruned because other trials were "
        f"better at the same epoch, {states['diverged']} diverged. The best trial has the largest validation AUROC."
    ]
    sections = []
    if best:
        lead.insert(0, f"The best trial is {best['name']}, with a validation AUROC of {best['auroc']:.4f}.")
        text = [f"To train it again: scripts/run {shlex.join(suggest_next(workdir))}"]
        differing = Table(("flag",), [[line] for line in (workdir / "best.flags").read_text().splitlines()[2:]])
        sections.append(Section("The best config", text, [differing]))
    metadata = ensure_prepared(search.base.data)
    lead.append(
        "The trials were compared on validation, so the AUROC of the best trial is optimistic. The test split was not "
        f"used. Data {metadata['fingerprint'][:12]}, {sum(metadata['counts']['validation'].values())} validation "
        "images."
    )
    picture = load_picture(
        workdir / "tune.png",
        "Validation AUROC of each trial, by its number and by the value of each field",
        "Each dot is the AUROC of a trial. An open dot is a trial that was pruned or diverged.",
        wide=True,
    )
    blocks = [make_table(rank(rows), fields)]
    sections = [Section("The search", (), [picture]), Section("Trials, best first", (), blocks), *sections]
    if importances:
        shares = [[name, f"{share:.3f}"] for name, share in importances.items()]
        text = [
            "The share of the variance of the AUROC over the complete trials that each field explains (fANOVA). With "
            "few trials these shares are rough estimates."
        ]
        sections.append(Section("Importance", text, [Table(("field", "share"), shares)]))
    return render_page("Hyperparameter search", lead, sections, describe_synthetic(metadata))


if __name__ == "__main__":
    define_config_flags()
    run(main)
