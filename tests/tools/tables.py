"""Write the READMEs' tables, computed from notebooks/results and data/manifest.csv.

    python tests/tools/tables.py            write what differs
    python tests/tools/tables.py --check    change nothing; exit with 1 if anything differs

A table stands between two comments, <!-- table NAME --> and <!-- end -->, and the function of that name returns it.
"""

import json
import re
from collections.abc import Sequence

import pack
import pandas as pd

READMES = [pack.ROOT / place / "README.md" for place in (".", "notebooks", "data", "tests")]
TASKS = {
    "children": "children of another hospital",
    "nih": "adults of the NIH, no finding",
    "collection": "other diseases, the same collection",
}
KINDS = {
    "": "",
    "black": ", 90% of height and width black",
    "file": ", no image: format and color mode of the file",
    "record": ", no image: age, sex, view, where known",
    "site": ", no image: the web site",
}
MARKS = {
    "arrows": "the X-ray with red arrows",
    "no_arrows": "the same without them",
    "normal": "the X-ray that the record calls normal",
}

BINARY, MULTI, CHANCE, BENCH = (
    json.loads((pack.ROOT / "notebooks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("binary", "multi", "chance", "bench")
)
HEADS, SEEDS = CHANCE["heads"], CHANCE["seeds"]  # of 60 models, and of five seeds
MANIFEST = pd.read_csv(pack.ROOT / "data" / "manifest.csv", dtype=str, keep_default_na=False)


def as_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def counted(score: dict) -> str:
    """Return "23 of 36 = 64%"."""
    return f"{score['correct']} of {score['n']} = {score['correct'] / score['n']:.0%}"


def percent(interval: Sequence[float]) -> str:
    """Return an interval of shares, "46% to 79%"."""
    return "{:.0%} to {:.0%}".format(*interval)


def decimal(value: float, interval: Sequence[float]) -> str:
    """Return "0.66 (0.56 to 0.76)"."""
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def span(values: Sequence[float], form: str = "{}") -> str:
    """Return the lowest and the highest of some values, "8 to 11", or "9" if they look alike."""
    return " to ".join(dict.fromkeys(form.format(end) for end in (min(values), max(values))))


def among(count: int, n: int, others: Sequence[int]) -> str:
    """Return a count and, where other models have other counts, their range: "13 of 54 (8 to 16)"."""
    return f"{count} of {n}" + (f" ({span(others)})" if set(others) - {count} else "")


def gains(first: str, second: str) -> list[float]:
    """Return by how many points a recipe is ahead of another in the cross-validation, for each of five seeds."""
    n = MULTI["trust"]["grouped_cv"][first]["n"]
    pairs = zip(SEEDS[f"cross-validated, {first}"], SEEDS[f"cross-validated, {second}"])
    return [100 * (one - other) / n for one, other in pairs]


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
    return as_table(["classes", "test images right", "95% confidence interval", "the article"], rows)


def minutes() -> str:
    first = BENCH["first"]
    seconds = {"installation, with images and weights at hand": first["images_and_weights"]}
    seconds |= {name: first[name]["end"] for name in ("Binary", "Multi")}
    return as_table(["", "minutes on two CPU cores"], [[name, f"{found / 60:.0f}"] for name, found in seconds.items()])


# --- notebooks/README.md


def test_sets() -> str:
    rows = []
    for name, case in {"two": BINARY["cases"]["binary"], **MULTI["cases"]}.items():
        classes, _, kind = name.partition("_")
        recipe = kind.replace("fine_tuned", "article, fine-tuned") or "article"
        others = HEADS["test"] if classes == "two" else SEEDS.get(f"test, {classes}, {recipe}")
        interval = percent(case["test"]["ci95"])
        rows.append([classes, recipe, counted(case["test"]), interval, span(others) if others else ""])
    return as_table(["classes", "augmentation", "test images right", "95% confidence interval", "other seeds"], rows)


def swap() -> str:
    head, rows = ["center, of height and width"], {}
    for found in BINARY["trust"]["swap"]:
        pair, share, blur = found["pair"], found["share"], found["blur"]
        column = f"{share:.0%}, {'blended' if blur else 'hard edge'}"
        if column not in head:
            head.append(column)
        count = among(found["predicted_covid"], found["n"], HEADS[f"swap, {share}, {blur}, {pair}"])
        rows.setdefault(pair, [pair]).append(count)
    return as_table(head, list(rows.values()))


def controls() -> str:
    rows = []
    for classes, recipe in (("two", "article"), ("four", "article"), ("four", "gentle"), ("four", "none")):
        row = [f"{classes} classes, {recipe}"]
        for group in ("nih", "collection"):
            if classes == "two":
                score, called, right = BINARY["trust"][group], HEADS[group], []
            else:
                score = MULTI["trust"][group if recipe == "article" else f"{group}_{recipe}"]
                called, right = (SEEDS[f"{group}, {what}, {recipe}"] for what in ("predicted COVID-19", "right"))
            known = score["with_right_answer"]
            row.append(among(score["predicted_covid"], score["n"], called))
            row.append(among(known["correct"], known["n"], right) if known["n"] else "")
        rows.append(row)
    head = ["model", "NIH: called COVID-19", "right: normal"]
    return as_table([*head, "collection: called COVID-19", "right: bacterial or viral"], rows)


def like_for_like() -> str:
    rows, scores = [], BINARY["trust"]["like_for_like"]
    for name in sorted(scores, key=lambda name: list(TASKS).index(name.partition("_")[0])):
        score, (source, _, kind) = scores[name], name.partition("_")
        right = f"{score['correct']} of {score['n']} ({score['patients']})"
        area = decimal(score["auc"], score["auc_ci95"]) if "auc_ci95" in score else f"{score['auc']:.2f}"
        others = span(CHANCE["like_for_like"][name], "{:.2f}")
        rows.append([TASKS[source] + KINDS[kind], right, decimal(score["accuracy"], score["ci95"]), area, others])
    pairs, others = BINARY["trust"]["same_site"], span(CHANCE["like_for_like"]["same_site"], "{:.2f}")
    rows.append(["pairs from one web site", "", "", decimal(pairs["share"], pairs["ci95"]), others])
    head = ["COVID-19 against", "right (patients)", "accuracy", "area under the ROC curve", "area, five other seeds"]
    return as_table(head, rows)


def augmentations() -> str:
    rows = []
    for name, views in (("article", 8), ("gentle", 8), ("none", 1), ("logistic", 1)):
        score, others = MULTI["trust"]["grouped_cv"][name], span(SEEDS[f"cross-validated, {name}"])
        rows.append([name, views, score["correct"], others, decimal(score["accuracy"], score["ci95"])])
    return as_table(["augmentation", "views (article: 100)", "right, of 306", "five other seeds", "accuracy"], rows)


def differences() -> str:
    rows = []
    for name, found in MULTI["trust"]["differences"].items():
        low, high = (f"{100 * end:+.1f}" for end in found["ci95"])
        others = span(gains(*name.split(" minus ")), "{:+.0f}")
        rows.append([name, f"{100 * found['difference']:+.1f}", f"{low} to {high}", others])
    head = ["paired difference, in points", "seed 42", "95% confidence interval, by patient", "five other seeds"]
    return as_table(head, rows)


# --- data/README.md


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
    groups = MANIFEST[MANIFEST["split"].isin(["control", "no_finding"])].groupby(["source", "class"])
    rows = [[*names, images_and_patients(listed), span(listed["dated"].str[:4])] for names, listed in groups]
    return as_table(["source", "group", "images (patients)", "dated"], rows)


# --- tests/README.md


def speed() -> str:
    machine, first = BENCH["machine"], BENCH["first"]
    has = ", ".join(flag for flag, is_there in machine["flags"].items() if is_there)
    where = f"{machine['cores']} cores of an {machine['model']} ({has}), load average {machine['load']:.0f}, "
    where += f"TensorFlow {machine['versions']['tensorflow']}"
    runs, rows = [first["Binary"], first["Multi"], BENCH["second"]], []
    for key in ("first_accuracy", "end"):
        rows.append([f"seconds until the {key.replace('_', ' ')}", *(f"{run[key]:.0f}" for run in runs)])
    rows.append(["peak memory", *(f"{run['peak_gib']:.1f} GiB" for run in runs)])
    return as_table([where, "Binary", "Multi", "Multi again, features kept"], rows)


def heads() -> str:
    trust, rows = BINARY["trust"], []
    asked = [(f"silly, {name}", name, p_covid) for name, p_covid in trust["silly"].items()]
    asked += [(f"marks, {name}", label, trust["marks"][name]) for name, label in MARKS.items()]
    for key, label, p_covid in asked:
        rows.append([f"{label}: probability of COVID-19", f"{p_covid:.2f}", span(HEADS[key], "{:.2f}")])
    for step in trust["ladder"]:
        label = f"blur {step['blur']}, black {step['black']:.0%}: normal X-rays called COVID-19, of 9"
        others = span(HEADS[f"ladder, {step['blur']}, {step['black']}, normal"])
        rows.append([label, step["normal called COVID-19"], others])
    rows.append(
        ["the same hospital's children with pneumonia called COVID-19, of 158", "", span(HEADS["sick children"])]
    )
    return as_table(["asked", "Binary's model", "60 models"], rows)


TABLES = [results, minutes, test_sets, swap, controls, like_for_like, augmentations, differences]
TABLES += [article_classes, control_groups, speed, heads]
BY_NAME = {table.__name__.replace("_", "-"): table for table in TABLES}


def with_tables(text: str) -> str:
    """Return a README's text with the tables between its comments computed anew."""
    pattern = r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{BY_NAME[found[2]]()}\n{found[3]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    pack.bring_up_to_date({path: with_tables(path.read_text(encoding="utf-8")) for path in READMES})
