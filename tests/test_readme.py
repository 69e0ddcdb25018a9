"""Numbers in the READMEs and in the lessons' prose are those of the committed result files."""

import json
import re

import pytest
from conftest import BINARY, MULTI, ROOT
from lessons import cell
from tables import CHANCE, chance_shuffled, load, seconds_of_lessons

READMES = ["README.md", "notebooks/README.md", "data/README.md", "tests/README.md"]
TWO, FOUR = load("binary"), load("multi")
SEEDS, HEADS, LIKE = CHANCE["seeds"], CHANCE["heads"], CHANCE["like_for_like"]
RECIPES = ("", "_gentle", "_none")


def span(values):
    """The lowest and the highest of some values, "8 to 11"."""
    return f"{min(values):.0f} to {max(values):.0f}"


def binary_exercises():
    """The sentences of Binary's answers that have numbers."""
    found = CHANCE["exercises"]["binary"]
    early = [found["1"][f"{epochs} epochs"] for epochs in (2, 5, 20)]
    thin = [found["2"][share]["test"] for share in ("0.95", "0.98", "1")]
    remedy = {name: counts["right"] for name, counts in found["4"].items()}
    return [
        f"After 2 epochs, {early[0]['test']} of 18 test images are right and {early[0]['NIH']} of the NIH's 80 X-rays",
        f"after 5, {early[1]['test']} and {early[1]['NIH']}; after 20, {early[2]['test']} and {early[2]['NIH']}",
        f"With 95% black, {thin[0]} of 18 are right; with 98%, which leaves a frame of one or two pixels, {thin[1]}",
        f"With nothing left, it is {thin[2]}",
        f"without it, {found['3']['test']} of 18 are right",
        f"{remedy['normal']} of 79 X-rays of children, {remedy['NIH']} of 80 of the NIH's",
        f"{remedy['collection']} of 83 of the collection's are right, but only {remedy['covid']} of 69 COVID-19 X-rays",
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


def binary_answers():
    """What Binary says of the project's other heads and seeds, by cell."""
    frames = HEADS["swap, 0.9, COVID-19 frame, normal center"]["values"]
    same = LIKE["same_collection"]
    points = [100 * (accuracy - same["majority"]) for accuracy in same["accuracy"]["values"]]
    areas, areas_black = re.findall(r"(0\.\d+) to (0\.\d+)", chance_shuffled())
    return {
        "controls-answer": f"{span(HEADS['collection']['values'])} of the collection's 83",
        "swap-answer": f"for {span(frames)} of 54 pairs",
        "conclusions-answer": f"{span(points)} points above",
        "like-for-like-answer": "between {} and {}, and with the center black between {} and {}".format(
            *areas, *areas_black
        ),
    }


def multi_answers():
    """What Multi says of its own run and of four other seeds, by cell."""
    points = {name: span(SEEDS[f"points, {name} - article"]["values"]) for name in ("gentle", "none", "logistic")}
    right = []
    for group in ("no_finding", "controls"):
        scored = [FOUR["trust"][f"{group}{recipe}"]["with_right_answer"] for recipe in RECIPES]
        right.append(f"{max(found['correct'] for found in scored)} of {scored[0]['n']}")
    draws, tests = FOUR["trust"]["article_draw"], [FOUR["cases"][case]["test"] for case in ("three", "four")]
    drawn = [f"{draws[case]['correct']} of these {len(draws[case]['files'])}" for case in ("three", "four")]
    whole = [f"{test['correct']} of {test['n']}" for test in tests]
    shares = [f"{draws[case]['share_of_draws']:.0%}" for case in ("three", "four")]
    last = FOUR["cases"]["four"]["history"]["val_acc"][19:]
    healthy = []
    for recipe in ("four", "four_none"):
        confusion = FOUR["trust"]["grouped_cv"][recipe]["confusion"]
        healthy.append(confusion[2][1] + confusion[3][1])
    return {
        "draw-answer": f"{' and '.join(drawn)} right, exactly the article's 100% and 50%. But over all test images, "
        f"it has {' and '.join(whole)} right. From such a model, {' and '.join(shares)} of random draws "
        "look like that.",
        "save-text": f"it is between {min(last):.0%} and {max(last):.0%} from epoch 20 on",
        "confusions-answer": f"{healthy[0]} of 158. With *none*, it is {healthy[1]}",
        "differences-answer": f"*gentle* is ahead of *article* by {points['gentle']} points, *none* by "
        f"{points['none']}, and *logistic* by {points['logistic']}",
        "controls-answer": f"at most {right[0]} and {right[1]}",
    }


def test_sentences():
    found = [(BINARY, "exercises", sentence) for sentence in binary_exercises()]
    found += [(MULTI, "exercises", sentence) for sentence in multi_exercises()]
    found += [(BINARY, *item) for item in binary_answers().items()]
    found += [(MULTI, *item) for item in multi_answers().items()]
    missing = [row[1:] for row in found if row[2] not in " ".join(cell(*row[:2]).split())]
    assert missing == []


def test_claims_of_binary():
    """What Binary says without a number, or with one that all heads have in common."""
    text = " ".join(cell(BINARY, "controls-answer").split())
    assert "All of them get 18 of 18" in text and "Each predicts COVID-19 for 79 of the NIH's 80" in text
    assert HEADS["test"]["values"] == [18] * 60 and HEADS["NIH"]["values"] == [79] * 60
    found = CHANCE["exercises"]["binary"]
    assert found["3"]["left_out"] == 1
    assert found["1"]["20 epochs"]["NIH"] == TWO["trust"]["no_finding"]["predicted_covid"]
    accuracies = {name: LIKE[name]["accuracy"]["values"] for name in LIKE}
    compared = [("children", "nih"), *((name, f"{name}_blackout") for name in ("nih", "same_collection"))]
    for better, worse in compared:
        assert all(low < high for low, high in zip(accuracies[worse], accuracies[better]))
    assert max(accuracies["same_collection_blackout"]) < LIKE["same_collection_blackout"]["majority"]
    marks = TWO["trust"]["marks"]
    assert 0.5 < marks["without_arrows"] < marks["with_arrows"]
    with_arrows, without = (HEADS[f"marks, {name}"]["values"] for name in ("arrows", "without arrows"))
    assert all(low < high for low, high in zip(without, with_arrows))


def test_claims_of_multi():
    """*gentle* is ahead of *none* on the test set, in each seed and in the run; cross-validated, it is behind."""
    assert "four other seeds" in cell(MULTI, "differences-answer")
    gentle, none = (SEEDS[f"test, four, {name}"]["values"] for name in ("gentle", "none"))
    assert len(gentle) == 4 and all(low < high for low, high in zip(none, gentle))
    assert FOUR["cases"]["four_gentle"]["test"]["correct"] > FOUR["cases"]["four_none"]["test"]["correct"]
    cross_validated = FOUR["trust"]["grouped_cv"]
    assert cross_validated["four_gentle"]["correct"] < cross_validated["four_none"]["correct"]
    assert min(FOUR["trust"][f"no_finding{recipe}"]["predicted_covid"] for recipe in RECIPES) >= 70
    histories = [FOUR["cases"][f"four{recipe}"]["history"]["acc"] for recipe in ("_none", "_gentle", "")]
    none, gentle, article = ([epoch for epoch, acc in enumerate(history, 1) if acc == 1] for history in histories)
    assert none[-81:] == [*range(20, 101)] and article == []
    assert f"*gentle* for the first time in epoch {gentle[0]}" in cell(MULTI, "curves-augmentations-answer")


def test_minutes():
    """The notebooks' minutes hold on the machine that bench.json is from."""
    for notebook, seconds in zip((BINARY, MULTI), seconds_of_lessons().values()):
        ranges = [tuple(map(int, found)) for found in re.findall(r"\| (\d+) to (\d+) \| \d", cell(notebook, "title"))]
        least, most = (sum(ends) for ends in zip(*ranges))
        assert least <= seconds / 60 <= most, notebook


def anchors(text):
    """The headings of a text, with hyphens for blanks: what Jupyter calls them in links."""
    return {title.replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def markdown_of(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_links():
    """Files and headings that the READMEs and the lessons link to are there."""
    texts = {ROOT / name: (ROOT / name).read_text(encoding="utf-8") for name in READMES}
    texts |= {notebook: markdown_of(notebook) for notebook in (BINARY, MULTI)}
    for name, text in texts.items():
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            path, _, heading = target.partition("#")
            if name.suffix == ".ipynb" and not path:
                continue  # the next test's
            page = name.parent / path if path else name
            assert page.exists(), (name, target)
            if heading:  # GitHub drops capitals and punctuation
                titles = {re.sub(r"[^\w-]", "", title).lower() for title in anchors(page.read_text(encoding="utf-8"))}
                assert heading in titles, (name, target)


@pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=lambda path: path.stem)
def test_links_within_the_lessons(notebook):
    text = markdown_of(notebook)
    assert set(re.findall(r"\]\(#([^\s)]+)\)", text)) <= anchors(text)


def test_the_first_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.sub(r"<!-- table .*?<!-- end -->", "", text, flags=re.DOTALL).split()) <= 700
