"""Published results on the official test split of the Kermany X-rays, and their protocols as far as they are known."""

import dataclasses

from experiments.benchmarks.systems import SYSTEMS


@dataclasses.dataclass(frozen=True)
class Published:
    """A published result.

    Attributes:
      system: name, with the year if it is a publication.
      weights: initial weights of the network, random or ImageNet.
      chosen_on: the split that chose the epoch and the threshold, as published.
      seeds: number of trainings over which the figures are averaged, as published.
      figures: {metric: number as it was published}, on the official test split.
    """

    system: str
    weights: str
    chosen_on: str
    seeds: str
    figures: dict[str, str]


UNKNOWN = "not published"

# Protocols of the reference systems, by the first letter of their name.
PROTOCOLS = {
    "a": "validation; a2 for few missed patients",
    "b": UNKNOWN,
    "c": UNKNOWN,
    "d": "validation, for d3 made of random test images",
    "e": "both validation and test",
}

PUBLISHED = (
    Published(
        "Kermany et al., Cell 172, 2018: Inception V3",
        "ImageNet",
        UNKNOWN,
        "1",
        {"accuracy": "0.928", "sensitivity": "0.932", "specificity": "0.901", "auroc": "0.968"},
    ),
    Published(
        "MedMNIST v2, Scientific Data 10, 2023: ResNet-18 at 28 px",
        "random",
        "validation",
        UNKNOWN,
        {"accuracy": "0.854", "auroc": "0.944"},
    ),
    Published(
        "MedMNIST v2: ResNet-50 at 224 px", "random", "validation", UNKNOWN, {"accuracy": "0.884", "auroc": "0.962"}
    ),
    Published(
        "MedMNIST v2: Google AutoML Vision", UNKNOWN, "validation", UNKNOWN, {"accuracy": "0.946", "auroc": "0.991"}
    ),
    *(
        Published(
            f"{name}: {system.project}, {system.network}",
            "ImageNet" if name == "e3" else "random",
            PROTOCOLS[name[0]],
            "1",
            {metric: f"{value:.2f}" for metric, value in system.reported.items()},
        )
        for name, system in SYSTEMS.items()
    ),
)
