"""Numbers in the READMEs and in the lessons' prose are those of the committed result files."""

import json
import re

import pytest
import tables
from conftest import BINARY, MULTI, ROOT
from lessons import cell

READMES = ["README.md", "notebooks/README.md", "data/README.md", "tests/README.md"]
CHANCE = tables.load("chance")
RECIPES = ("", "_gentle", "_none")


def span(values, form="{:.0f}"):
    """The lowest and the highest of some values, "8 to 11"."""
    return f"{form.format(min(values))} to {form.format(max(values))}"


def binary_exercises():
    """The sentences of Binary's answers that have numbers."""
    found = CHANCE["exercises"]["binary"]
    early = [found["1"][f"{epochs} epochs"] for epochs in (2, 5, 20)]
    remedy = found["4"]
    thin = [found["2"][share]["test"] for share in ("0.95", "0.98", "1")]
    assert (
        found["3"]["left_out"] == 1
        and early[2]["NIH"] == tables.load("binary")["trust"]["no_finding"]["predicted_covid"]
    )
    return [
        f"After 2 epochs, {early[0]['test']} of 18 test images are right and {early[0]['NIH']} of the NIH's 80 X-rays",
        f"after 5, {early[1]['test']} and {early[1]['NIH']}; after 20, {early[2]['test']} and {early[2]['NIH']}",
        f"With 95% black, {thin[0]} of 18 are right; with 98%, which leaves a frame of one or two pixels, {thin[1]}",
        f"With nothing left, it is {thin[2]}",
        f"without it, {found['3']['test']} of 18 are right",
        f"{remedy['normal']['right']} of 79 X-rays of children, {remedy['NIH']['right']} of 80 of the NIH's",
        f"{remedy['collection']['right']} of 83 of the collection's are right",
        f"but only {remedy['covid']['right']} of 69 COVID-19 X-rays",
        f"{found['5']['test']} of 18 test images and, cross-validated, {found['5']['cross_validated']} of 148",
        f"{found['6']['test']} of 18 test images and, cross-validated, {found['6']['cross_validated']} of 148",
        f"{found['7']['test']} of 18 test images are right",
        f"{found['7']['validation_accuracy']:.0%} of the validation images",
    ]


def multi_exercises():
    """The sentences of Multi's answers that have numbers."""
    found = CHANCE["exercises"]["multi"]
    strengths = [found["3"][strength] for strength in ("0.0001", "0.001", "0.01", "0.1", "1")]
    return [
        f"{found['1']['right']} of 306 are right",
        f"from {strengths[2]} to {found['2']['ignoring patients']} of 306",
        "{}, {}, {}, {}, and {} of 306".format(*strengths),
    ]


@pytest.mark.parametrize(("notebook", "sentences"), [(BINARY, binary_exercises), (MULTI, multi_exercises)])
def test_answers_of_the_exercises(notebook, sentences):
    text = " ".join(cell(notebook, "exercises").split())
    for sentence in sentences():
        assert sentence in text


def test_sentences_of_binary():
    """What Binary says of the project's other heads and seeds."""
    heads, like = CHANCE["heads"], CHANCE["like_for_like"]
    assert len(heads["NIH"]["values"]) == 60
    text = " ".join(cell(BINARY, "controls-answer").split())
    assert set(heads["test"]["values"]) == {18} and set(heads["NIH"]["values"]) == {79}
    assert "All of them got 18 of 18" in text and "for 79 of the NIH's 80 X-rays, each of them" in text
    assert f"{span(heads['collection']['values'])} of the collection's 83" in text
    swapped = " ".join(cell(BINARY, "swap-answer").split())
    key = "swap, 0.9, COVID-19 frame, normal center"
    assert f"for {span(heads[key]['values'])} of 54 pairs" in swapped
    same = like["same_collection"]
    points = [100 * (value - same["majority"]) for value in same["accuracy"]["values"]]
    assert f"{span(points)} points above" in " ".join(cell(BINARY, "conclusions-answer").split())
    for group in ("nih", "same_collection"):  # in each of the seeds, the center black is worse
        for seen, black in zip(like[group]["accuracy"]["values"], like[f"{group}_blackout"]["accuracy"]["values"]):
            assert black < seen
    for nih, children in zip(like["nih"]["accuracy"]["values"], like["children"]["accuracy"]["values"]):
        assert nih < children
    assert max(like["same_collection_blackout"]["accuracy"]["values"]) < like["same_collection_blackout"]["majority"]
    shuffled = tables.chance_shuffled().splitlines()[2]
    text = " ".join(cell(BINARY, "like-for-like-answer").split())
    assert "between 0.37 and 0.63" in text and "0.37 to 0.63" in shuffled
    marks = tables.load("binary")["trust"]["marks"]
    assert 0.5 < marks["without_arrows"] < marks["with_arrows"]
    for with_arrows, without in zip(heads["marks, arrows"]["values"], heads["marks, without arrows"]["values"]):
        assert without < with_arrows


def test_sentences_of_multi():
    """What Multi says of the project's own run and of five other seeds."""
    seeds, run = CHANCE["seeds"], tables.load("multi")
    text = " ".join(cell(MULTI, "differences-answer").split())
    points = {pair: seeds[f"points, {pair} - article"]["values"] for pair in ("gentle", "none", "logistic")}
    assert "four other seeds" in text and {len(values) for values in points.values()} == {4}
    assert f"*gentle* is ahead of *article* by {span(points['gentle'])} points" in text
    assert f"*none* by {span(points['none'])}" in text and f"*logistic* by {span(points['logistic'])}" in text
    for gentle, none in zip(seeds["test, four, gentle"]["values"], seeds["test, four, none"]["values"]):
        assert gentle > none
    assert run["cases"]["four_gentle"]["test"]["correct"] > run["cases"]["four_none"]["test"]["correct"]
    cross = run["trust"]["grouped_cv"]
    assert cross["four_gentle"]["correct"] < cross["four_none"]["correct"]
    most = max(run["trust"][f"no_finding{recipe}"]["with_right_answer"]["correct"] for recipe in RECIPES)
    others = max(run["trust"][f"controls{recipe}"]["with_right_answer"]["correct"] for recipe in RECIPES)
    assert f"at most {most} of 80 and {others} of 51" in " ".join(cell(MULTI, "controls-answer").split())
    assert min(run["trust"][f"no_finding{recipe}"]["predicted_covid"] for recipe in RECIPES) >= 70
    right = run["trust"]["no_finding"]["with_right_answer"], run["trust"]["controls"]["with_right_answer"]
    assert (right[0]["n"], right[1]["n"]) == (80, 51)


@pytest.mark.parametrize("name", ["binary", "multi"])
def test_the_committed_runs(name):
    """They are of the article's images, seed 42, and VGG16's weights."""
    run = tables.load(name)
    assert (run["dataset"], run["weights"], run["seed"]) == ("Covid_Data_GradientCrescent", "imagenet", 42)
    assert run["files"]["other"] == 0


@pytest.mark.parametrize("name", ["binary", "multi", "chance", "bench"])
def test_result_files_are_plain_json(name):
    """They hold no NaN and no Infinity, which other programs cannot read."""

    def refuse(word):
        raise ValueError(word)

    path = ROOT / "notebooks" / "results" / f"{name}.json"
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_minutes():
    """The notebooks' minutes hold on the machine that bench.json is from."""
    seconds = tables.seconds_of_lessons()
    for notebook, name in ((BINARY, "Binary"), (MULTI, "Multi")):
        ranges = [tuple(map(int, found)) for found in re.findall(r"\| (\d+) to (\d+) \| \d", cell(notebook, "title"))]
        least, most = (sum(ends) for ends in zip(*ranges))
        assert least <= seconds[name] / 60 <= most, name


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


def test_links_within_the_lessons():
    """Jupyter's anchors are headings with hyphens for blanks."""
    for notebook in (BINARY, MULTI):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        titles = re.findall(r"^#+ (.*)$", "\n".join(texts), re.MULTILINE)
        for target in re.findall(r"\]\(#([^\s)]+)\)", "\n".join(texts)):
            assert target in [title.replace(" ", "-") for title in titles], target


def test_the_first_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.sub(r"<!-- table .*?<!-- end -->", "", text, flags=re.DOTALL).split()) <= 700
