"""Makes a data card: where the images of a run come from, how they were split, and what is known to be wrong."""

from pneumojax.reporting.caveats import describe_synthetic
from pneumojax.reporting.model_card import make_table, start_sentence
from pneumojax.reporting.run_record import AUTHORS, CITATION, RunRecord, make_facts

KERMANY = f"""The chest X-rays show children of one to five years. They are from the Guangzhou Women and Children's
Medical Center.

- **Citation**: {CITATION}.
- **Address**: https://data.mendeley.com/datasets/rscbjbr9sj/2
- **Licence**: CC BY 4.0.
- **Dates, devices, views, age and sex of each child**: {AUTHORS}. The image files do not have them."""

SPLITS = """`test` is the official test folder, unchanged. `train` and `validation` (15 % of each class) are made from
the official training images. Of byte-identical training images, only one is kept. Training images that are also in
test, or that have two labels, are left out.

**Patients.** A patient is the folder, the series and the number in the file name, such as `train/person/135`. No
patient is in two splits, and intervals resample patients. File names identify children imperfectly:

- `person135` of bacteria and of virus count as one patient. They may be two children.
- `IM-0115` and `NORMAL2-IM-0115` count as two patients. They may be one child.
- Equal numbers in the training folder and in the test folder count as two patients. They may be one child."""

SHORTCUTS = """Each of these separates NORMAL from pneumonia without the lungs. A network can use them, and images of
other hospitals may not have them.

- **Aspect**: images of pneumonia show the child wider. If they are squeezed to a square, the ratio of the mean
  horizontal to the mean vertical gradient separates the training images with an AUROC of about 0.89.
- **Size and file size**: NORMAL images have more pixels and several times more bytes.
- **Sharpness, exposure, contrast, black borders, markers and text** differ between the classes.
- **Border**: on validation, a linear model on the outermost of 8 x 8 pixels reaches an AUROC of 0.922
  (experiments/results/README.md of pneumojax)."""

NOISE = """The labels of the training images are noisier than those of the test images, most of all bacterial against
viral. By Kermany et al., two physicians graded all images, and a third one checked the test images only."""


def make_data_card(record: RunRecord) -> str:
    """Makes a data card in Markdown."""
    facts, data = make_facts(record), record.info["data"]
    if record.synthetic:
        source = f"{describe_synthetic(data)} A program of pneumojax generates them; no licence of others holds."
    else:
        source = f"{KERMANY}\n- **Read from**: {data['source']}."
    tests = {"Without the lungs": "audit", "Properties swapped between the classes": "robustness"}
    shortcuts = [f"- **{title}, this run**: {facts[name].format()}." for title, name in tests.items()]
    sections = {
        "Source": source,
        "Images and patients": _format_counts(record),
        "Splits": "\n\n".join([SPLITS, *_describe_exceptions(record)]),
        "Preparation": "\n\n".join(
            f"{start_sentence(facts[name].format())}." for name in ("left_out", "preprocessing")
        ),
        "Labels": f"{start_sentence(facts['reference_standard'].format())}.",
        "Known shortcuts": "\n\n".join(([] if record.synthetic else [SHORTCUTS]) + ["\n".join(shortcuts)]),
        "Label noise": "\n\n".join(([] if record.synthetic else [NOISE]) + [_format_noise(record)]),
        "Fingerprints": make_table(
            ("what", "sha256"),
            [("all splits", f"`{data['fingerprint']}`")]
            + [(split, f"`{value}`") for split, value in data["fingerprints"].items()],
        ),
        "Ethics": f"Approval and consent: {AUTHORS}.",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# Data card of the run {record.name}\n\n{body}\n"


def _describe_exceptions(record: RunRecord) -> list[str]:
    """Returns how the splits of the run differ from the description above."""
    sentences, c = [], record.config
    if "test" not in record.info["data"]["counts"]:
        sentences.append("The source of this run had no test folder, so there is no test split.")
    if c["folds"] is not None:
        sentences.append(
            f"This run is of a cross-validation: `test` is fold {c['fold']} of {c['folds']} (by {c['folds_by']}) of "
            "the official training images. The official test folder is not used."
        )
    if c["train_share"] < 1:
        sentences.append(f"This run was trained on a share of {c['train_share']:g} of the training images.")
    return sentences


def _format_counts(record: RunRecord) -> str:
    """Formats the numbers of images and patients of each class and split."""
    rows = []
    for split, counts in record.info["data"]["counts"].items():
        patients = (record.patients or {}).get(split, {})
        cells = [f"{n:,} ({patients[kind]:,})" if patients else f"{n:,}" for kind, n in counts.items()]
        total = f"{sum(counts.values()):,}" + (f" ({patients['all']:,})" if patients else "")
        share = f"{100 * (1 - counts['NORMAL'] / max(1, sum(counts.values()))):.1f} %"
        rows.append((split, *cells, total, share))
    kinds = next(iter(record.info["data"]["counts"].values()))
    table = make_table(("split: images (patients)", *kinds, "all", "pneumonia"), rows)
    if record.patients:
        note = "A patient can have images of several classes, so the patients of the classes can add up to more."
    else:
        note = (
            "Missing: the numbers of patients, because the data set of the training is not on this machine. Prepare "
            "it, or name its folder: experiments/card.py --data_dir=FOLDER."
        )
    return f"{table}\n\n{note}"


def _format_noise(record: RunRecord) -> str:
    """Formats how many labels the network contradicts, for each evaluation that estimated it."""
    lines = [
        f"- {split}: the network contradicts {100 * noise['share']:.1f} % of {noise['confident']:,} labels (confident "
        "learning; an upper bound as far as the network errs independently of the labels)."
        for split, results in record.evaluations.items()
        if (noise := results.get("label_noise")) and noise["share"] is not None
    ]
    if lines:
        return "\n".join(lines)
    command = record.command("evaluate.py", split="validation")
    return f"Missing: the estimated share of wrong labels. Run `{command}` first."
