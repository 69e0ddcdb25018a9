"""Copy what a run on the article's images left in output/ to notebooks/: results, and the figures of the READMEs.

    python tests/tools/results.py

It refuses results of other images or other weights, and results that other code made. Each result file is stamped with
`code`, a hash of that code, so that a test can tell when a lesson has changed since.
"""

import ast
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pack

RESULTS = pack.ROOT / "notebooks" / "results"
FIGURES = pack.ROOT / "notebooks" / "figures"
SHOWN = (  # figures that may be committed: none of them shows an X-ray
    "binary_controls.png",
    "binary_curves.png",
    "binary_like_for_like.png",
    "binary_roc.png",
    "multi_augmentations.png",
    "multi_confusions_cv.png",
    "multi_curves_augmentations.png",
    "multi_curves_four.png",
    "multi_curves_three.png",
)
LESSONS = {"binary": "Covid19_GradientCrescent_Binary.ipynb", "multi": "Covid19_GradientCrescent_Multi.ipynb"}
ADDED_SINCE = {"kind", "type_comment", "type_params"}  # fields of Python's syntax tree that say nothing here


def structure(node: object) -> object:
    """Return the syntax tree below `node` as nested lists, the same on Python 3.10 to 3.13, without docstrings."""
    if isinstance(node, list):
        return [structure(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
        node.body = node.body[1:]
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in ADDED_SINCE]
    return [type(node).__name__, *([name, structure(value)] for name, value in fields if value not in (None, []))]


def code_hash(notebook: Path) -> str:
    """Return the SHA-256 of a lesson's code: its code cells and the toolbox that is packed in it.

    Comments, layout, docstrings, and text cells do not count. (A test holds the packed toolbox to the modules.)
    """
    sources = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["id"] == "toolbox":
            files = pack.split_cell(source)[1]
            sources += [files[name].decode() for name in sorted(files) if name.endswith(".py")]
        elif cell["cell_type"] == "code":
            sources.append(source)
    trees = [structure(ast.parse(source)) for source in sources]
    return hashlib.sha256(json.dumps(trees).encode()).hexdigest()


def why_not(name: str, results: dict, executed: Path) -> str:
    """Return why a lesson's results are not to be committed, or ""."""
    if results["dataset"] != "Covid_Data_GradientCrescent":  # so the toolbox calls them if all are the article's
        return f"they are of {results['dataset']}, not of the article's images"
    if results.get("weights") != "imagenet":
        return "they are not of VGG16's ImageNet weights"
    if code_hash(executed) != code_hash(pack.ROOT / "notebooks" / LESSONS[name]):
        return "the lesson or the toolbox has changed since, or its settings were others"
    return ""


def main() -> None:
    """Copy all, or say in one line why not and exit with 1."""
    output = Path(os.environ.get("COVID_XRAY_OUTPUT") or pack.ROOT / "output")
    texts = {}
    for name, lesson in LESSONS.items():
        results = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
        if reason := why_not(name, results, output / lesson):
            sys.exit(f"Problem: {name}'s results stay as they are: {reason}. Run `make sync run`, then this again.")
        results["code"] = code_hash(output / lesson)
        texts[RESULTS / f"{name}.json"] = json.dumps(results, indent=1) + "\n"
    for name in SHOWN:
        shutil.copyfile(output / name, FIGURES / name)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    print(f"Copied {len(texts)} result files and {len(SHOWN)} figures. Now run `make sync` for the READMEs' tables.")


if __name__ == "__main__":
    main()
