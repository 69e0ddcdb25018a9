"""Run cells of the lessons by their ids: what they define in the open is tested and measured as it stands there."""

import ast
import json
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "notebooks" / "Covid19_GradientCrescent_Binary.ipynb"
MULTI = ROOT / "notebooks" / "Covid19_GradientCrescent_Multi.ipynb"


def sources(notebook, kind):
    """Return the source of each cell of one kind ("code", "markdown") by its id, in their order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == kind}


def cell(notebook, name):
    """Return the source of the cell whose id is `name`, of code or of text."""
    return (sources(notebook, "code") | sources(notebook, "markdown"))[name]


def exercise_code(notebook, number):
    """Return the Python code of an exercise, by its number; "" if it has none."""
    text = cell(notebook, "exercises").split(f"\n{number}. ")[1].partition("<details>")[0]
    found = re.search(r" *```python\n(.*?)```", text, re.DOTALL)
    return textwrap.dedent(found[1]) if found else ""


def run_code(code, variables, name="code"):
    """Run code on `variables`, which it changes, without magic commands such as %matplotlib.

    Returns the value of its last line, which Jupyter shows, or None.
    """
    tree = ast.parse(re.sub(r"^%.*", "", code, flags=re.MULTILINE))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), variables)
    return eval(compile(ast.Expression(last.value), name, "eval"), variables) if last else None


def run_cell(notebook, name, variables):
    """Run one cell on `variables`, as run_code does."""
    return run_code(cell(notebook, name), variables, f"{notebook.stem}, cell {name}")


def run_lesson(notebook, settings, last=None, before=lambda name, variables: None, run=run_cell):
    """Run a lesson from its top to the cell `last`, or to its end; return all variables.

    settings: what replaces the lesson's own, or what its imports gave. before: called before each cell.
    """
    variables = {}
    for name in sources(notebook, "code"):
        before(name, variables)
        if name != "toolbox":
            run(notebook, name, variables)
        if name == "settings":
            variables.update(settings)
        if name == last:
            break
    return variables
