"""What a reader of the figures must not overlook."""

from collections.abc import Mapping

NOT_A_DEVICE = "For research. Not a medical device: no output of it may decide about a patient."


def describe_synthetic(data: Mapping) -> str:
    """Returns a warning where a data set holds synthetic radiographs, else an empty string.

    Args:
      data: the metadata of a prepared data set, or "data" of a run's config.json; "synthetic" is read.
    """
    if not data["synthetic"]:
        return ""
    return "Synthetic radiographs, not patients: these figures say nothing about X-rays."


def describe_warnings(results: Mapping) -> list[str]:
    """Returns the warnings about an evaluation, one or two sentences each.

    Args:
      results: content of metrics.json.
    """
    run, selection_split = results["run"], results["calibration"]["split"]
    split = run["split"]["name"]
    warnings = list(filter(None, [describe_synthetic(run["data"])]))
    if split == selection_split:
        chosen = ["epoch"] * (run["checkpoint"]["which"] == "best")
        chosen += ["threshold"] * (results["threshold"]["split"] == split) + ["temperature"]
        choices = " and ".join(filter(None, (", ".join(chosen[:-1]), chosen[-1])))
        verb = "were" if "and" in choices else "was"
        if split == "test":
            warnings.append(
                f"LEAKY: {choices} {verb} chosen on the split that is scored. These figures are worth nothing but to "
                "show what the leak adds."
            )
        else:
            warnings.append(
                f"{choices.capitalize()} {verb} chosen on the split that is scored, so its figures are optimistic. "
                "Score test."
            )
    if split == "train":
        warnings.append("The network was trained on these images: the figures show what it has memorised. Score test.")
    if not run["trained_on_this_data"]:
        warnings.append(
            "This data set's training split is not the one that the network was trained on: the network may have been "
            "trained on images that are scored here."
        )
    return warnings
