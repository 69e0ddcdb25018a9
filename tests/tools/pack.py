"""Pack the toolbox into the cell of each notebook whose id is "toolbox", so that a notebook runs alone.

    python tests/tools/pack.py            write what differs
    python tests/tools/pack.py --check    change nothing; exit with 1 if anything differs

The cell unpacks xray.py, xray_data.py, and manifest.csv into a folder that is named by their content, so that an older
copy is never taken. In a clone it takes the modules beside the notebooks. It needs nothing but Python.
"""

import base64
import hashlib
import io
import json
import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/Covid19_GradientCrescent_*.ipynb"))
PACKED = ("notebooks/xray.py", "notebooks/xray_data.py", "data/manifest.csv")
TOOLBOX = """\
# @title The toolbox, packed: run this cell, you need not read it
import sys
from base64 import b85decode
from io import BytesIO

TOOLBOX = HOME / "notebooks"  # in a clone
if not (HOME / "data" / "manifest.csv").exists():
    TOOLBOX = OUTPUT / "toolbox-{digest}"
    ZipFile(BytesIO(b85decode("{text}"))).extractall(TOOLBOX)  # fmt: skip
sys.path.insert(0, str(TOOLBOX.resolve()))"""


def read_packed() -> dict[str, bytes]:
    """Return the toolbox's files, {name: content}, with the same line ends on every system."""
    return {Path(name).name: (ROOT / name).read_text(encoding="utf-8").encode() for name in PACKED}


def make_cell(files: dict[str, bytes]) -> str:
    """Return the source of a toolbox cell that unpacks `files`."""
    buffer, digest = io.BytesIO(), hashlib.sha256()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)  # always of 1980
            digest.update(b"%s %d\0%s" % (name.encode(), len(content), content))
    return TOOLBOX.format(digest=digest.hexdigest()[:12], text=base64.b85encode(buffer.getvalue()).decode())


def split_cell(source: str) -> tuple[str, dict[str, bytes]]:
    """Return the source of a toolbox cell without what is packed, and the files packed in it."""
    packed = re.search(r'b85decode\("(.*)"\)', source)
    if packed is None:
        return source, {}
    with zipfile.ZipFile(io.BytesIO(base64.b85decode(packed[1]))) as zipped:
        return source.replace(packed[1], ""), {name: zipped.read(name) for name in zipped.namelist()}


def with_toolbox(text: str) -> str:
    """Return a notebook's text with the toolbox cell as it should be; unchanged if it unpacks to the same already.

    (Another version of zlib may pack the same files into other bytes.)
    """
    notebook = json.loads(text)
    (cell,) = (cell for cell in notebook["cells"] if cell["id"] == "toolbox")
    wanted = make_cell(read_packed())
    if split_cell("".join(cell["source"])) == split_cell(wanted):
        return text
    cell["source"] = wanted.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def bring_up_to_date(wanted: dict[Path, str]) -> None:
    """Write the texts that differ from their files; with --check on the command line, exit with 1 instead."""
    stale = {path: text for path, text in wanted.items() if path.read_text(encoding="utf-8") != text}
    if "--check" in sys.argv and stale:
        sys.exit(f"{', '.join(str(path.relative_to(ROOT)) for path in stale)}: out of step. Run `make sync`.")
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"{path.relative_to(ROOT)}: brought up to date")


if __name__ == "__main__":
    bring_up_to_date({path: with_toolbox(path.read_text(encoding="utf-8")) for path in NOTEBOOKS})
