"""Keep the copies in step: data/manifest.csv, the list of images in dataset.py, and the toolbox cells of each notebook.

python notebooks/sync.py            write the list into dataset.py; dataset.py and xray.py into both notebooks
python notebooks/sync.py --check    change nothing; exit with 1 if anything would change
"""

import csv
import json
import os
import re
import sys
import textwrap
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent
TITLES = {
    "dataset.py": "Toolbox, the data set: run this cell; you need not read it",
    "xray.py": "Toolbox, everything else: run this cell, too",
}


def as_item(row: dict[str, str]) -> tuple[str, str]:
    """Return an image's template and item, as dataset.parse_list reads them.

    person1942_bacteria_4865.jpeg of patient kermany-person1942 is 1942_4865 of (person*)_bacteria_*.jpeg;
    an image of the collection is name=number of *.
    """
    source, _, patient = row["patient"].partition("-")
    if source == "cohen":
        return "*", f"{row['filename']}={patient}"
    marked, number = row["filename"].replace(patient, f"({patient})", 1), r"(?<![A-Z])\d+"
    return re.sub(number, "*", marked), "_".join(re.findall(number, marked))


def as_list(manifest: Path) -> str:
    """Return the images of the manifest as the lines of LIST_OF_IMAGES, a group for each class and split."""
    groups: dict[str, list[str]] = {}
    with open(manifest, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            template, item = as_item(row)
            groups.setdefault(f"{row['split']} | {row['class']} | {template}:", []).append(item)
    lines = []
    for group, items in groups.items():
        wrapped = textwrap.wrap(" ".join(items), 118, break_long_words=False, break_on_hyphens=False)
        lines += [group, *wrapped]
    return "\n".join(lines)


def with_list(source: str, names: str) -> str:
    """Return the text of dataset.py with the list of images replaced."""
    block = f'# <list of images>\nLIST_OF_IMAGES = """\\\n{names}\n"""\n# </list of images>\n'
    return re.sub(r"# <list of images>\n.*?# </list of images>\n", lambda _: block, source, flags=re.DOTALL)


def with_toolbox(notebook: str, modules: dict[str, str]) -> str:
    """Return a notebook's text with the sources of the toolbox cells replaced; the rest stays as it is."""
    content = json.loads(notebook)
    for name, source in modules.items():
        magic = f"%%toolbox {name}\n"
        (cell,) = (c for c in content["cells"] if "".join(c["source"]).startswith(magic))
        cell["source"] = f"{magic}#@title {TITLES[name]}\n{source}".splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write what differs, or say so with --check."""
    modules = {name: (NOTEBOOKS / name).read_text(encoding="utf-8") for name in TITLES}
    modules["dataset.py"] = with_list(modules["dataset.py"], as_list(NOTEBOOKS.parent / "data" / "manifest.csv"))
    wanted = {NOTEBOOKS / name: source for name, source in modules.items()}
    for path in sorted(NOTEBOOKS.glob("Covid19_GradientCrescent_*.ipynb")):
        wanted[path] = with_toolbox(path.read_text(encoding="utf-8"), modules)
    stale = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv and stale:
        sys.exit(f"{', '.join(path.name for path in stale)}: out of step. Run `make sync`.")
    for path in stale:
        scratch = path.with_name(f".{os.getpid()}-{path.name}")
        scratch.write_text(wanted[path], encoding="utf-8", newline="\n")
        os.replace(scratch, path)
        print(f"{path.name}: brought up to date")


if __name__ == "__main__":
    main()
