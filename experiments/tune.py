"""Searches for a better config: trains one after the other, each proposed by what the earlier ones reached.

    scripts/run experiments/tune.py --space=experiments/spaces/resnet.toml --dataset=kermany \
        --flagfile=experiments/presets/resnet.flags --trials=30 --workdir=runs/tune
    scripts/run experiments/train.py --flagfile=runs/tune/best.flags --workdir=runs/tuned

The space file names the config fields to vary, and over what; the flags say all the others. Every trial is a run in
`<workdir>/trial_<number>`, which evaluate.py takes. The largest val/auroc wins. Validation is what is searched on, so
its figures of the best flatter; score test. optuna's TPE proposes; successive halving stops trials that lag behind
others of as many epochs.

Stopped at any time, the same command goes on, with more --trials too. Started twice at once, it works on one search in
parallel. Writes `<workdir>/trials.csv`, best.flags, tune.png and tune.html.
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
from pneumojax.config import Config
from pneumojax.files import write_text
from pneumojax.reporting.caveats import describe_synthetic
from pneumojax.reporting.tables import Table, format_csv
from pneumojax.training.search_space import Choices, Range, apply_values, read_space

if TYPE_CHECKING:
    from pneumojax.training.search import Search

WORKDIR = flags.DEFINE_string("workdir", "runs/tune", "folder of the trials' runs and of the results")
SPACE = flags.DEFINE_string("space", None, "TOML file of the fields to vary; experiments/spaces has one")
TRIALS = flags.DEFINE_integer(
    "trials", 20, "finished trials to have in all, those of earlier starts too", lower_bound=1
)
STORAGE = flags.DEFINE_string("storage", None, "SQLite file of the search (default: study.db in the workdir)")

TOLD_TRIALS = 10


def main() -> int:
    if not SPACE.value:
        return fail("--space is missing: name the file of the fields to vary, such as experiments/spaces/resnet.toml.")
    base, workdir = config_from_flags(), pathlib.Path(WORKDIR.value).expanduser()
    space = read_space(SPACE.value, base)
    from pneumojax.training.search import open_search, run_trials  # Imports JAX: after the flags are known to be good.

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
        print(f"Stopped; the current trial is kept.\n{format_resume()}")
        return 128 + stopped_by
    print(f"Written to {workdir}: trials.csv, tune.png, tune.html, best.flags; each trial's run beside them.")
    print(f"Next: scripts/run {shlex.join(suggest_next(workdir))}")
    return 0


def stop(number: int, frame: object) -> None:
    """Ends a trial that SIGTERM finds outside its loop, where fit() does not catch it."""
    del frame
    from pneumojax.training.search import Stopped

    raise Stopped(number)


class TrialProgress:
    """A progress bar, or log lines, for each trial."""

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
    """Writes trials.csv, best.flags, tune.png and tune.html; returns the table of the best trials, or nothing."""
    from pneumojax.reporting.figures.search import save_search
    from pneumojax.training.search import compute_importances, find_best, list_trials

    rows = list_trials(search)
    best = find_best(rows)
    if not rows:
        return ""
    workdir, importances = search.workdir, compute_importances(search)
    write_text(workdir / "trials.csv", format_trials(rows, list(search.space)))
    if best:
        config = apply_values(search.base, best["values"])
        write_text(workdir / "best.flags", format_best(best, rows, config))
    scales = {name: find_scale(values) for name, values in search.space.items()}
    save_search(workdir / "tune.png", rows, scales, importances)
    write_text(workdir / "tune.html", format_page(search, rows, importances, best))
    lines = [make_table(rank(rows)[:TOLD_TRIALS], list(search.space)).format_text()]
    if importances:
        words = ", ".join(f"{name} {share:.2f}" for name, share in importances.items())
        lines += ["", f"Share of the differences that each field explains (fANOVA): {words}"]
    return "\n".join([*lines, ""])


def find_scale(values: Range | Choices) -> str:
    """How a picture shows a field."""
    if isinstance(values, Choices):
        return "choices"
    return "log" if values.log else "linear"


def rank(rows: list[dict]) -> list[dict]:
    """Complete trials first, the best of them before the others."""
    return sorted(rows, key=lambda row: (row["state"] != "complete", row["auroc"] is None, -(row["auroc"] or 0)))


def make_table(rows: list[dict], fields: list[str]) -> Table:
    """Returns a table with a row for each trial."""
    cells = []
    for row in rows:
        auroc = "-" if row["auroc"] is None else f"{row['auroc']:.4f}"
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f}"
        values = [row["values"].get(field, "") for field in fields]
        values = [f"{value:.4g}" if isinstance(value, float) else format_value(value) for value in values]
        cells.append([row["name"].removeprefix("trial_"), auroc, row["state"], str(row["epochs"]), seconds, *values])
    caption = "seconds: of training and validation, over all starts of the trial."
    return Table(("trial", "val AUROC", "state", "epochs", "seconds", *fields), cells, caption)


def format_trials(rows: list[dict], fields: list[str]) -> str:
    """Returns CSV text with a row for each trial; numbers have all their digits."""
    cells = [
        [row["name"], row["state"], row["auroc"], row["epochs"], row["seconds"]]
        + [format_value(row["values"].get(field, "")) for field in fields]
        for row in rows
    ]
    return format_csv(["trial", "state", "val/auroc", "epochs", "seconds", *fields], cells)


def format_best(best: dict, rows: list[dict], config: Config) -> str:
    """A flagfile for train.py."""
    return (
        f"# {best['name']}, best of {len(rows)} trials of experiments/tune.py: validation AUROC {best['auroc']:.4f}.\n"
        "# Validation chose it, so that figure flatters.\n" + format_flagfile(config)
    )


def format_page(search: "Search", rows: list[dict], importances: dict | None, best: dict | None) -> str:
    """The page of the search."""
    from pneumojax.data.dataset import ensure_prepared
    from pneumojax.reporting.html import Section, load_picture, render_page

    workdir, fields = search.workdir, list(search.space)
    states = {state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "diverged")}
    lead = [
        f"{len(rows)} trials: {states['complete']} complete, {states['pruned']} pruned since others were "
        f"better after as many epochs, {states['diverged']} diverged. The largest validation AUROC wins."
    ]
    sections = []
    if best:
        lead.insert(0, f"Best is {best['name']}, with a validation AUROC of {best['auroc']:.4f}.")
        text = [f"Train it anew: scripts/run {shlex.join(suggest_next(workdir))}"]
        differing = Table(("flag",), [[line] for line in (workdir / "best.flags").read_text().splitlines()[2:]])
        sections.append(Section("The best config", text, [differing]))
    record = ensure_prepared(search.base.data)
    lead.append(
        "Validation was searched on, so the figures of the best flatter; the test split was not looked at. "
        f"Data {record['fingerprint'][:12]}, {sum(record['counts']['validation'].values())} validation images."
    )
    picture = load_picture(
        workdir / "tune.png",
        "Validation AUROC of each trial in their order and over each field",
        "A dot is a trial, at the best AUROC that it reached; an open one was pruned or diverged.",
        wide=True,
    )
    blocks = [make_table(rank(rows), fields)]
    sections = [Section("The search", (), [picture]), Section("Trials, best first", (), blocks), *sections]
    if importances:
        shares = [[name, f"{share:.3f}"] for name, share in importances.items()]
        text = [
            "How much of what tells the complete trials apart each field explains (fANOVA); of few trials a hint only."
        ]
        sections.append(Section("Importance", text, [Table(("field", "share"), shares)]))
    return render_page("Search over configs", lead, sections, describe_synthetic(record))


if __name__ == "__main__":
    define_config_flags()
    run(main)
