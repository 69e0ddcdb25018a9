"""Numbers in the READMEs and in the lessons' prose are those of the committed result files."""

import json
import re

import pytest
import tables
from conftest import BINARY, MULTI, ROOT
from lessons import cell

READMES = ["README.md", "notebooks/README.md", "data/README.md", "tests/README.md"]


def exercises():
    """Return the sentences of the exercises' answers that have numbers, by notebook."""
    found, names = tables.load("chance")["exercises"], ("test", "no_finding")
    after = {n: "{} of 18 test images are right and {} of the NIH's 100 X-rays" for n in (2, 5, 20)}
    after = {n: text.format(*(found[f"{n} epochs, {name}"] for name in names)) for n, text in after.items()}
    remedy = {name: "{} of {}".format(*found[f"remedy, {name}"]) for name in ("COVID-19", "children", "controls")}
    remedy["no_finding"] = "{} of {}".format(*found["remedy, no_finding"])
    strengths = [found[f"logistic, C = {strength}"] for strength in (0.0001, 0.001, 0.01, 0.1, 1)]
    binary = [
        f"After 2 epochs, {after[2]} are predicted COVID-19",
        "after 5, {} and {}".format(*(found[f"5 epochs, {name}"] for name in names)),
        "after 20, {} and {}".format(*(found[f"20 epochs, {name}"] for name in names)),
        f"3 pixels gets {found['0.95 black, test']} of 18 right, and a frame of a single pixel "
        f"{found['0.98 black, test']}. With nothing left, it is {found['1 black, test']}",
        f"Only {['no', 'one'][found['shared patients, training images']]} training image shows a patient of the test "
        f"set, and without it, {found['without shared patients, test']} of 18 are still right",
        f"{remedy['children']} X-rays of children, {remedy['no_finding']} of the NIH's, and {remedy['controls']} of "
        f"the collection's are right, but only {remedy['COVID-19']} COVID-19 X-rays",
        f"{found['random weights, test']} of 18 test images and, cross-validated, {found['random weights, children']} "
        "of 148 are right",
        f"{found['preprocess_input, test']} of 18 test images and, cross-validated, "
        f"{found['preprocess_input, children']} of 148 are right",
    ]
    multi = [
        f"{found['none, 20 epochs at 5e-4']} of 306 are right",
        f"from {found['logistic, C = 0.01']} to {found['logistic, folds that ignore patients']} of 306",
        "{}, {}, {}, {}, and {} of 306".format(*strengths),
    ]
    return [(BINARY, "exercises", text) for text in binary] + [(MULTI, "exercises", text) for text in multi]


def experiments():
    """Return the sentences of the lessons that quote the project's own experiments."""
    chance = tables.load("chance")
    heads, seeds = chance["heads"]["no_finding"]["values"], chance["seeds"]
    values = {name: seeds[f"cross-validated, {name}"]["values"] for name in tables.RECIPES}
    points = [100 * (one - other) for one, other in zip(values["gentle"], values["article"])]
    behind = [one - other for one, other in zip(values["logistic"], values["article"])]
    ahead = [one - other for one, other in zip(values["none"], values["gentle"])]
    epochs = chance["epochs"]
    rights = [epochs[f"article, {views} views, {n} epochs"]["right"] for views in (8, 32) for n in (100, 500)]
    tested = [seeds[f"test, four, {name}"]["values"] for name in ("gentle", "none")]
    tests, trust = tables.load("multi")["cases"], tables.load("multi")["trust"]
    assert min(ahead) > 0 and all(one > other for one, other in zip(*tested))
    assert tests["four_gentle"]["test"]["correct"] > tests["four_none"]["test"]["correct"]
    known = {
        group: [trust[f"{group}{kind}"]["with_right_answer"]["correct"] for kind in ("", "_gentle", "_none")]
        for group in ("no_finding", "controls")
    }
    covid = [trust[f"no_finding{kind}"]["predicted_covid"] for kind in ("", "_gentle", "_none")]
    assert covid == sorted(covid)  # as the conclusions say
    longer = "500 epochs took *article* from {} to {} of 306 right with 8 views, and from {} to {} with 32."
    assert max(rights) < epochs["gentle, 8 views, 100 epochs"]["right"]
    assert len(heads) == 60 and len(points) == 5 and min(points) > 0 and min(behind) > 0
    return [
        (BINARY, "controls-by-seed-answer", f"{min(heads)} to {max(heads)} of the NIH's 100 X-rays"),
        (
            MULTI,
            "differences-answer",
            f"*gentle* was ahead of *article* by {min(points):.0f} to {max(points):.0f} points",
        ),
        (MULTI, "differences-answer", "*none* was ahead of *gentle* in all five"),
        (MULTI, "differences-answer", longer.format(*rights)),
        (MULTI, "differences-answer", "36 test images, *gentle* is ahead of *none*, and it is in all five"),
        (MULTI, "controls-answer", f"at most {max(known['no_finding'])} of 100 and {max(known['controls'])} of 53"),
    ]


def test_views():
    """No mean of 32 or 100 views is ahead of 8 by more than 0.02, as Multi says."""
    seeds = tables.load("chance")["seeds"]
    eight = seeds["cross-validated, article"]["mean"]
    assert seeds["cross-validated, 32 views"]["mean"] < eight + 0.02
    assert seeds["cross-validated, 100 views"]["mean"] < eight + 0.02
    assert "five seeds cannot tell 8, 32, and 100 views apart" in cell(MULTI, "differences-answer")


@pytest.mark.parametrize("part", [exercises, experiments])
def test_prose(part):
    """Each sentence with a number says the number of its file."""
    for notebook, name, text in part():
        assert text in " ".join(cell(notebook, name).split()), (notebook.stem, name, text)


def test_the_committed_runs():
    """They are of the article's images, with seed 42 and VGG16's weights, and have every part."""
    for name in ("binary", "multi"):
        run = tables.load(name)
        assert (run["dataset"], run["weights"], run["seed"]) == ("Covid_Data_GradientCrescent", "imagenet", 42)
    assert set(tables.load("chance")) == {"heads", "exercises", "seeds", "epochs"}


def test_minutes():
    """The first README's minutes hold on the machine that bench.json is from."""
    times, text = tables.load("bench")["first"][""]["times"], (ROOT / "README.md").read_text(encoding="utf-8")
    for pattern, begin, end in (
        (r"make run +# (\d+) to (\d+) minutes", "installed", "end"),
        (r"\| \[Binary\].* (\d+) to (\d+) \|", "prepared", "Binary page"),
        (r"\| \[Multi\].* (\d+) to (\d+) \|", "Binary page", "Multi page"),
    ):
        least, most = map(int, re.search(pattern, text).groups())
        assert least <= (times[end] - times[begin]) / 60 <= most, pattern


@pytest.mark.parametrize("name", READMES)
def test_tables(name):
    """Every table between comments is what its function computes, and every function's name is known."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"<!-- table ([\w-]+) -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert len(found) == text.count("<!-- table ") == text.count("<!-- end -->")
    for table, content in found:
        assert content == tables.TABLES[table](), table


def test_links():
    """Files and headings that the READMEs link to are there."""
    for name in READMES:
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            path, _, heading = target.partition("#")
            page = (ROOT / name).parent / path if path else ROOT / name
            assert page.exists(), (name, target)
            if heading:
                lines = page.read_text(encoding="utf-8").splitlines()
                titles = [re.sub(r"[^\w\- ]", "", line.lstrip("# ")).lower() for line in lines if line.startswith("#")]
                assert heading in [title.replace(" ", "-") for title in titles], (name, target)


def test_the_withdrawn_controls_are_named_where_the_correction_is_told():
    """The 14 X-rays that are no controls appear in no other file of the project."""
    names = [line.split(",")[0] for line in (ROOT / "data" / "excluded.csv").read_text().splitlines()[1:]]
    assert len(names) == 14
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        assert not [name for name in names if name in text], path
    assert not [row for row in tables.rows_of_manifest() if row["filename"] in names]


def test_the_first_readme_is_short():
    """It can be read in five minutes."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def refuse(word):
    """Stand in for NaN and Infinity, which other programs cannot read."""
    raise ValueError(word)


def test_the_result_files_are_plain_json():
    """They hold no NaN and no Infinity."""
    for path in sorted((ROOT / "notebooks" / "figures").glob("*.json")):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
