"""Write the READMEs' tables, computed from notebooks/results and data/manifest.csv.

    python tests/tools/tables.py            write what differs
    python tests/tools/tables.py --check    change nothing; exit with 1 if anything differs

A table stands between two comments, <!-- table NAME --> and <!-- end -->. Each function returns one; TABLES names them.
"""

import csv
import json
import re
import sys
from collections.abc import Sequence

import pack

READMES = [pack.ROOT / place / "README.md" for place in (".", "notebooks", "data", "tests")]
RECIPES = ("article", "gentle", "none", "logistic")
WHAT = ("predicted COVID-19", "right")  # of controls
LESSONS = ("Binary", "Multi")
TASKS = {
    "children": "children of another hospital",
    "children_blackout": "the same, 90% of height and width black",
    "nih": "adults of the NIH, no finding",
    "nih_blackout": "the same, 90% of height and width black",
    "same_collection": "other diseases, the same collection",
    "same_collection_blackout": "the same, 90% of height and width black",
}


def load(name: str) -> dict:
    """Return the content of a result file: binary, multi, chance, bench."""
    return json.loads((pack.ROOT / "notebooks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def as_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table as one text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def counted(score: dict) -> str:
    """Return "23 of 36 = 64%"."""
    return f"{score['correct']} of {score['n']} = {score['correct'] / score['n']:.0%}"


def covid_of(score: dict) -> str:
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


def whole_name(task: str) -> str:
    """Return a task's name without "the same"."""
    if task.endswith("_blackout"):
        return TASKS[task].replace("the same", TASKS[task.removesuffix("_blackout")])
    return TASKS[task]


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


def to_from(counts: Sequence[int]) -> str:
    """Return "67 to 71", or "79, each of them"."""
    low, high = min(counts), max(counts)
    return f"{low}, each of them" if low == high else f"{low} to {high}"


def trust() -> str:
    """Return the questions of the first lesson's second part, with the committed run's answers."""
    binary, four = load("binary")["trust"], load("multi")["trust"]
    heads = load("chance")["heads"]["NIH"]["values"]
    black, black_four = binary["blackout"]["binary"], four["blackout"]["four"]
    task = binary["like_for_like"]["same_collection"]
    rows = [
        [
            "Do test images show patients of the training set?",
            f"{len(binary['test_images_of_training_patients'])} of the 9 COVID-19 ones do.",
        ],
        [
            "Are the lungs needed?",
            f"With 90% of height and width black: {black['correct']} of {black['n']} (two classes), "
            f"{black_four['correct']} of {black_four['n']} (four).",
        ],
        [
            "What does it predict for adults with no finding, from the NIH?",
            f"The binary model predicts COVID-19 for {covid_of(binary['no_finding'])}; "
            f"models with {len(heads)} other initial weights do so for {to_from(heads)}.",
        ],
        [
            "Can it tell COVID-19 from other diseases in the same collection?",
            f"{counted(task)}, {percent(task['ci95'])}; always the larger group: {task['majority']:.0%}. "
            f"Area under the ROC curve {decimal(task['auc'], task['auc_ci95'])}.",
        ],
    ]
    swapped = binary["swap"]["0.9"]
    frames, control = swapped["COVID-19 frame, normal center"], swapped["normal in normal"]
    answer = "Children's normal centers in a COVID-19 frame of 10%: "
    answer += f"COVID-19 for {frames['article']} of {frames['n']} pairs; "
    answer += f"in other children's frames: {control['article']} of {control['n']}."
    rows.insert(2, ["Does it look at the lungs or at the frame?", answer])
    return as_table(["question", "answer"], rows)


# --- notebooks/README.md


def test_sets() -> str:
    """Return every test set of the committed run."""
    rows = []
    for name, case in {"two": load("binary")["cases"]["binary"], **load("multi")["cases"]}.items():
        recipe = case.get("augmentation", "article").replace("fine_tuned", "article, fine-tuned")
        rows.append([name.partition("_")[0], recipe, counted(case["test"]), percent(case["test"]["ci95"])])
    rows.sort(key=lambda row: ("two", "three", "four").index(row[0]))
    return as_table(["classes", "augmentation", "test images right", "95% confidence interval"], rows)


def swap() -> str:
    """Return how often the article's model says COVID-19 for swapped centers, in the committed run."""
    found, rows = load("binary")["trust"]["swap"], []
    for share, kinds in found.items():
        rows.append([f"{float(share):.0%}", *(f"{counts['article']} of {counts['n']}" for counts in kinds.values())])
    head = [f"{kind} ({counts['patients']} pairs of patients)" for kind, counts in found["0.7"].items()]
    return as_table(["center, of height and width", *head], rows)


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
        points = [100 * (one - other) / seeds["n"]["cross-validated"] for one, other in zip(*values)]
        low, high = (100 * end for end in found["ci95"])
        ours = [f"{100 * found['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}"]
        rows.append([f"{first} minus {second}", *ours, f"{min(points):+.0f} to {max(points):+.0f}"])
    others = f"{seeds_in(seeds)} other seeds"
    head = ["paired difference, in points", "seed 42", "95% confidence interval, by patient", others]
    return as_table(head, rows)


def controls() -> str:
    """Return what all models of the committed run predict for the controls."""
    binary, multi = load("binary")["trust"], load("multi")["trust"]
    models = {"two classes, article": (binary, ""), "four classes, article": (multi, "")}
    models |= {f"four classes, {name}": (multi, f"_{name}") for name in ("gentle", "none")}
    rows = []
    for label, (found, suffix) in models.items():
        nih, others = found[f"no_finding{suffix}"], found[f"controls{suffix}"]
        right, answer = nih["with_right_answer"], others["with_right_answer"]
        row = [label, covid_of(nih), f"{right['correct']} of {right['n']}", covid_of(others)]
        rows.append([*row, f"{answer['correct']} of {answer['n']}" if found is multi else ""])
    head = ["model", "NIH: predicted COVID-19", "right: normal"]
    return as_table([*head, "collection: predicted COVID-19", "right: bacterial or viral"], rows)


def like_for_like() -> str:
    """Return the tasks of the committed run."""
    rows = []
    for name, score in load("binary")["trust"]["like_for_like"].items():
        right = f"{score['correct']} of {score['n']} ({score['patients']})"
        accuracy = decimal(score["accuracy"], score["ci95"])
        area = decimal(score["auc"], score["auc_ci95"]) if "auc_ci95" in score else f"{score['auc']:.2f}"
        rows.append([TASKS[name], right, accuracy, area, f"{score['majority']:.2f}"])
    head = ["COVID-19 against", "right (patients)", "accuracy", "area under the ROC curve", "always the larger group"]
    return as_table(head, rows)


# --- data/README.md


def rows_of_manifest() -> list[dict[str, str]]:
    """Return the rows of data/manifest.csv."""
    with open(pack.ROOT / "data" / "manifest.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def images_and_patients(rows: Sequence[dict[str, str]]) -> str:
    """Return "60 (43)": images and, in parentheses, the patients they show."""
    return f"{len(rows)} ({len({row['patient'] for row in rows})})"


def article_classes() -> str:
    """Return the images and patients of the article's classes."""
    rows = []
    for name in ("covid", "normal", "pneumonia_bac", "pneumonia_vir"):
        listed = [row for row in rows_of_manifest() if row["class"] == name]
        parts = [[row for row in listed if row["split"] == split] for split in ("train", "test")]
        source = "Cohen et al." if name == "covid" else "Kermany et al."
        who = (
            "adults and one boy of 12, many hospitals and devices"
            if name == "covid"
            else "children from 1 to 5 years, one hospital"
        )
        rows.append([name, *map(images_and_patients, [*parts, listed]), source, who])
    return as_table(["class", "train: images (patients)", "test", "together", "source", "who"], rows)


def control_groups() -> str:
    """Return the images and patients of the controls."""
    groups = {}
    for row in rows_of_manifest():
        if row["split"] in ("control", "no_finding"):
            groups.setdefault((row["source"], row["class"]), []).append(row)
    rows = []
    for (source, group), listed in sorted(groups.items()):
        years = sorted({row["dated"][:4] for row in listed})
        span = years[0] if len(years) == 1 else f"{years[0]} to {years[-1]}"
        rows.append([source, group, images_and_patients(listed), span])
    return as_table(["source", "group", "images (patients)", "dated"], rows)


# --- tests/README.md: chance


def chance_seeds() -> str:
    """Return every test set and cross-validation over seeds."""
    found, rows = load("chance")["seeds"], []
    for classes in ("two", "three", "four"):
        for name in RECIPES[:3]:
            key = f"test, {classes}, {name}"
            n = found["n"][f"test, {classes}"]
            rows.append([f"test, {classes} classes, {name}, of {n}", spread(found[key], 1)])
    for name in RECIPES:
        n = found["n"]["cross-validated"]
        label = f"cross-validated, four classes, {name}, of {n}"
        rows.append([label, spread(found[f"cross-validated, {name}"], 1)])
    for name in RECIPES[:2]:
        label = f"accuracy on augmented views, {name}"
        rows.append([label, spread(found[f"on augmented views, {name}"], 3)])
    return as_table([f"{seeds_in(found)} seeds", "mean ± standard deviation (range)"], rows)


def seeds_in(found: dict) -> str:
    """Return how many seeds a part of chance.json has, in words."""
    count = len(found["cross-validated, article"]["values"])
    return ("no", "one", "two", "three", "four", "five")[count]


def chance_like() -> str:
    """Return Binary's comparisons like for like over seeds."""
    rows = []
    for name, found in load("chance")["like_for_like"].items():
        values = [spread(found["accuracy"], 3), spread(found["auc"], 3)]
        rows.append([whole_name(name), *values, f"{found['majority']:.2f}"])
    head = ["COVID-19 against, five seeds", "accuracy", "area under the ROC curve", "always the larger group"]
    return as_table(head, rows)


def chance_shuffled() -> str:
    """Return areas under the ROC curve with shuffled labels: their mean, and the range of 95 in 100."""
    rows = []
    for name, found in load("chance")["shuffled"].items():
        areas = sorted(found["auc"]["values"])
        outside = len(areas) // 40
        low, high = areas[outside], areas[-1 - outside]
        rows.append([whole_name(name), f"{found['auc']['mean']:.2f}", f"{low:.2f} to {high:.2f}"])
    return as_table(["100 times shuffled labels, area under the ROC curve", "mean", "95 of 100"], rows)


def chance_controls() -> str:
    """Return what four-class heads predict for the controls, over seeds."""
    found, rows = load("chance")["seeds"], []
    keys = [f"{group}, {what}" for group in ("NIH", "collection") for what in WHAT]
    sizes = {key: found["n"][key.replace(", predicted COVID-19", "")] for key in keys}
    for name in RECIPES[:3]:
        rows.append([name, *(spread(found[f"{key}, {name}"]) for key in keys)])
    return as_table([f"{seeds_in(found)} seeds, four classes", *(f"{key}, of {sizes[key]}" for key in keys)], rows)


def chance_heads() -> str:
    """Return what the article's model says with many initial weights."""
    found = load("chance")["heads"]
    rows = []
    for label, key in (
        ("test images right", "test"),
        ("NIH, adults, no finding: predicted COVID-19", "NIH"),
        ("collection, other diseases: predicted COVID-19", "collection"),
    ):
        rows.append([f"{label}, of {found['n'][key]}", spread(found[key])])
    for label, key in (
        ("the X-ray with red arrows: probability of COVID-19", "marks, arrows"),
        ("the same without them", "marks, without arrows"),
        ("the X-ray that the record calls normal: probability of COVID-19", "marks, normal"),
    ):
        rows.append([label, spread(found[key], 2)])
    count = len(found["test"]["values"])
    return as_table([f"{count} heads", "mean (range), or mean ± standard deviation (range)"], rows)


def chance_swap() -> str:
    """Return what many heads of the article's model say for swapped centers."""
    found = load("chance")["heads"]
    kinds = list(load("binary")["trust"]["swap"]["0.7"])
    rows = []
    for share in (0.5, 0.7, 0.9):
        rows.append([f"{share:.0%}", *(spread(found[f"swap, {share}, {kind}"]) for kind in kinds)])
    head = [f"{kind}, of {found['n'][kind]}" for kind in kinds]
    return as_table(["center, of height and width", *head], rows)


# --- tests/README.md: speed


KEPT = 18 * 306 + 163  # images whose features Multi keeps: 16 views, as they are, and center black; controls


def seconds_an_image() -> float:
    """Return seconds an image in Part 1 of Binary: reading, augmentation, VGG16, and the head's step."""
    times = load("bench")["lessons"]["Binary"]["first"]
    return (times["first_accuracy"] - times["first_epoch"]) / (19 * 130)  # epochs after the first, images


def seconds_of_lessons() -> dict[str, float]:
    """Return the seconds of each lesson with nothing kept; Multi's are calculated from its second time."""
    lessons = load("bench")["lessons"]
    multi = lessons["Multi"]["second"]["end"] + KEPT * seconds_an_image()
    return {"Binary": lessons["Binary"]["first"]["end"], "Multi": multi}


def minutes() -> str:
    """Return how long the lessons take on the machine of the bench."""
    rows = [[name, f"{seconds / 60:.0f}"] for name, seconds in seconds_of_lessons().items()]
    return as_table(["lesson", "minutes on two processor cores without AVX-512, after two to install"], rows)


def speed_machine() -> str:
    """Return what the bench ran on."""
    found = load("bench")["machine"]
    flags = found["flags"]
    has = ", ".join(f"{'with' if flags[flag] else 'without'} {name}" for flag, name in FLAGS.items())
    cores = f"{found['cores']} cores of a {found['model']}, {has}, no GPU, shared with other work"
    return as_table(["measured on", ""], [["processor", cores], ["TensorFlow", found["versions"]["tensorflow"]]])


FLAGS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bfloat16", "amx_tile": "AMX"}


def speed_lessons() -> str:
    """Return seconds from the start of a lesson to its first results, and its peak of memory."""
    lessons = load("bench")["lessons"]
    runs = [lessons["Binary"]["first"], lessons["Multi"]["second"]]
    rows = []
    for label, key in (("first epoch", "first_epoch"), ("first accuracy", "first_accuracy"), ("end", "end")):
        rows.append([f"until the {label}", *(f"{run[key]:.0f} s" for run in runs)])
    rows.append(["an image in `fit`, all in all", f"{1000 * seconds_an_image():.0f} ms", ""])
    rows.append(["peak memory", *(f"{run['peak_gib']:.1f} GiB" for run in runs)])
    return as_table(["from the start", "Binary, nothing kept", "Multi, features kept"], rows)


TABLES = {
    "results": results,
    "trust": trust,
    "test-sets": test_sets,
    "swap": swap,
    "augmentations": augmentations,
    "differences": differences,
    "controls": controls,
    "like-for-like": like_for_like,
    "article-classes": article_classes,
    "control-groups": control_groups,
    "chance-seeds": chance_seeds,
    "chance-like": chance_like,
    "chance-shuffled": chance_shuffled,
    "chance-controls": chance_controls,
    "chance-heads": chance_heads,
    "chance-swap": chance_swap,
    "minutes": minutes,
    "speed-machine": speed_machine,
    "speed-lessons": speed_lessons,
}


def with_tables(text: str) -> str:
    """Return a README's text with the tables between its comments computed anew."""
    pattern = r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)"
    if unknown := [name for _, name, _ in re.findall(pattern, text, re.DOTALL) if name not in TABLES]:
        sys.exit(f"tables.py has no table named {', '.join(unknown)}.")
    return re.sub(pattern, lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    pack.bring_up_to_date({path: with_tables(path.read_text(encoding="utf-8")) for path in READMES})
