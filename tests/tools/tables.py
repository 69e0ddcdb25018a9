"""Write the READMEs' tables, computed from notebooks/results and data/manifest.csv.

    python tests/tools/tables.py            write what differs
    python tests/tools/tables.py --check    change nothing; exit with 1 if anything differs

A table stands between two comments, <!-- table NAME --> and <!-- end -->, and the function of that name returns it.
"""

import json
import re
from collections.abc import Sequence

import numpy as np
import pack
import pandas as pd

READMES = [pack.ROOT / place / "README.md" for place in (".", "notebooks", "data", "tests")]
RECIPES = ("article", "gentle", "none", "logistic")
INTERVAL = "95% confidence interval"
CURVE = "area under the ROC curve"
LARGER = "always the larger group"
TASKS = {
    "children": "children of another hospital",
    "nih": "adults of the NIH, no finding",
    "collection": "other diseases, the same collection",
}
KINDS = {
    "black": "90% of height and width black",
    "pages": "whole pages in a fold",
    "black_pages": "90% black, whole pages in a fold",
    "file": "no image: format and color mode of the file",
    "record": "no image: age, sex, view, where known",
    "site": "no image: the web site",
}


def load(name: str) -> dict:
    """Return the content of a result file: binary, multi, chance, bench."""
    return json.loads((pack.ROOT / "notebooks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


BINARY, MULTI, CHANCE, BENCH = map(load, ("binary", "multi", "chance", "bench"))


def as_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def counted(score: dict) -> str:
    """Return "23 of 36 = 64%"."""
    return f"{score['correct']} of {score['n']} = {score['correct'] / score['n']:.0%}"


def correct(score: dict) -> str:
    """Return "23 of 36"."""
    return f"{score['correct']} of {score['n']}"


def covid(score: dict) -> str:
    """Return "89 of 100": controls predicted COVID-19."""
    return f"{score['predicted_covid']} of {score['n']}"


def percent(interval: Sequence[float]) -> str:
    """Return an interval of shares, "46% to 79%"."""
    return "{:.0%} to {:.0%}".format(*interval)


def decimal(value: float, interval: Sequence[float]) -> str:
    """Return "0.66 (0.56 to 0.76)"."""
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def spread(found: dict, digits: int = 0) -> str:
    """Return mean, standard deviation, and range over seeds, or with digits=0 mean and range of counts."""
    low, high = min(found["values"]), max(found["values"])
    if digits == 0:
        return f"{found['mean']:.0f} ({low} to {high})"
    ends = f"{low} to {high}" if isinstance(low, int) else f"{low:.2f} to {high:.2f}"
    return f"{found['mean']:.{digits}f} ± {found['sd']:.{digits}f} ({ends})"


# --- README.md


def results() -> str:
    cases, cross_validated = MULTI["cases"], MULTI["trust"]["grouped_cv"]["article"]
    found = [
        ("two: COVID-19, normal", BINARY["cases"]["binary"]["test"], "100% of 2 images"),
        ("three: and bacterial pneumonia", cases["three"]["test"], "100% of 3 images"),
        ("four: and viral pneumonia", cases["four"]["test"], "50% of 4 images"),
        ("four, cross-validated by patient", cross_validated, ""),
    ]
    rows = [[classes, counted(score), percent(score["ci95"]), reported] for classes, score, reported in found]
    return as_table(["classes", "test images right", INTERVAL, "the article"], rows)


def minutes() -> str:
    rows = [[name, f"{seconds / 60:.0f}"] for name, seconds in seconds_of_lessons().items()]
    return as_table(["lesson", "minutes on two CPU cores (installation takes about two more)"], rows)


# --- notebooks/README.md


def test_sets() -> str:
    rows = []
    for name, case in {"two": BINARY["cases"]["binary"], **MULTI["cases"]}.items():
        classes, _, recipe = name.partition("_")
        recipe = (recipe or "article").replace("fine_tuned", "article, fine-tuned")
        rows.append([classes, recipe, counted(case["test"]), percent(case["test"]["ci95"])])
    rows.sort(key=lambda row: ("two", "three", "four").index(row[0]))
    return as_table(["classes", "augmentation", "test images right", INTERVAL], rows)


def swap() -> str:
    found = pd.DataFrame(BINARY["trust"]["swap"])
    found["count"] = [f"{row.predicted_covid} of {row.n}" for row in found.itertuples()]
    table = found.pivot(index="pair", columns=["share", "blur"], values="count").loc[found["pair"].unique()]
    columns = [(0.7, 2), (0.7, 0), (0.9, 2), (0.9, 0)]
    head = [f"{share:.0%}, {'blended' if blur else 'hard edge'}" for share, blur in columns]
    rows = [[pair, *(table.loc[pair, column] for column in columns)] for pair in table.index]
    return as_table(["center, of height and width", *head], rows)


def augmentations() -> str:
    rows = []
    for name, views in zip(RECIPES, (8, 8, 1, 1)):
        score = MULTI["trust"]["grouped_cv"][name]
        on_views = f"{score['mean_on_views']:.2f}" if "mean_on_views" in score else ""
        rows.append([name, views, score["correct"], decimal(score["accuracy"], score["ci95"]), on_views])
    head = ["augmentation", "views (article: 100)", "right, of 306", "accuracy", "on augmented views"]
    return as_table(head, rows)


def differences() -> str:
    seeds, rows = CHANCE["seeds"], []
    for name, found in MULTI["trust"]["differences"].items():
        first, second = name.split(" minus ")
        values = [seeds[f"cross-validated, {part}"]["values"] for part in (first, second)]
        points = [100 * (one - other) / seeds["n"]["cross-validated"] for one, other in zip(*values)]
        low, high = (100 * end for end in found["ci95"])
        ours = [f"{100 * found['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}"]
        rows.append([name, *ours, f"{min(points):+.0f} to {max(points):+.0f}"])
    head = ["paired difference, in points", "seed 42", f"{INTERVAL}, by patient", f"{number_of_seeds()} other seeds"]
    return as_table(head, rows)


def controls() -> str:
    rows = []
    for label, found, suffix in (
        ("two classes, article", BINARY["trust"], ""),
        ("four classes, article", MULTI["trust"], ""),
        ("four classes, gentle", MULTI["trust"], "_gentle"),
        ("four classes, none", MULTI["trust"], "_none"),
    ):
        nih, others = found[f"nih{suffix}"], found[f"collection{suffix}"]
        answered = correct(others["with_right_answer"]) if label.startswith("four") else ""
        rows.append([label, covid(nih), correct(nih["with_right_answer"]), covid(others), answered])
    head = ["model", "NIH: called COVID-19", "right: normal"]
    return as_table([*head, "collection: called COVID-19", "right: bacterial or viral"], rows)


def whole_name(task: str) -> str:
    """Return what COVID-19 is compared with in a task, and how."""
    source, _, kind = task.partition("_")
    return TASKS[source] + (f", {KINDS[kind]}" if kind else "")


def like_for_like() -> str:
    rows = []
    scores = BINARY["trust"]["like_for_like"]
    for name in sorted(scores, key=lambda name: list(TASKS).index(name.partition("_")[0])):
        score = scores[name]
        right = f"{correct(score)} ({score['patients']})"
        area = decimal(score["auc"], score["auc_ci95"]) if "auc_ci95" in score else f"{score['auc']:.2f}"
        rows.append([whole_name(name), right, decimal(score["accuracy"], score["ci95"]), area])
    return as_table(["COVID-19 against", "right (patients)", "accuracy", CURVE], rows)


# --- data/README.md


MANIFEST = pd.read_csv(pack.ROOT / "data" / "manifest.csv", dtype=str, keep_default_na=False)


def images_and_patients(rows: pd.DataFrame) -> str:
    """Return "60 (43)": images and, in parentheses, the patients they show."""
    return f"{len(rows)} ({rows['patient'].nunique()})"


def article_classes() -> str:
    adults = ("Cohen et al.", "adults and one boy of 12, many hospitals and devices")
    children = ("Kermany et al.", "children from 1 to 5 years, one hospital")
    rows = []
    for name, listed in MANIFEST[MANIFEST["split"].isin(["train", "test"])].groupby("class"):
        parts = [listed[listed["split"] == split] for split in ("train", "test")]
        rows.append([name, *map(images_and_patients, [*parts, listed]), *(adults if name == "covid" else children)])
    return as_table(["class", "train: images (patients)", "test", "together", "source", "who"], rows)


def control_groups() -> str:
    rows = []
    for names, listed in MANIFEST[MANIFEST["split"].isin(["control", "no_finding"])].groupby(["source", "class"]):
        years = listed["dated"].str[:4]
        rows.append([*names, images_and_patients(listed), " to ".join(dict.fromkeys([years.min(), years.max()]))])
    return as_table(["source", "group", "images (patients)", "dated"], rows)


# --- tests/README.md: chance


def number_of_seeds() -> str:
    """Return how many seeds Multi's comparisons have, in words."""
    count = len(CHANCE["seeds"]["cross-validated, article"]["values"])
    return ("no", "one", "two", "three", "four", "five")[count]


def chance_seeds() -> str:
    found, rows = CHANCE["seeds"], []
    for classes in ("two", "three", "four"):
        n = found["n"][f"test, {classes}"]
        for name in RECIPES[:3]:
            rows.append([f"test, {classes} classes, {name}, of {n}", spread(found[f"test, {classes}, {name}"], 1)])
    for name in RECIPES:
        label = f"cross-validated, four classes, {name}, of {found['n']['cross-validated']}"
        rows.append([label, spread(found[f"cross-validated, {name}"], 1)])
    for name in RECIPES[:2]:
        rows.append([f"accuracy on augmented views, {name}", spread(found[f"on augmented views, {name}"], 3)])
    return as_table([f"{number_of_seeds()} seeds", "mean ± standard deviation (range)"], rows)


def chance_like() -> str:
    rows = []
    for name, found in CHANCE["like_for_like"].items():
        if name != "same_site":
            rows.append([whole_name(name), spread(found["accuracy"], 3), spread(found["auc"], 3)])
    pairs = CHANCE["like_for_like"]["same_site"]["auc"]
    rows.append(["pairs from one web site: COVID-19 ranked first", "", spread(pairs, 3)])
    return as_table(["COVID-19 against, five seeds", "accuracy", CURVE], rows)


def chance_shuffled() -> str:
    """Return areas under the ROC curve with shuffled labels, their mean and middle 95%, and with the true ones."""
    rows = []
    for name, found in CHANCE["shuffled"].items():
        low, high = np.percentile(found["auc"]["values"], [2.5, 97.5])
        rows.append(
            [whole_name(name), f"{found['auc']['mean']:.2f}", f"{low:.2f} to {high:.2f}", f"{found['true']:.2f}"]
        )
    return as_table([f"100 times shuffled labels, {CURVE}", "mean", "middle 95%", "true labels"], rows)


def chance_marks() -> str:
    found = CHANCE["marks"]["42"]
    before, after = found["normal, before"], found["normal, with arrows"]
    span = "{:.3f} to {:.3f}".format
    rows = [
        ["as many pixels filled in elsewhere, 100 times", span(min(found["elsewhere"]), max(found["elsewhere"]))],
        ["the nine normal test X-rays as they are", span(min(before), max(before))],
        ["the same with red arrows drawn on them", span(min(after), max(after))],
    ]
    return as_table(["the X-ray with red arrows, and normal ones", "probability of COVID-19"], rows)


def chance_controls() -> str:
    found = CHANCE["seeds"]
    keys = [f"{group}, {what}" for group in ("nih", "collection") for what in ("predicted COVID-19", "right")]
    rows = [[name, *(spread(found[f"{key}, {name}"]) for key in keys)] for name in RECIPES[:3]]
    head = [f"{key}, of {found['n'][key.replace(', predicted COVID-19', '')]}" for key in keys]
    return as_table([f"{number_of_seeds()} seeds, four classes", *head], rows)


def chance_heads() -> str:
    found = CHANCE["heads"]
    counts = {
        "test": "test images right",
        "nih": "NIH, adults, no finding: called COVID-19",
        "collection": "collection, other diseases: called COVID-19",
    }
    marks = {
        "arrows": "the X-ray with red arrows: probability of COVID-19",
        "no_arrows": "the same without them",
        "normal": "the X-ray that the record calls normal: probability of COVID-19",
    }
    rows = [[f"{label}, of {found['n'][key]}", spread(found[key])] for key, label in counts.items()]
    rows += [
        [f"{name}: probability of COVID-19", spread(found[f"silly, {name}"], 2)] for name in BINARY["trust"]["silly"]
    ]
    rows += [[label, spread(found[f"marks, {key}"], 2)] for key, label in marks.items()]
    head = [f"{len(found['test']['values'])} heads", "mean (range), or mean ± standard deviation (range)"]
    return as_table(head, rows)


def chance_ladder() -> str:
    found, rows = CHANCE["heads"], []
    for step in BINARY["trust"]["ladder"]:
        key = f"ladder, {step['blur']}, {step['black']}"
        words = f"blur {step['blur']:.0f} pixels, black {step['black']:.0%} of height and width"
        rows.append([words, spread(found[f"{key}, normal"]), spread(found[f"{key}, COVID-19"])])
    return as_table(["test X-rays", "normal called COVID-19, of 9", "COVID-19 called so, of 9"], rows)


def chance_swap() -> str:
    found, rows = CHANCE["heads"], []
    columns = [(0.7, 2), (0.7, 0), (0.9, 2), (0.9, 0)]
    for pair in dict.fromkeys(row["pair"] for row in BINARY["trust"]["swap"]):
        counts = [spread(found[f"swap, {share}, {blur}, {pair}"]) for share, blur in columns]
        rows.append([f"{pair}, of {found['n'][f'swap, 0.7, 2, {pair}']}", *counts])
    head = [f"{share:.0%}, {'blended' if blur else 'hard edge'}" for share, blur in columns]
    return as_table(["center, of height and width", *head], rows)


# --- tests/README.md: speed


FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bfloat16", "amx_tile": "AMX"}


def seconds_of_lessons() -> dict[str, float]:
    return {name: BENCH["first"][name]["end"] for name in ("Binary", "Multi")}


def speed_machine() -> str:
    found = BENCH["machine"]
    has = ", ".join(f"{'with' if found['flags'][flag] else 'without'} {name}" for flag, name in FLAGS.items())
    cores = f"{found['cores']} cores of an {found['model']}, {has}, no GPU, shared with other work"
    return as_table(["measured on", ""], [["processor", cores], ["TensorFlow", found["versions"]["tensorflow"]]])


def speed_lessons() -> str:
    first, rows = BENCH["first"], []
    runs = [first["Binary"], first["Multi"], BENCH["second"]]
    for key in ("first_picture", "first_epoch", "first_accuracy", "end"):
        rows.append([f"until the {key.replace('_', ' ')}", *(f"{run[key]:.0f} s" for run in runs)])
    rows.append(["peak memory", *(f"{run['peak_gib']:.1f} GiB" for run in runs)])
    return as_table(["from the start of the lesson", "Binary", "Multi", "Multi again, features kept"], rows)


def speed_first() -> str:
    first, rows = BENCH["first"], []
    rows.append(["the packages are installed", f"{first['packages']:.0f} s"])
    rows.append(["images and weights are checked", f"{first['images_and_weights']:.0f} s"])
    for key in ("first_picture", "first_epoch", "first_accuracy"):
        rows.append([f"{key.replace('_', ' ')}, in Binary", f"{first['Binary']['begin'] + first['Binary'][key]:.0f} s"])
    rows.append(["the last page", f"{first['end']:.0f} s"])
    return as_table(["from `make run` until", ""], rows)


def with_tables(text: str) -> str:
    """Return a README's text with the tables between its comments computed anew."""
    pattern = r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)"

    def renewed(found: re.Match) -> str:
        return f"{found[1]}{globals()[found[2].replace('-', '_')]()}\n{found[3]}"

    return re.sub(pattern, renewed, text, flags=re.DOTALL)


if __name__ == "__main__":
    pack.bring_up_to_date({path: with_tables(path.read_text(encoding="utf-8")) for path in READMES})
