"""Ask every source of images whether it still answers with the right bytes: `python tests/tools/links.py`.

Downloads the whole data set twice, from Google Drive and from GitHub, and one image of each group of controls. Prints a
line for each source, and exits with 1 if one of them fails.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "data")]

import prepare  # noqa: E402
import xray_data  # noqa: E402


def check_archive(url: str, home: Path) -> str:
    """Download the zip at `url` into `home` and unpack it; returns what it holds, or raises SetupError."""
    prepare.fetch_zip(url, home)
    sentences = []
    for tree in prepare.FOLDERS:
        prepare.unpack(home / prepare.ZIP_NAME, home, tree)
        files = xray_data.check_files(home / tree, xray_data.list_files(home / tree))
        if files["dataset"] != xray_data.ARTICLE_NAME:
            raise xray_data.SetupError(f"{tree}: {files['sentence']}")
        sentences.append(f"{tree}: {files['sentence']}")
    return " ".join(sentences)


def check_control(kind: str, home: Path) -> str:
    """Download one image of a group of controls into `home`; returns its name, or raises SetupError."""
    rows = xray_data.CONTROLS[kind].head(1)
    if not xray_data.fetch_controls(rows, home / kind).all():  # it has printed the reason
        raise xray_data.SetupError(f"{rows['filename'].item()} cannot be had, or is another file.")
    return f"{rows['filename'].item()} is right, byte for byte."


def answers(name: str, check: Callable[[str, Path], str], place: str) -> bool:
    """Print what `check` finds at `place`; returns whether all is well."""
    with tempfile.TemporaryDirectory() as home:
        try:
            print(f"{name}: {check(place, Path(home))}", flush=True)
            return True
        except xray_data.SetupError as error:
            print(f"{name}: PROBLEM: {error}", flush=True)
            return False


if __name__ == "__main__":
    SOURCES = [
        ("Google Drive", check_archive, prepare.DRIVE_URL),
        ("GitHub's archive", check_archive, prepare.GITHUB_URL),
        *((kind, check_control, kind) for kind in xray_data.CONTROLS),
    ]
    sys.exit(not all([answers(*source) for source in SOURCES]))
