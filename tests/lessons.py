"""Run single cells of the lessons: what they define in the open is tested and measured as it stands there."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "notebooks" / "Covid19_GradientCrescent_Binary.ipynb"
MULTI = ROOT / "notebooks" / "Covid19_GradientCrescent_Multi.ipynb"


def cell(notebook, name):
    """Return the source of the cell whose id is `name`."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if cell["id"] == name)
    return source


def run_cells(notebook, *names, **given):
    """Run the cells `names` in this order, with the variables `given`; return all variables."""
    variables = dict(given)
    for name in names:
        exec(compile(cell(notebook, name), f"{notebook.stem}, cell {name}", "exec"), variables)
    return variables
