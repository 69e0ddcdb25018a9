"""What can be checked of how the notebooks are written, and that no X-ray is in the repository."""

import ast
import json
import re
import subprocess

import nbformat
import pytest
from conftest import BINARY, MULTI, ROOT

NOTEBOOKS = [BINARY, MULTI]
SECTIONS = [
    "Setup",
    "Data",
    "Pipeline",
    "Model",
    "Training",
    "Evaluation",
    "Predictions",
    "How far to trust this",
    "The article against this run",
    "References",
]


def cells(notebook, kind="code"):
    return ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def tracked():
    """The files of the repository, tracked or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem[-6:])
def test_format(notebook):
    content = json.loads(notebook.read_text())
    nbformat.validate(content)
    assert set(content["metadata"]) == {"accelerator", "colab", "kernelspec", "language_info"}
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    for cell in content["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem[-6:])
def test_sizes(notebook):
    lengths = [len([line for line in source.splitlines() if line.strip()]) for source in cells(notebook)]
    assert max(lengths) <= 30 and sorted(lengths)[len(lengths) // 2] <= 10
    assert max(len(line) for source in cells(notebook) for line in source.splitlines()) <= 120
    kinds = "".join(cell["cell_type"][0] for cell in json.loads(notebook.read_text())["cells"])
    assert "ccc" not in kinds  # a function and its use may stand together; before every pair there is a sentence


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem[-6:])
def test_sections_in_order(notebook):
    text = cells(notebook, "markdown")
    assert text[0].startswith("# ") and "not a medical device" in text[0] and "GradientCrescent" in text[0]
    headings = [line for source in text for line in source.splitlines() if line.startswith("## ")]
    places = [
        next(place for place, heading in enumerate(headings) if heading.startswith(f"## {section}"))
        for section in SECTIONS
    ]
    assert places == sorted(places)
    assert sum(line.startswith("# ") for source in text for line in source.splitlines()) == 1


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem[-6:])
def test_functions_have_docstrings_and_settings_are_read_in_one_place(notebook):
    for source in cells(notebook):
        for node in ast.parse(source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                assert ast.get_docstring(node), node.name
        if "os.environ" in source:
            assert source.startswith(("# settings", "# places", "# shared: imports", "# shared: problem")), source


def test_shared_cells_are_identical():
    """A cell marked `# shared: name` is the same in both notebooks, to the byte, and in the same order."""
    shared = [[source for source in cells(notebook) if source.startswith("# shared: ")] for notebook in NOTEBOOKS]
    by_marker = [{source.splitlines()[0]: source for source in sources} for sources in shared]
    assert [len(sources) for sources in shared] == [len(markers) for markers in by_marker]
    assert by_marker[0] == by_marker[1]


def test_equal_cells_are_marked():
    """No function stands in both notebooks without the mark."""

    def functions(notebook):
        unmarked = [source for source in cells(notebook) if not source.startswith("# shared: ")]
        return {name for source in unmarked for name in re.findall(r"^def (\w+)", source, re.MULTILINE)}

    assert not functions(BINARY) & functions(MULTI)


def test_no_picture_of_an_xray():
    """Pictures are committed below notebooks/figures alone, and none of them is one that shows images."""
    for name in tracked():
        assert not re.search(r"\.(jpe?g|zip|h5|keras|npz?|onnx)$", name, re.IGNORECASE), name
        if name.endswith(".png"):
            assert name.startswith("notebooks/figures/"), name
            assert re.search(
                r"(curves(_\w+)?|confusion(_\w+)?|controls|roc|recipes|what_it_is_worth|phantoms)\.png$", name
            ), name


def test_results_in_the_readme_are_those_of_the_committed_run():
    """README's table of results says what notebooks/figures/*.json, the files that a real run wrote, say."""
    readme = (ROOT / "README.md").read_text()
    binary, multi = (
        json.loads((ROOT / "notebooks" / "figures" / f"{name}.json").read_text()) for name in ("binary", "multi")
    )
    assert binary["dataset"] == multi["dataset"] == "Covid_Data_GradientCrescent"
    for case in (*binary["cases"].values(), *multi["cases"].values()):
        assert f"{case['test']['correct']} of {case['test']['n']}" in readme
    controls, same_source = binary["trust"]["controls"], binary["trust"]["same_source_cv"]
    assert f"{controls['called_covid']} of {controls['n']}" in readme
    assert f"{same_source['mean']:.2f}" in readme and f"{same_source['auc']:.2f}" in readme
    for cv in multi["trust"]["grouped_cv"].values():
        assert f"{cv['correct']} = {cv['mean']:.2f}" in readme and f"{cv['mean_on_views']:.2f}" in readme


def test_readme_names_every_target_and_setting():
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"^([a-z-]+):.*  ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [target for target in targets if f"make {target}" not in readme] == []
    settings = set(re.findall(r'(?:environ\.get|whole_number)\("(\w+)"', "".join(cells(BINARY))))
    assert {name for name in settings if name not in readme} == set()
