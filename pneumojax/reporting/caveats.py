"""Warnings that are shown with results, so that no reader misses them."""

from collections.abc import Mapping

NOT_A_DEVICE = "For research only. This is not a medical device: its output must not decide about a patient."


def describe_synthetic(data: Mapping) -> str:
    """Returns a warning if a data set consists of synthetic radiographs, otherwise an empty string.

    Args:
      data: the metadata of a prepared data set, or "data" of a run's config.json. The key "synthetic" is used.
    """
    if not data["synthetic"]:
        return ""
    return "These are synthetic radiographs, not patients: the results say nothing about X-rays."


def describe_warnings(results: Mapping) -> list[str]:
    """Returns the warnings about an evaluation, one or two sentences each.

    Args:
      results: content of metrics.json.
    """
    run, selection_split = results["run"], results["calibration"]["split"]
    split = run["split"]["name"]
    warnings = list(filter(None, [describe_synthetic(run["data"])]))
    if split == selection_split:
        by_score = run.get("config", {}).get("select_by") != "last"
        chosen = ["epoch"] * (by_score and run["checkpoint"]["which"] == "best")
        chosen += ["threshold"] * (results["threshold"]["split"] == split) + ["calibration"]
        choices = " and ".join(filter(None, (", ".join(chosen[:-1]), chosen[-1])))
        verb = "were" if "and" in choices else "was"
        if split == "test":
            warnings.append(
                f"LEAKY: {choices} {verb} chosen on the evaluated split. The results are invalid; they only show how "
                "much the leak adds."
            )
        else:
            warnings.append(
                f"{choices.capitalize()} {verb} chosen on the evaluated split, so the results are optimistic. "
                "Evaluate the run on test."
            )
    if split == "train":
        warnings.append(
            "The network was trained on these images: the results show how much it has memorised. Evaluate the run on "
            "test."
        )
    # None: the images are not of a prepared data set.
    if run["trained_on_this_data"] is False:
        warnings.append(
            "The network was trained on another training split than that of this data set. It may have been trained on "
            "images that are evaluated here."
        )
    return warnings
