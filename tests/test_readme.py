"""Outputs, results, and prose agree: a number that a sentence has is one of the result files."""

import json
import re

import numpy as np
import pytest
import tables
from conftest import BINARY, MULTI, ROOT
from lessons import sources
from tables import BINARY as TWO
from tables import CHANCE
from tables import MULTI as FOUR

READMES = ["README.md", "notebooks/README.md", "data/README.md", "tests/README.md"]
TEXTS = {"two": sources(BINARY, "markdown"), "four": sources(MULTI, "markdown")}
TEXTS["readme"] = {name: (ROOT / name).read_text(encoding="utf-8") for name in READMES}
HEADS, LIKE, SEEDS = CHANCE["heads"], CHANCE["like_for_like"], CHANCE["seeds"]


def span(values):
    """The lowest and the highest of some values, "8 to 11", or one value."""
    return " to ".join(dict.fromkeys(f"{end:.0f}" for end in (min(values), max(values))))


def ladder(blur, black):
    """How many of the nine normal test X-rays are called COVID-19 at a step of the ladder."""
    (step,) = (step for step in TWO["trust"]["ladder"] if (step["blur"], step["black"]) == (blur, black))
    names = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return names[step["normal called COVID-19"]]


def swap(pair, share, blur):
    """How many of a swapped pair are called COVID-19, "29 of 54"."""
    keys = {"pair": pair, "share": share, "blur": blur}
    (row,) = (row for row in TWO["trust"]["swap"] if keys.items() <= row.items())
    return f"{row['predicted_covid']} of {row['n']}"


def binary_facts():
    trust, task = TWO["trust"], TWO["trust"]["like_for_like"]
    yield "ladder-answer", f"of {ladder(2, 0)}"
    yield "ladder-answer", f"for {ladder(0, 0.1)}"
    yield "swap-answer", swap("child center in COVID-19 frame", 0.9, 0)
    yield "controls-answer", f"{span(HEADS['nih']['values'])} of the NIH's {HEADS['n']['nih']}"
    yield "controls-answer", f"{span(HEADS['collection']['values'])} of the collection's {HEADS['n']['collection']}"
    for name in ("collection", "collection_black", "collection_site"):
        yield "like-for-like-answer", f"{task[name]['auc']:.2f}"
    areas = CHANCE["shuffled"]["collection_black"]["auc"]["values"]
    yield "like-for-like-answer", "{:.2f} and {:.2f}".format(*np.percentile(areas, [2.5, 97.5]))
    found = CHANCE["exercises"]["binary"]
    for epochs in (2, 5, 20):
        yield "exercises", f"{found['2'][f'{epochs} epochs']['test']}"
        yield "exercises", f"{found['2'][f'{epochs} epochs']['nih']}"
    yield "exercises", f"95% black, {found['3']['0.95']['test']} of 18"
    yield "exercises", f"without it, {found['4']['test']} of 18"
    for name, group in (("normal", "79 X-rays"), ("nih", "80 of"), ("collection", "83 of"), ("covid", "69 COVID-19")):
        yield "exercises", f"{found['5'][name]['right']} of {group}"
    yield "exercises", f"{found['6']['random']['test']} of 18"
    yield "exercises", f"{found['6']['random']['cross_validated']} of 148"
    yield "exercises", f"{found['6']['own pixels']['cross_validated']} of 148"
    yield "exercises", f"{found['7']['test']} of 18 test images are right, and {found['7']['validation_accuracy']:.0%}"
    assert trust["marks"]["no_arrows"] < trust["marks"]["arrows"]


def multi_facts():
    trust, found = FOUR["trust"], CHANCE["exercises"]["multi"]
    viral = FOUR["cases"]["four"]["test"]["confusion"][3]
    yield "confusions-answer", f"{viral[3]} of {sum(viral)} viral"
    yield "confusions-answer", f"{viral[2]} are called bacterial, {viral[1]} normal"
    assert viral[0] == 0
    for case, draw in trust["article_draw"].items():
        test = FOUR["cases"][case]["test"]
        yield "draw-answer", f"{draw['correct']} of these {len(draw['files'])}"
        yield "draw-answer", f"{test['correct']} of {test['n']}"
        yield "draw-answer", f"{draw['share_of_draws']:.0%}"
    last = FOUR["cases"]["four"]["history"]["val_acc"][19:]
    yield "save-text", f"{min(last):.0%} and {max(last):.0%}"
    for recipe in ("article", "none"):
        confusion = trust["grouped_cv"][recipe]["confusion"]
        yield "confusions-cv-answer", f"{confusion[2][1] + confusion[3][1]}"
    for name in ("gentle", "none", "logistic"):
        yield "differences-answer", span(SEEDS[f"points, {name} - article"]["values"])
    children = np.trace(np.array(trust["blackout"]["confusion"])[1:, 1:])
    yield "blackout-answer", f"({children} here"
    for source in ("nih", "collection"):
        known = [trust[f"{source}{recipe}"]["with_right_answer"] for recipe in ("", "_gentle", "_none")]
        yield "controls-answer", f"{max(score['correct'] for score in known)} of {known[0]['n']}"
    yield "exercises", f"{found['1']['right']} of 306"
    yield "exercises", f"{found['3']['0.01']} to {found['2']['ignoring patients']} of 306"
    yield "exercises", "{}, {}, {}, {}, and {} of 306".format(*found["3"].values())


def readme_facts():
    trust, silly = TWO["trust"], TWO["trust"]["silly"]
    yield "README.md", f"{trust['nih']['predicted_covid']} of {trust['nih']['n']} adults"
    for name in ("noise", "checkerboard", "flower", "temple", "portrait"):
        yield "README.md", f"{name} {silly[name]:.2f}"
    assert TWO["cases"]["binary"]["test"]["correct"] == trust["blackout"]["0.9"]["correct"] == 18
    assert min(silly[name] for name in ("black", "gray", "white")) > 0.99


FACTS = [("two", *fact) for fact in binary_facts()]
FACTS += [("four", *fact) for fact in multi_facts()]
FACTS += [("readme", *fact) for fact in readme_facts()]


@pytest.mark.parametrize("text, place, words", FACTS)
def test_a_number_in_a_sentence_is_a_result(text, place, words):
    assert words in " ".join(TEXTS[text][place].split())


def test_claims_over_seeds_and_heads():
    """What the lessons say of every head, or of every seed."""
    assert set(HEADS["test"]["values"]) == {18}
    for name in ("black", "gray", "white"):
        assert min(HEADS[f"silly, {name}"]["values"]) > 0.99
    children = "swap, {}, {}, child center in COVID-19 frame"
    assert max(HEADS[children.format(0.9, 2)]["values"]) < min(HEADS[children.format(0.9, 0)]["values"])
    for frame in ("0.7, 2", "0.9, 2"):
        assert min(HEADS[f"swap, {frame}, adult center in child frame"]["values"]) > 27  # more than half of 54
        assert max(HEADS[f"swap, {frame}, child center in COVID-19 frame"]["values"]) < 27
    accuracies = {name: found["accuracy"]["values"] for name, found in LIKE.items()}
    for better, worse in (("children", "nih"), ("nih", "nih_black"), ("collection", "collection_black")):
        assert all(low < high for low, high in zip(accuracies[worse], accuracies[better]))
    gentle, none = (SEEDS[f"test, four, {name}"]["values"] for name in ("gentle", "none"))
    assert all(low < high for low, high in zip(none, gentle))
    assert all(min(SEEDS[f"points, {name} - article"]["values"]) > 0 for name in ("gentle", "none", "logistic"))
    marks = CHANCE["marks"]["42"]
    assert np.ptp(marks["elsewhere"]) < 0.05


def printed(notebook, name):
    """What a committed cell printed and the text of its tables, without runs of blanks; "" if it has no outputs."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if cell["id"] == name)
    texts = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        texts.append("".join(output.get("text", []) or data.get("text/markdown", []) or data.get("text/plain", [])))
    return " ".join(" ".join(texts).split())


def shown_by_binary():
    trust, test = TWO["trust"], TWO["cases"]["binary"]["test"]
    yield "evaluate", f"{test['correct']} of {test['n']} test images are right"
    yield "fit", f"val_acc: {TWO['cases']['binary']['history']['val_acc'][-1]:.4f}"
    yield "patients", "Test accuracy, by patient: {:.0%} to {:.0%}".format(*test["ci95"])
    for step in trust["ladder"]:
        counts = f"{step['normal called COVID-19']} {step['COVID-19 called so']}"
        yield "ladder", f"{step['blur']} {step['black']} {counts}"
    for share, scored in trust["blackout"].items():
        yield "blackout", f"{float(share):.0%} black: {scored['correct']} of {scored['n']}"
    for name, scored in trust["like_for_like"].items():
        cell = "no-image" if name.endswith(("file", "record", "site")) else "like-for-like"
        yield cell, f"{name}: {scored['correct']} of {scored['n']} = {scored['accuracy']:.0%}"
    for p_covid in trust["marks"].values():
        yield "marks", f"COVID-19: {p_covid:.3f}"
    yield "same-site", f"{trust['same_site']['share']:.0%} of {trust['same_site']['pairs']} pairs"
    for source in ("nih", "collection"):
        yield "conclusions", f"{trust[source]['predicted_covid']} of {trust[source]['n']}"


def shown_by_multi():
    trust = FOUR["trust"]
    for name, case in FOUR["cases"].items():
        which = " ".join([*name.split("_", 1), "article"][:2])
        yield "test-augmentations", f"{which} {case['test']['correct']} of {case['test']['n']}"
    for name, scored in trust["grouped_cv"].items():
        yield "cross-validated", f"{name} {scored['correct']} of {scored['n']}"
        yield "conclusions", f"{name}: {scored['correct']} of {scored['n']}"
    for name, found in trust["differences"].items():
        yield "differences", f"{name} {100 * found['difference']:+.1f}"
    for case, draw in trust["article_draw"].items():
        yield "draw-chance", f"{case} classes: {draw['share_of_draws']:.0%} of random draws"
    yield "blackout", f"{trust['blackout']['correct']} of {trust['blackout']['n']}"


SHOWN = [(BINARY, *shown) for shown in shown_by_binary()] + [(MULTI, *shown) for shown in shown_by_multi()]


@pytest.mark.parametrize("notebook, name, words", SHOWN)
def test_committed_outputs_are_the_results(notebook, name, words):
    text = printed(notebook, name)
    if not text:
        pytest.skip("the cell has been edited since, and has no outputs")
    assert words in text


def test_tables_are_computed():
    """`make sync` would change nothing."""
    for path in tables.READMES:
        text = path.read_text(encoding="utf-8")
        assert tables.with_tables(text) == text, path


def anchors(name):
    """The anchors of a README's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", TEXTS["readme"][name], re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXTS["readme"][name]):
        file, _, anchor = target.partition("#")
        path = ((ROOT / name).parent / file) if file else ROOT / name
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.resolve().relative_to(ROOT).as_posix()), target


@pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["binary", "multi"])
def test_a_notebook_alone_links_to_no_file(notebook):
    """In Colab, a notebook has no files beside it."""
    for text in sources(notebook, "markdown").values():
        assert not re.search(r"\]\((?!https?:)", text)
