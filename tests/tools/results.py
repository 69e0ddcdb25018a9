"""Copy what a run on the article's images left in output/ to notebooks/: results, figures, and what the cells printed.

    python tests/tools/results.py

It refuses results of other images, other weights, or other code. A picture that shows an X-ray is never copied: cells
that draw one have the tag "shows-xrays", and a line stands in its place. A cell keeps its outputs as long as its code
is the code that made them: `outputs-of` in its metadata is a hash of that code, and a test holds it. If you edit a
cell, clear its outputs, or run `make run results`.
"""

import base64
import hashlib
import json
import os
import re
import sys
from pathlib import Path

import pack

LESSONS = {"binary": "Covid19_GradientCrescent_Binary.ipynb", "multi": "Covid19_GradientCrescent_Multi.ipynb"}
SHOWN = {  # figures of the READMEs, and the cell that draws each; none of them shows an X-ray
    "silly.png": ("binary", "silly-figure"),
    "like_for_like.png": ("binary", "like-for-like-figure"),
    "swap.png": ("binary", "swap-plot"),
    "augmentations.png": ("multi", "cross-validated"),
}
INSTEAD = "X-rays appear here when you run this cell."
TIMES = r" - \d+s - \d+m?s/step"  # Keras says how long an epoch took


def code_hash(source: str) -> str:
    """Return the first digits of the SHA-256 of a cell's code."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def clean_text(text: str) -> str:
    """Return what a cell printed without bars of progress and without times that differ from run to run."""
    lines = [line for line in text.splitlines(keepends=True) if "\r" not in line and "%|" not in line]
    return re.sub(TIMES, "", "".join(lines))


def clean_outputs(cell: dict, number: int) -> list[dict]:
    """Return the outputs of an executed cell, the lesson's `number`th, as they may be committed."""
    kept, printed, hidden = [], None, False
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            text = clean_text("".join(output["text"]))
            if output["name"] == "stdout" and text.strip():
                if printed is None:
                    printed = {"name": "stdout", "output_type": "stream", "text": []}
                    kept.append(printed)
                printed["text"] += text.splitlines(keepends=True)
        elif "image/png" in output.get("data", {}) and "shows-xrays" in cell["metadata"].get("tags", []):
            hidden = True
        else:
            printed = None
            count = {"execution_count": number} if output["output_type"] == "execute_result" else {}
            kept.append({**output, **count, "metadata": {}})
    if hidden:
        data = {"text/markdown": [f"*{INSTEAD}*"], "text/plain": [INSTEAD]}
        kept.append({"data": data, "metadata": {}, "output_type": "display_data"})
    return kept


def with_outputs(committed: dict, executed: dict) -> dict:
    """Return a notebook with the outputs of its executed copy; exits if their code differs."""
    made = {cell["id"]: cell for cell in executed["cells"]}
    for number, cell in enumerate((cell for cell in committed["cells"] if cell["cell_type"] == "code"), 1):
        source = "".join(cell["source"])
        if cell["id"] not in made or "".join(made[cell["id"]]["source"]) != source:
            sys.exit(f"Problem: cell {cell['id']} has changed since that run. Run `make sync run`, then this again.")
        cell["outputs"] = clean_outputs(made[cell["id"]], number)
        cell["execution_count"] = number
        cell["metadata"]["outputs-of"] = code_hash(source)
    return committed


def main() -> None:
    """Copy all, or say in one line why not and exit with 1."""
    folder = Path(os.environ.get("COVID_XRAY_OUTPUT") or pack.ROOT / "output")
    texts, pictures = {}, {}
    for name, lesson in LESSONS.items():
        texts[f"results/{name}.json"] = (folder / f"{name}.json").read_text(encoding="utf-8")
        found = json.loads(texts[f"results/{name}.json"])
        if (found["dataset"], found["weights"]) != ("Covid_Data_GradientCrescent", "imagenet"):
            sys.exit(f"Problem: {name}'s results are of {found['dataset']} and {found['weights']} weights.")
        committed = json.loads((pack.ROOT / "notebooks" / lesson).read_text(encoding="utf-8"))
        executed = json.loads((folder / lesson).read_text(encoding="utf-8"))
        notebook = with_outputs(committed, executed)
        texts[lesson] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                pictures[name, cell["id"]] = output.get("data", {}).get("image/png")
    for name, text in texts.items():
        (pack.ROOT / "notebooks" / name).write_text(text, encoding="utf-8", newline="\n")
    for name, place in SHOWN.items():
        (pack.ROOT / "notebooks" / "figures" / name).write_bytes(base64.b64decode("".join(pictures[place])))
    print(f"Copied {len(texts)} files and {len(SHOWN)} figures. Now run `make sync` for the READMEs' tables.")


if __name__ == "__main__":
    main()
