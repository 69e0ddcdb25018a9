"""Write what is derived: the toolbox cell of each notebook, and the tables of the READMEs.

    python notebooks/sync.py            write what differs
    python notebooks/sync.py --check    change nothing; exit with 1 if anything would change

The toolbox cell holds xray.py, xray_data.py, and the list of images, so that a notebook runs alone. A
README's table stands between two comments, <!-- table NAME --> and <!-- end -->; tables.py computes it.
"""

import base64
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import tables

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
PACKED = [NOTEBOOKS / "xray.py", NOTEBOOKS / "xray_data.py", ROOT / "data" / "manifest.csv"]
READMES = [ROOT / "README.md", NOTEBOOKS / "README.md", ROOT / "data" / "README.md", ROOT / "tests" / "README.md"]
TOOLBOX = """\
# @title The toolbox, packed: run this cell, you need not read it
from base64 import b85decode
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

if not (Path("xray.py").exists() or Path("notebooks/xray.py").exists()):
    ZipFile(BytesIO(b85decode("{}"))).extractall()  # fmt: skip
"""


def pack() -> str:
    """Return the toolbox's files as a zip in base85, the same text for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        for path in PACKED:
            info = zipfile.ZipInfo(path.name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(info, path.read_text(encoding="utf-8"))
    return base64.b85encode(buffer.getvalue()).decode()


def unpack(source: str) -> dict[str, bytes]:
    """Return the files in the source of a toolbox cell, {} where it holds none."""
    found = re.search(r'b85decode\("(.*)"\)', source)
    if not found:
        return {}
    with zipfile.ZipFile(io.BytesIO(base64.b85decode(found[1]))) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


def with_toolbox(text: str) -> str:
    """Return a notebook's text with the toolbox cell replaced, unless it holds the same files already.

    (The same files may be packed into other bytes by another version of zlib.)
    """
    notebook = json.loads(text)
    (cell,) = (cell for cell in notebook["cells"] if cell["id"] == "toolbox")
    if unpack("".join(cell["source"])) == {path.name: path.read_bytes() for path in PACKED}:
        return text
    cell["source"] = TOOLBOX.format(pack()).rstrip("\n").splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def with_tables(text: str, make: dict[str, Callable[[], str]] = tables.TABLES) -> str:
    """Return a README's text with the tables between its comments computed anew."""
    pattern = r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{make[found[2]]()}\n{found[3]}", text, flags=re.DOTALL)


def main() -> None:
    """Write what differs, or say so with --check."""
    wanted = {path: with_tables(path.read_text(encoding="utf-8")) for path in READMES}
    for path in sorted(NOTEBOOKS.glob("Covid19_GradientCrescent_*.ipynb")):
        wanted[path] = with_toolbox(path.read_text(encoding="utf-8"))
    stale = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv and stale:
        sys.exit(f"{', '.join(str(path.relative_to(ROOT)) for path in stale)}: out of step. Run `make sync`.")
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8", newline="\n")
        print(f"{path.relative_to(ROOT)}: brought up to date")


if __name__ == "__main__":
    main()
