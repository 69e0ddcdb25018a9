"""Numbers in the READMEs are those of the files that a real run and the bench wrote, where they stand."""

import json
import re

import pytest
import report
from conftest import BINARY, MULTI, ROOT

FIGURES = ROOT / "notebooks" / "figures"


def load(name):
    """A committed result file."""
    return json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))


def row_of(path, start):
    """The cells of the table row in `path` whose first cell starts with `start`."""
    rows = [line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if line.startswith(f"| {start}")]
    assert len(rows) == 1, (path, start, rows)
    return [cell.strip() for cell in rows[0].strip("|").split("|")]


def percent(interval):
    """An interval as READMEs write it."""
    return "{:.0%} to {:.0%}".format(*interval)


def count(scored):
    """A count as READMEs write it."""
    return f"{scored['correct']} of {scored['n']} = {scored['accuracy']:.0%}"


@pytest.mark.parametrize("start, name, key", [
    ("two: ", "binary", "binary"), ("three: ", "multi", "three"), ("four: ", "multi", "four"),
])  # fmt: skip
def test_results_in_the_readme(start, name, key):
    test = load(name)["cases"][key]["test"]
    assert row_of("README.md", start)[1:3] == [count(test), percent(test["ci95"])]


def test_trust_in_the_readme():
    binary, multi = load("binary")["trust"], load("multi")["trust"]
    cv, adults = multi["grouped_cv"]["four"], binary["like_for_like"]["adults"]
    assert row_of("README.md", "four, cross-validated")[1:3] == [count(cv), percent(cv["ci95"])]
    shares = [blackout["correct"] for blackout in (binary["blackout"]["binary"], multi["blackout"]["four"])]
    found = re.findall(r"(\d+) of (?:18|36)", row_of("README.md", "Are the lungs")[1])
    assert list(map(int, found)) == shares
    clear = binary["controls"]["no_finding"]
    assert (
        f"13 X-rays show no finding: the binary model predicts COVID-19 for {clear['called_covid']}."
        in (row_of("README.md", "What about adults")[1])
    )
    cell = row_of("README.md", "Can it tell")[1]
    shown = f"{adults['correct']} of {adults['n']} X-rays ({adults['patients']} patients) = {adults['accuracy']:.0%}"
    assert cell.startswith(f"{shown}, {percent(adults['ci95'])};")
    assert cell.endswith(f"always the larger class: {adults['majority']:.0%}.")


NAMES = {"none": "none", "gentle": "gentle", "": "article", "fine_tuned": "article, fine-tuned"}


@pytest.mark.parametrize("case", ["three", "four"])
@pytest.mark.parametrize("name", list(NAMES))
def test_test_sets_in_depth(case, name):
    test = load("multi")["cases"][f"{case}_{name}".strip("_")]["test"]
    assert row_of("notebooks/README.md", f"{case} | {NAMES[name]} |")[2:4] == [count(test), percent(test["ci95"])]


@pytest.mark.parametrize("name", ["article", "gentle", "none", "logistic"])
def test_cross_validation_in_depth(name):
    cv = load("multi")["trust"]["grouped_cv"]["four" if name == "article" else f"four_{name}"]
    wanted = [
        str(cv["correct"]),
        f"{cv['accuracy']:.2f}",
        "{:.2f} to {:.2f}".format(*cv["ci95"]),
        f"{cv['mean_on_views']:.2f}" if "mean_on_views" in cv else "",
    ]
    (row,) = (row for row in table("notebooks/README.md", "augmentation | views") if row[0] == name)
    assert row[2:] == wanted


def table(path, header):
    """The rows of the table in `path` whose header starts with `header`."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {header}"))
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : end]]


def test_differences_controls_and_tasks_in_depth():
    binary, multi = load("binary")["trust"], load("multi")["trust"]
    rows = table("notebooks/README.md", "paired difference")
    for (name, difference), row in zip(multi["differences"].items(), rows, strict=True):
        points = [
            f"{100 * difference['difference']:+.0f}",
            "{:+.0f} to {:+.0f}".format(*(100 * e for e in difference["ci95"])),
        ]
        assert row[1:] == points, name
    rows = table("notebooks/README.md", "augmentation | right, of 67")
    for (name, scored), row in zip(multi["controls"]["by_augmentation"].items(), rows, strict=True):
        assert row == [name, str(scored["with_right_answer"]["correct"]), str(scored["called_covid"])]
    rows = table("notebooks/README.md", "COVID-19 against")
    for task, row in zip(binary["like_for_like"].values(), rows, strict=True):
        assert row[1:] == [
            f"{task['correct']} of {task['n']}",
            "{:.2f} ({:.2f} to {:.2f})".format(task["accuracy"], *task["ci95"]),
            "{:.2f} ({:.2f} to {:.2f})".format(task["auc"], *task["auc_ci95"]),
            f"{task['majority']:.2f}",
        ]
    text = " ".join((ROOT / "notebooks" / "README.md").read_text(encoding="utf-8").split())
    controls, seeds = binary["controls"], [row["called_covid"] for row in binary["controls"]["by_seed"]]
    assert f"predicts COVID-19 for {controls['called_covid']} of the 97 X-rays of 60 patients" in text
    assert f"COVID-19 for {controls['no_finding']['called_covid']} of them" in text
    assert f"predict COVID-19 for {min(seeds)} to {max(seeds)} of the 97" in text
    three, four = multi["article_draw"]["three"], multi["article_draw"]["four"]
    assert f"gets {three['correct']} of 3 and {four['correct']} of 4" in text
    assert f"{three['chance_of_all']:.0%} of all draws of three" in text


def test_committed_runs_are_of_the_articles_images():
    for name in ("binary", "multi"):
        assert load(name)["dataset"] == "Covid_Data_GradientCrescent" and load(name)["weights"] == "imagenet"


def test_tables_of_speed_and_chance():
    """The tables of tests/README.md are those that tests/report.py makes from the bench's file."""
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    bench = load("bench")
    tables = [*report.speed(bench), *report.chance(bench)]
    assert [table for table in tables if table not in text] == []
    assert len(re.findall(r"^\|( --- \|)+$", text, re.MULTILINE)) == len(tables)
    pair = (
        bench["seeds"]["5 bfloat16 100"][f"cross-validated, 4 classes, {name}"]["values"] for name in ("none", "gentle")
    )
    points = [100 * (none - gentle) for none, gentle in zip(*pair)]
    in_depth = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    (claims,) = bench["claims"].values()
    pairs = list(zip(claims["article, on views"]["values"], claims["article, unaugmented"]["values"]))
    assert sum(views > plain for views, plain in pairs) == 4 and len(pairs) == 5
    assert "[four of five](../tests/README.md)" in in_depth and "four of five seeds" in text
    assert f"[{min(points):.0f} to {max(points):.0f} points](../tests/README.md)" in in_depth
    seeds = [row["called_covid"] for row in load("binary")["trust"]["controls"]["by_seed"]]
    assert f"predict COVID-19 for {min(seeds)} to {max(seeds)} of the 97 controls" in " ".join(text.split())


def test_answers_of_the_exercises():
    """The numbers in the folded answers are the bench's, in its order."""
    found, answers = load("bench")["exercises"][""], {}
    for notebook in (BINARY, MULTI):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        answers[notebook] = re.findall(r"<details><summary>Answer</summary>(.*?)</details>", text)
    epochs, frame, leak, remedy = answers[BINARY]
    rate, careless, strength = answers[MULTI]
    pair = [[found[f"{n} epochs, test"], found[f"{n} epochs, controls predicted COVID-19"]] for n in (2, 5, 20)]
    assert [
        [int(n) for n in part] for part in re.findall(r"(\d+)(?: of 18 test images are right)? and (\d+)", epochs)
    ] == pair
    assert f"3 pixels gets {found['frame of 3 pixels, test']} of 18 right" in frame
    assert f"single pixel {found['frame of 1 pixels, test']}." in frame and found["frame of 0 pixels, test"] == 9
    assert found["shared patients, training images"] == 1 and found["without shared patients, test"] == 18
    assert "It is one image, and without it, 18 of 18" in leak
    assert f"{found['remedy, controls with no finding']} of 13" in remedy
    assert f"{found['remedy, controls']} of 97 controls" in remedy and found["remedy, children"] == 79
    assert f"{found['remedy, COVID-19']} of 69 COVID-19 X-rays" in remedy
    assert f"{found['none, 20 epochs at 5e-4, cross-validated']} of 306" in rate
    both = found["logistic, C = 0.01"], found["logistic, folds that ignore patients"]
    assert "from {} to {} of 306".format(*both) in careless
    assert (
        "{}, {}, {}, and {} of 306".format(*(found[f"logistic, C = {c}"] for c in (0.0001, 0.001, 0.1, 1))) in strength
    )


def test_the_first_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900
