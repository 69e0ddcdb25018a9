"""Outputs, results, and prose agree: a number that a sentence has is one of the result files."""

import json
import re

import numpy as np
import pytest
import tables
from conftest import BINARY, MULTI, ROOT
from lessons import sources
from tables import CHANCE, HEADS, SEEDS, gains, span

READMES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in tables.READMES}
TWO, FOUR = tables.BINARY["trust"], tables.MULTI["trust"]
CASES = {"two": tables.BINARY["cases"]["binary"]} | tables.MULTI["cases"]
TESTS = {name: case["test"] for name, case in CASES.items()}
WORDS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

SILLY = {name: f"{name} {p_covid:.2f}" for name, p_covid in TWO["silly"].items()}
LADDER = {(step["blur"], step["black"]): WORDS[step["normal called COVID-19"]] for step in TWO["ladder"]}
SWAP = {f"swap, {row['share']}, {row['blur']}, {row['pair']}": row for row in TWO["swap"]}
SEAM = "swap, 0.9, 0, child center in COVID-19 frame"
LIKE = TWO["like_for_like"]
SHUFFLED = {name: np.percentile(areas, [2.5, 97.5]) for name, areas in CHANCE["shuffled"].items()}
VIRAL = TESTS["four"]["confusion"][3]
DRAWS = FOUR["article_draw"]
LATE = {case: CASES[case]["history"]["val_acc"][19:] for case in ("three", "four")}
CROSS = {name: np.array(found["confusion"]) for name, found in FOUR["grouped_cv"].items()}
BLACK = np.array(FOUR["blackout"]["confusion"])
KNOWN = {name: FOUR[name]["with_right_answer"]["correct"] for name in FOUR if name.startswith(("nih", "collection"))}
DONE, DONE_MULTI = CHANCE["exercises"]["binary"], CHANCE["exercises"]["multi"]


def score(found):
    return f"{found['correct']} of {found['n']}"


def called(found):
    return f"{found['predicted_covid']} of {found['n']}"


WORDS_OF = {  # words of a README, of a text in a lesson, or of what stands under a cell of code
    "README.md": [f"{called(TWO['nih'])} adults", *list(SILLY.values())[3:]],
    "tests/README.md": ["between {:.2f} and {:.2f}".format(*middle) for middle in SHUFFLED.values()],
    "two ladder-answer": [f"COVID-19 of {LADDER[2, 0]} of the nine", f"does so for {LADDER[0, 0.1]}"],
    "two swap-answer": [called(SWAP[SEAM]), f"{span(HEADS[SEAM])} with a hard edge"],
    "two controls-answer": [
        f"{span(HEADS['nih'])} of the NIH's {TWO['nih']['n']}",
        f"{span(HEADS['collection'])} of the collection's {TWO['collection']['n']}",
        f"{CHANCE['shape']['sick']} X-rays of the same hospital's children with pneumonia",
        f"call {span(HEADS['sick children'])} of them COVID-19",
        f"before a healthy one in {CHANCE['shape']['auc']:.1%} of all pairs",
    ],
    "two like-for-like-answer": [
        f"little is left: {LIKE['collection']['auc']:.2f}",
        f"{LIKE['collection_black']['auc']:.2f} is low even for chance",
        f"other seeds give {span(CHANCE['like_for_like']['collection_black'], '{:.2f}')}",
        f"file alone reaches {LIKE['collection_file']['auc']:.2f}, and the web site alone",
        f"site alone {LIKE['collection_site']['auc']:.2f}",
    ],
    "two exercises": [
        "After 2 epochs, {test} of 18 test images are right and {nih} of the NIH's 80".format(**DONE["2"]["2 epochs"]),
        "after 5, {test} and {nih};".format(**DONE["2"]["5 epochs"]),
        "after 20, {test} and {nih}.".format(**DONE["2"]["20 epochs"]),
        f"95% black, {DONE['3']['0.95']['test']} of 18",
        f"one or two pixels, {DONE['3']['0.98']['test']}.",
        f"With nothing left, it is {DONE['3']['1']['test']},",
        f"Only {WORDS[DONE['4']['left_out']]} training image",
        f"without it, {DONE['4']['test']} of 18",
        "{right} of {n} X-rays of children".format(**DONE["5"]["normal"]),
        "{right} of {n} of the NIH's".format(**DONE["5"]["nih"]),
        "{right} of {n} of the collection's".format(**DONE["5"]["collection"]),
        "{right} of {n} COVID-19".format(**DONE["5"]["covid"]),
        f"{DONE['6']['right']} of 148 are right. With VGG16's features, it is {LIKE['children']['correct']}",
        "{test} of 18 test images are right, and {validation_accuracy:.0%}".format(**DONE["7"]),
    ],
    "four confusions-answer": [
        f"{VIRAL[3]} of {sum(VIRAL)} viral X-rays are right",
        f"{VIRAL[2]} are called bacterial, {VIRAL[1]} normal, and {WORDS[VIRAL[0]]} COVID-19",
    ],
    "four draw-answer": [
        *[f"{draw['correct']} of these {len(draw['files'])}" for draw in DRAWS.values()],
        f"{score(TESTS['three'])} and {score(TESTS['four'])} right",
        "{:.0%} and {:.0%} of random draws".format(*(draw["share_of_draws"] for draw in DRAWS.values())),
    ],
    "four save-text": [f"between {min(late):.0%} and {max(late):.0%} with {case}" for case, late in LATE.items()],
    "four differences-answer": [
        f"*{name}* by {span(gains(name, 'article'), '{:.0f}')}" for name in ("gentle", "none", "logistic")
    ],
    "four confusions-cv-answer": [
        f"{CROSS['article'][2:, 1].sum()} of {CROSS['article'][2:].sum()}",
        f"With *none*, it is {CROSS['none'][2:, 1].sum()},",
    ],
    "four blackout-answer": [
        f"gets {score(FOUR['blackout'])} right, more than *article* does",
        f"with whole X-rays ({CROSS['article'].trace()})",
        f"of the {BLACK[1:].sum()} X-rays of children, it gets {BLACK[1:, 1:].trace()} right",
    ],
    "four controls-answer": [
        f"{max(KNOWN['nih'], KNOWN['nih_gentle'], KNOWN['nih_none'])} of 80",
        f"{max(KNOWN['collection'], KNOWN['collection_gentle'], KNOWN['collection_none'])} of 51",
    ],
    "four exercises": [
        f"{DONE_MULTI['1']['right']} of 306 are right",
        "{}, {}, {}, {}, and {} of 306".format(*DONE_MULTI["2"].values()),
    ],
    "two evaluate": [f"{score(TESTS['two'])} test images are right"],
    "two like-for-like": [f"{name}: {score(LIKE[name])}" for name in ("children", "nih", "collection")],
    "two conclusions": [called(TWO["nih"]), called(TWO["collection"])],
    "four test-augmentations": [f"{case} article {score(TESTS[case])}" for case in ("three", "four")],
    "four cross-validated": [f"{name} {score(found)}" for name, found in FOUR["grouped_cv"].items()],
    "four differences": [f"{name} {100 * found['difference']:+.1f}" for name, found in FOUR["differences"].items()],
    "four conclusions": [called(FOUR["nih"]), called(FOUR["collection"])],
}


def text_of(place):
    """The text of a README or of a lesson's cell, or what stands under a cell of code, without runs of blanks."""
    if place in READMES:
        return " ".join(READMES[place].split())
    lesson, _, name = place.partition(" ")
    cells = json.loads({"two": BINARY, "four": MULTI}[lesson].read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if cell["id"] == name)
    texts = [cell["source"]] if cell["cell_type"] == "markdown" else []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        texts.append(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
    return " ".join(" ".join("".join(text) for text in texts).split())


@pytest.mark.parametrize("place", WORDS_OF)
def test_a_number_that_is_shown_is_a_result(place):
    text = text_of(place)
    if not text:
        pytest.skip("the cell has been edited since, and has no outputs")
    for words in WORDS_OF[place]:
        assert words in text


def test_claims_over_seeds_and_heads():
    """What lessons and READMEs say of every head, or of every seed."""
    assert len(HEADS["test"]) == 60 and len(SEEDS["cross-validated, article"]) == 5
    assert {*HEADS["test"], TESTS["two"]["correct"], TWO["blackout"]["0.9"]["correct"]} == {18}
    for name in ("black", "gray", "white"):
        assert min(TWO["silly"][name], *HEADS[f"silly, {name}"]) > 0.99
    assert LADDER[0, 0.3] == "nine"
    assert all(set(values) == {9} for name, values in HEADS.items() if re.fullmatch("ladder, .* COVID-19", name))
    assert max(HEADS["swap, 0.9, 2, child center in COVID-19 frame"]) < min(HEADS[SEAM])
    for frame in ("0.7, 2", "0.9, 2"):
        assert min(HEADS[f"swap, {frame}, adult center in child frame"]) > 27  # more than half of 54
        assert max(HEADS[f"swap, {frame}, child center in COVID-19 frame"]) < 27
    for better, worse in (("children", "nih"), ("nih", "nih_black"), ("collection", "collection_black")):
        areas = [CHANCE["like_for_like"][name] for name in (better, worse)]
        assert all(high > low for high, low in zip(*areas))
    assert all(high > low for high, low in zip(SEEDS["test, four, gentle"], SEEDS["test, four, none"]))
    assert all(min(gains(name, "article")) > 0 for name in ("gentle", "none", "logistic"))
    assert min(gains("none", "gentle")) > 0 and FOUR["differences"]["none minus gentle"]["difference"] > 0
    assert FOUR["differences"]["none minus gentle"]["ci95"][0] < 0
    for name in ("gentle", "none"):
        ahead = [*gains("logistic", name), FOUR["differences"][f"logistic minus {name}"]["difference"]]
        assert min(ahead) < 0 < max(ahead)
    assert {*HEADS["swap, 0.9, 0, child center in child frame"]} == {0}
    assert TWO["same_site"]["ci95"][0] < 0.5 < TWO["same_site"]["ci95"][1]
    assert TWO["marks"]["no_arrows"] < TWO["marks"]["arrows"]
    assert np.ptp(CHANCE["marks"]["elsewhere"]) < 0.05


def test_tables_are_computed():
    """`make sync` would change nothing."""
    for name, text in READMES.items():
        assert tables.with_tables(text) == text, name


def test_links_lead_somewhere():
    """A README's links lead to files that are there, and to headings, whose anchors are those of GitHub."""
    for name, text in READMES.items():
        for file, anchor in re.findall(r"\]\((?!https?:)([^)\s#]*)#?([^)\s]*)\)", text):
            path = (ROOT / name).parent / file if file else ROOT / name
            assert path.exists(), f"{name}: {file}"
            heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else [""]
            assert anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads], anchor


@pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
def test_a_notebook_alone_links_to_no_file(notebook):
    """In Colab, a notebook has no files beside it."""
    for text in sources(notebook, "markdown").values():
        assert not re.search(r"\]\((?!https?:)", text)
