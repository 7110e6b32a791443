"""Makes rows of a race, for the tests of the speedrun."""

from experiments.benchmarks import speedrun_page


def make_rows(aurocs, first_seed=0, **fields):
    same = {"commit": "abc", "command": f"speedrun.py {fields}"}
    trainings = [
        {"what": "training", "seed": first_seed + i, "seconds": 2.0 + i, "cpu_seconds": 3.0, "images": 100}
        | {"evaluation_seconds": 0.1, "auroc": auroc}
        | same
        for i, auroc in enumerate(aurocs)
    ]
    race = {"what": "speedrun", "fields": fields, "seconds_with_compilation": 9.0, "cores": 2, "load": 0.1} | same
    race |= {"device": {"kind": "chip", "platform": "cpu", "count": 1}, "versions": {"jax": "1"}}
    return [*trainings, race | speedrun_page.summarise(trainings, 0.99)]
