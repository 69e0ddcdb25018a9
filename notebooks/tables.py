"""The tables of the READMEs, computed from the result files in figures/ and from data/manifest.csv.

sync.py writes each between <!-- table NAME --> and <!-- end -->. It needs nothing but Python.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import speed_tables
from speed_tables import as_table

FIGURES = Path(__file__).resolve().parent / "figures"
MANIFEST = FIGURES.parent.parent / "data" / "manifest.csv"
LABELS = {"covid": "COVID-19", "normal": "normal", "pneumonia_bac": "bacterial", "pneumonia_vir": "viral"}
TASKS = {
    "children": "children of another hospital",
    "children_blackout": "the same, 90% of height and width black",
    "nih": "X-rays of the NIH, no finding",
    "nih_blackout": "the same, 90% of height and width black",
    "same_collection": "other diseases, the same collection",
}
RECIPES = ("article", "gentle", "none", "logistic")


def load(name: str) -> dict:
    """Return the content of a result file: binary, multi, chance, bench."""
    return json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))


def counted(score: dict) -> str:
    """Return "23 of 36 = 64%"."""
    return f"{score['correct']} of {score['n']} = {score['correct'] / score['n']:.0%}"


def percent(interval: Sequence[float]) -> str:
    """Return an interval of shares, "46% to 79%"."""
    return "{:.0%} to {:.0%}".format(*interval)


def decimal(value: float, interval: Sequence[float]) -> str:
    """Return "0.66 (0.56 to 0.76)"."""
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def spread(found: dict, digits: int = 3) -> str:
    """Return mean, standard deviation, and range over seeds, or mean and range of counts."""
    low, high = min(found["values"]), max(found["values"])
    if digits == 0:
        return f"{found['mean']:.0f} ({low} to {high})"
    return f"{found['mean']:.{digits}f} ± {found['sd']:.{digits}f} ({low:.2f} to {high:.2f})"


# --- README.md


def results() -> str:
    """Return what the article reports beside the test sets and the cross-validation of the committed run."""
    binary, multi = load("binary"), load("multi")
    rows = []
    for classes, score, reported in (
        ("two: COVID-19, normal", binary["cases"]["binary"]["test"], "100% of 2 images"),
        ("three: and bacterial pneumonia", multi["cases"]["three"]["test"], "100% of 3 images"),
        ("four: and viral pneumonia", multi["cases"]["four"]["test"], "50% of 4 images"),
        ("four, cross-validated by patient", multi["trust"]["grouped_cv"]["four"], ""),
    ):
        rows.append([classes, counted(score), percent(score["ci95"]), reported])
    return as_table(["classes", "test images right", "95% confidence interval", "the article"], rows)


def trust() -> str:
    """Return the questions of the first lesson's second part, with the committed run's answers."""
    trust, four = load("binary")["trust"], load("multi")["trust"]
    heads = load("chance")["heads"]["no_finding"]
    blackout, nih, task = trust["blackout"]["binary"], trust["no_finding"], trust["like_for_like"]["same_collection"]
    leaked = len(trust["test_images_of_training_patients"])
    black = f"{blackout['correct']} of {blackout['n']} (two classes), "
    black += "{correct} of {n} (four)".format(**four["blackout"]["four"])
    called = f"The binary model predicts COVID-19 for {nih['predicted_covid']} of {nih['n']}; "
    called += f"{len(heads['values'])} other heads for {min(heads['values'])} to {max(heads['values'])}."
    can = f"{counted(task)}, {percent(task['ci95'])}; always the larger group: {task['majority']:.0%}. "
    can += f"Area under the ROC curve {decimal(task['auc'], task['auc_ci95'])}."
    rows = [
        ["Do test images show patients of the training set?", f"{leaked} of the 9 COVID-19 ones do."],
        ["Are the lungs needed?", f"With 90% of height and width black: {black}."],
        ["What does it predict for X-rays with no finding, from the NIH?", called],
        ["Can it tell COVID-19 from other diseases in the same collection?", can],
    ]
    return as_table(["question", "answer"], rows)


# --- notebooks/README.md


def test_sets() -> str:
    """Return every test set of the committed run."""
    rows = []
    cases = {"two": load("binary")["cases"]["binary"], **load("multi")["cases"]}
    for name, case in cases.items():
        recipe = case.get("augmentation", "article").replace("fine_tuned", "article, fine-tuned")
        rows.append([name.partition("_")[0], recipe, counted(case["test"]), percent(case["test"]["ci95"])])
    rows.sort(key=lambda row: ("two", "three", "four").index(row[0]))
    return as_table(["classes", "augmentation", "test images right", "95% confidence interval"], rows)


def augmentations() -> str:
    """Return the cross-validated recipes of the committed run."""
    rows = []
    for name in RECIPES:
        score = load("multi")["trust"]["grouped_cv"]["four" if name == "article" else f"four_{name}"]
        on_views = f"{score['mean_on_views']:.2f}" if "mean_on_views" in score else ""
        views = 8 if name in ("article", "gentle") else 1
        rows.append([name, views, score["correct"], decimal(score["accuracy"], score["ci95"]), on_views])
    head = ["augmentation", "views (article: 100)", "right, of 306", "accuracy", "on augmented views"]
    return as_table(head, rows)


def differences() -> str:
    """Return the paired differences of the committed run, and over seeds."""
    seeds, rows = load("chance")["seeds"], []
    for name, found in load("multi")["trust"]["differences"].items():
        first, second = (part.removeprefix("four").removeprefix("_") or "article" for part in name.split(" - "))
        values = [seeds[f"cross-validated, {part}"]["values"] for part in (first, second)]
        points = [100 * (one - other) for one, other in zip(*values)]
        low, high = (100 * end for end in found["ci95"])
        ours = [f"{100 * found['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}"]
        rows.append([f"{first} minus {second}", *ours, f"{min(points):+.0f} to {max(points):+.0f}"])
    head = ["paired difference, in points", "seed 42", "95% confidence interval, by patient", "five other seeds"]
    return as_table(head, rows)


def controls() -> str:
    """Return what all models of the committed run predict for the controls."""
    binary, multi, rows = load("binary")["trust"], load("multi")["trust"], []
    models = [("two classes, article", binary, "")]
    models += [(f"four classes, {name}", multi, "" if name == "article" else f"_{name}") for name in RECIPES[:3]]
    for label, trust, suffix in models:
        nih, others = trust[f"no_finding{suffix}"], trust[f"controls{suffix}"]
        row = [f"{nih['predicted_covid']} of {nih['n']}", f"{nih['with_right_answer']['correct']} of {nih['n']}"]
        right = others["with_right_answer"]
        answer = f"{right['correct']} of {right['n']}" if trust is multi else ""
        rows.append([label, *row, f"{others['predicted_covid']} of {others['n']}", answer])
    head = ["model", "NIH: predicted COVID-19", "right: normal"]
    return as_table([*head, "collection: predicted COVID-19", "right: bacterial or viral"], rows)


def like_for_like() -> str:
    """Return the five tasks of the committed run."""
    rows = []
    for name, score in load("binary")["trust"]["like_for_like"].items():
        accuracy, area = (decimal(score[key], score[f"{ci}ci95"]) for key, ci in (("accuracy", ""), ("auc", "auc_")))
        right = f"{score['correct']} of {score['n']} ({score['patients']})"
        rows.append([TASKS[name], right, accuracy, area, f"{score['majority']:.2f}"])
    head = ["COVID-19 against", "right (patients)", "accuracy", "area under the ROC curve", "always the larger group"]
    return as_table(head, rows)


# --- data/README.md


def rows_of_manifest() -> list[dict[str, str]]:
    """Return the rows of data/manifest.csv."""
    with open(MANIFEST, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def images_and_patients(rows: Sequence[dict[str, str]]) -> str:
    """Return "60 (43)": images and, in parentheses, the patients they show."""
    return f"{len(rows)} ({len({row['patient'] for row in rows})})"


def article_classes() -> str:
    """Return the images and patients of the article's classes."""
    listed, rows = rows_of_manifest(), []
    for name in LABELS:
        of_class = [row for row in listed if row["class"] == name]
        parts = [[row for row in of_class if row["split"] == split] for split in ("train", "test")]
        source = "Cohen et al." if name == "covid" else "Kermany et al."
        who = "adults, many hospitals and devices" if name == "covid" else "children from 1 to 5 years, one hospital"
        rows.append([name, *map(images_and_patients, [*parts, of_class]), source, who])
    return as_table(["class", "train: images (patients)", "test", "together", "source", "who"], rows)


def control_groups() -> str:
    """Return the images and patients of the controls."""
    rows, groups = [], {}
    for row in rows_of_manifest():
        if row["split"] in ("control", "no_finding"):
            groups.setdefault((row["source"], row["class"]), []).append(row)
    for (source, group), listed in sorted(groups.items()):
        years = sorted({row["dated"][:4] for row in listed})
        span = years[0] if len(years) == 1 else f"{years[0]} to {years[-1]}"
        rows.append([source, group, images_and_patients(listed), span])
    return as_table(["source", "group", "images (patients)", "dated"], rows)


# --- tests/README.md: chance


def chance_views() -> str:
    """Return test and cross-validated accuracy by the number of views."""
    found, rows = load("chance")["seeds"], []
    for label, key in (
        ("test, three classes", "test, three"),
        ("test, four classes", "test, four"),
        ("cross-validated, four classes", "cross-validated"),
    ):
        rows.append([label, *(spread(found[f"{key}, {views}"]) for views in ("article", "32 views", "100 views"))])
    return as_table(["article's augmentation, five seeds", "8 views", "32 views", "100 views"], rows)


def chance_seeds() -> str:
    """Return every comparison over seeds."""
    found, rows = load("chance")["seeds"], []
    for classes in ("two", "three", "four"):
        for name in RECIPES[:3]:
            rows.append([f"test, {classes} classes, {name}", spread(found[f"test, {classes}, {name}"])])
    for name in RECIPES:
        rows.append([f"cross-validated, four classes, {name}", spread(found[f"cross-validated, {name}"])])
    for name in RECIPES[:2]:
        key = f"cross-validated, {name}, on views"
        rows.append([f"the same on augmented views, {name}", spread(found[key])])
    for name, label in TASKS.items():
        if name.endswith("_blackout"):
            label = label.replace("the same", TASKS[name.removesuffix("_blackout")])
        rows.append([f"COVID-19 against {label}", spread(found[f"{name}, accuracy"])])
        rows.append(["area under the ROC curve", spread(found[f"{name}, area"])])
    return as_table(["five seeds", "mean ± standard deviation (range)"], rows)


def chance_controls() -> str:
    """Return what four-class heads predict for the controls, over seeds."""
    found, rows = load("chance")["seeds"], []
    for name in RECIPES[:3]:
        cells = []
        for group in ("no_finding", "controls"):
            cells += [spread(found[f"{group}, {what}, {name}"], 0) for what in ("predicted COVID-19", "right")]
        rows.append([name, *cells])
    head = ["five seeds, four classes", "NIH: predicted COVID-19, of 100", "NIH: right, of 100"]
    return as_table([*head, "collection: predicted COVID-19, of 83", "collection: right, of 53"], rows)


def chance_heads() -> str:
    """Return what many binary heads predict for the controls."""
    found = load("chance")["heads"]
    rows = [
        ["test accuracy", spread(found["test"])],
        ["NIH, no finding, predicted COVID-19, of 100", spread(found["no_finding"], 0)],
        ["collection, other diseases, predicted COVID-19, of 83", spread(found["controls"], 0)],
    ]
    return as_table([f"{len(found['test']['values'])} heads", "mean (range)"], rows)


def chance_epochs() -> str:
    """Return cross-validated images right after more epochs."""
    rows = []
    for name, found in load("chance")["epochs"].items():
        recipe, views, epochs = name.split(", ")
        rows.append([recipe, views.split()[0], epochs.split()[0], found["right"], f"{found['training_accuracy']:.2f}"])
    return as_table(["augmentation, seed 42", "views", "epochs", "right, of 306", "training accuracy"], rows)


TABLES = {
    "results": results,
    "trust": trust,
    "test-sets": test_sets,
    "augmentations": augmentations,
    "differences": differences,
    "controls": controls,
    "like-for-like": like_for_like,
    "article-classes": article_classes,
    "control-groups": control_groups,
    "chance-views": chance_views,
    "chance-seeds": chance_seeds,
    "chance-controls": chance_controls,
    "chance-heads": chance_heads,
    "chance-epochs": chance_epochs,
    **speed_tables.TABLES,
}
