"""The images of the two lessons: which files they are, who is on them, and controls to compare them with.

An image is the article's if it has the article's name and the article's bytes: data/manifest.csv has the git blob of
each. A name alone decides nothing.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
import posixpath
import re
import sys
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pandas as pd
import requests
from tqdm import tqdm


class SetupError(RuntimeError):
    """Something that you can fix. Jupyter shows the sentence alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in place of a traceback."""
        return [f"SetupError: {self}"]


HERE = Path(__file__).resolve().parent
ARTICLE_NAME = "Covid_Data_GradientCrescent"  # of its data set
RAW_URL = "https://raw.githubusercontent.com"
TIMEOUT = 60  # seconds that a server may be silent
MOST_FAILURES = 8  # after so many failed downloads of controls, the rest are not tried
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")  # what the lessons read

LABELS = {
    "covid": "COVID-19",
    "normal": "normal",
    "pneumonia_bac": "bacterial pneumonia",
    "pneumonia_vir": "viral pneumonia",
}
RIGHT_ANSWERS = {
    "no finding": "normal",
    "bacterial pneumonia": "pneumonia_bac",
    "viral pneumonia": "pneumonia_vir",
}


def label_of(class_name: str) -> str:
    """Return what figures and tables call a class; a class of your own keeps its folder's name."""
    return LABELS.get(class_name, class_name)


# The list of images, a row each, all of it text: split, class, filename, patient, ... Of controls, `class` is the group
# of their findings. In a clone it is in data/. Where a notebook runs alone, its toolbox cell puts it beside this file.
LISTS = HERE / "manifest.csv", HERE.parent / "data" / "manifest.csv"
MANIFEST = pd.read_csv(next(filter(Path.exists, LISTS), LISTS[1]), dtype=str, keep_default_na=False)
ARTICLE = MANIFEST[MANIFEST["split"].isin(["train", "test"])]
CONTROLS = {
    "controls": MANIFEST[MANIFEST["split"] == "control"],
    "nih_no_finding": MANIFEST[MANIFEST["split"] == "no_finding"],
}


def progress(steps: Iterable, what: str, total: int | None = None) -> Iterator:
    """Pass on `steps` while a bar in one line says how far they are; no bar if there are no steps, or in CI."""
    total = len(steps) if total is None else total
    hidden = not total or bool(os.environ.get("CI"))
    return iter(tqdm(steps, what, total, file=sys.stdout, ncols=80, mininterval=0.5, disable=hidden))


# ---------------------------------------------------------------------------------- files and their bytes


def read_bytes(path: Path) -> bytes:
    """Return a file's content; raises SetupError with the file and the reason."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}.") from None


def git_blob(path: Path) -> str:
    """Return the name that git gives to a file's content: SHA-1 of "blob", its length, a zero byte, its bytes."""
    data = read_bytes(path)
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def read_image(path: Path) -> np.ndarray:
    """Read an image file as the lessons do, as RGB, uint8 (height, width, 3).

    Raises SetupError for what is no image, and for one that is nearly black, such as a scan of 12 bits in a file of 16.
    """
    image = cv2.imdecode(np.frombuffer(read_bytes(path) or b"0", np.uint8), cv2.IMREAD_COLOR)
    if image is None or is_nearly_black(image):
        raise SetupError(f"{path} is no image, or nearly black. Replace or delete it, then run again.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def is_nearly_black(image: np.ndarray) -> bool:
    """Tell whether 99% of an 8-bit image is below 64: the rest may be a marker."""
    small = cv2.resize(image, (150, 150), interpolation=cv2.INTER_NEAREST_EXACT)
    return bool(np.quantile(small, 0.99) < 64)


def is_listed(path: Path, blob: str, pixels: str) -> str:
    """Return how a file agrees with the list: "bytes", or "pixels" (SHA-1 of its RGB pixels), or ""."""
    if git_blob(path) == blob:
        return "bytes"
    with contextlib.suppress(SetupError):
        if pixels and hashlib.sha1(read_image(path).tobytes()).hexdigest() == pixels:
            return "pixels"
    return ""


def atomic_write(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `target` and move it there in one step: whole or not at all.

    Raises SetupError with the file and the reason.
    """
    scratch = target.with_name(f".{os.getpid()}-{threading.get_ident()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        os.replace(scratch, target)
    except OSError as error:
        raise SetupError(f"{target} cannot be written: {error.strerror}. Fix that, and run again.") from error
    finally:
        for leftover in target.parent.glob(f"{glob.escape(scratch.name)}*"):
            leftover.unlink(missing_ok=True)


def check_files(folder: Path, files: Sequence[str]) -> dict[str, str | int]:
    """Say which data set the images `files` (named relative to `folder`, as in list_images) are, by their bytes.

    Returns "dataset" (ARTICLE_NAME, "phantoms", or "own_" and the folder's name), the numbers of files
    "article" (the article's bytes), "same_pixels" (its pixels in other bytes), and "other", and a
    "sentence" about them. It is the article's only if no file of its two or four classes is another.
    """
    listed = ARTICLE.assign(name=ARTICLE["split"] + "/" + ARTICLE["class"] + "/" + ARTICLE["filename"])
    two = listed[listed["class"].isin(["covid", "normal"])]
    named_alike = set(files) in (set(listed["name"]), set(two["name"]))
    known = listed.set_index("name")[["git_blob", "pixels"]].T.to_dict("list")
    found = {file: is_listed(folder / file, *known[file]) if file in known else "" for file in files}
    counts = Counter(found.values())
    dataset = "own_" + re.sub(r"[^\w-]", "_", folder.resolve().name)
    n, article, same, other = len(files), counts["bytes"], counts["pixels"], counts[""]
    if named_alike and not other:
        dataset = ARTICLE_NAME
        sentence = f"{article} of {n} files are the article's own, byte for byte."
        if same:
            alike = ", ".join(file for file in files if found[file] == "pixels")
            sentence += f" {'One has' if same == 1 else f'{same} have'} the same pixels in other bytes: {alike}."
    elif (folder.resolve().parent / "PHANTOMS.txt").exists():
        dataset = "phantoms"
        sentence = f"These {n} images are drawn phantoms, not X-rays. What follows says nothing about X-rays."
    elif named_alike:
        example = next(file for file in files if not found[file])
        sentence = (
            f"{n} files with the article's names, {other} of them other files, such as {example}. "
            "So these are not the article's images. Do not compare the numbers below with the article's."
        )
    else:
        sentence = f"These are {n} images of your own."
        if article:
            sentence += f" {article} of them are the article's, byte for byte; it has {len(listed)}, or {len(two)}."
    return {"dataset": dataset, "article": article, "same_pixels": same, "other": other, "sentence": sentence}


# ----------------------------------------------------------------------------------------------- controls


def reason_of(error: BaseException) -> str:
    """Return in a few words why a download or a file failed: in our own words for common errors."""
    while error.__cause__ and not isinstance(error, requests.RequestException):  # gdown wraps what went wrong
        error = error.__cause__
    if isinstance(error, requests.HTTPError):
        status = error.response.status_code
        return f"HTTP {status}" + (", too many requests: wait some minutes" if status == 429 else "")
    if "timed out" in str(error):
        return f"no answer within {TIMEOUT} seconds"
    for kind, words in (
        (requests.exceptions.SSLError, "its certificate is not trusted here; behind a proxy, set REQUESTS_CA_BUNDLE"),
        (requests.exceptions.ProxyError, "the proxy that this machine is set to use does not let it through"),
        (requests.exceptions.ChunkedEncodingError, "the connection was closed too early"),
        (requests.ConnectionError, "it cannot be reached"),
    ):
        if isinstance(error, kind):
            return words
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def find_controls(kind: str, folder: Path, dataset: str, home: Path) -> pd.DataFrame:
    """Return X-rays of patients without COVID-19, a row each.

    kind: "controls", other diseases in the COVID-19 images' own collection, or "nih_no_finding", adults
    without a finding, from the NIH. folder: where the lesson's images lie; dataset: as check_files gives it. Columns:
    file (its path), filename, group (of findings), answer (the class that is right, "" for none),
    patient, and what else the list knows (age, sex, view).

    The article's data set has them in `home`/`kind`, fetched from GitHub, each checked by its blob. Phantoms bring
    their own. The table is empty for your own images. Prints how many are missing.
    """
    table, pictures = CONTROLS[kind].rename(columns={"class": "group"}), home / kind
    if dataset == "phantoms":
        pictures = folder.resolve().parent / kind
        listing = pictures / f"{kind}.csv"
        table = pd.read_csv(listing, dtype=str, keep_default_na=False) if listing.exists() else table[:0]
    elif dataset == ARTICLE_NAME:
        table = table[fetch_controls(table, pictures)]
    else:
        table = table[:0]
    table = table.reset_index(drop=True)
    answers = table["group"].map(RIGHT_ANSWERS).fillna("")
    if "xray" in table:
        answers = answers.where(table["xray"] != "normal", "")  # filed as pneumonia, recorded as a normal X-ray
    return table.assign(answer=answers, file=[pictures / name for name in table["filename"]])


def fetch_controls(table: pd.DataFrame, pictures: Path) -> np.ndarray:
    """Fetch the images of `table` into the folder `pictures`, four at a time; returns bool (n,): which are there.

    Files that are already right stay. A new one is written only if its blob is right. Prints why some are missing.
    """
    failures = []

    def fetch(row: tuple) -> bool:
        url = f"{RAW_URL}/{row.repository}/{row.commit}/{quote(row.path)}"

        def write(scratch: Path) -> None:
            answer = requests.get(url, timeout=TIMEOUT)
            answer.raise_for_status()
            scratch.write_bytes(answer.content)
            if git_blob(scratch) != row.git_blob:
                raise OSError("what came is another file")

        try:
            if len(failures) < MOST_FAILURES:
                atomic_write(pictures / row.filename, write)
                return True
        except Exception as error:
            failures.append(f"{url} ({reason_of(error)})")
        return False

    def is_right(row: tuple) -> bool:
        path = pictures / row.filename
        return path.is_file() and bool(is_listed(path, row.git_blob, row.pixels))

    rows = list(table.itertuples(index=False))
    there = np.array([is_right(row) for row in rows], bool)
    missing = [row for row, is_there in zip(rows, there) if not is_there]
    with ThreadPoolExecutor(4) as pool:
        there[~there] = list(progress(pool.map(fetch, missing), pictures.name, len(missing)))
    if failures:
        print(
            f"{np.sum(~there)} of {len(rows)} {pictures.name} are missing: {failures[0]}. "
            "The lesson goes on without them. Check the network, and run again."
        )
    return there


# ------------------------------------------------------------------------------------------------- tables


def list_files(folder: Path) -> list[str]:
    """Return the images of `folder`/train and `folder`/test that the lessons read, relative to it, in order."""
    paths = sorted(path for split in ("train", "test") for path in (folder / split).rglob("*"))
    names = [path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    return [name for name in names if "/." not in name]  # no hidden ones


def list_images(folder: Path, train_batches: Sequence, valid_batches: Sequence, test_batches: Sequence) -> pd.DataFrame:
    """List the images of three generators (flow_from_directory), a row each, and say what is odd about them.

    folder: where the originals lie. Columns: file (the original, relative to `folder`), small (its shrunken copy, with
    ".png" after the name), class, label (0, 1, ...), split ("train", "validation", "test"), patient. The images of
    train/ come first, class by class, and of each class those to validate on, which is Keras's order. Raises
    SetupError where a class has no image.
    """

    def rows_of(split: str, batches: Sequence) -> list[tuple]:
        class_names = list(batches.class_indices)
        if set(batches.classes) != set(range(len(class_names))):
            raise SetupError(
                f"{folder}: a class has no image for the split {split}. Put five or more images of each class into "
                "train/, and one into test/."
            )
        place = "test" if split == "test" else "train"
        names = [f"{place}/{Path(name).as_posix()}" for name in batches.filenames]
        return [(name, class_names[label], label, split) for name, label in zip(names, batches.classes)]

    known = rows_of("validation", valid_batches) + rows_of("train", train_batches)
    rows = sorted(known, key=lambda row: row[2]) + rows_of("test", test_batches)
    table = pd.DataFrame(rows, columns=["small", "class", "label", "split"])
    table.insert(0, "file", table["small"].str.removesuffix(".png"))
    table["patient"] = patients_of(folder, table["file"])
    report_equal(folder, table)
    return table


def report_equal(folder: Path, table: pd.DataFrame) -> None:
    """Print how many files have the same bytes as one in another split or class, with an example."""
    sizes = pd.Series([(folder / file).stat().st_size for file in table["file"]])
    alike = table[sizes.duplicated(keep=False).to_numpy()]
    blobs = [git_blob(folder / file) for file in alike["file"]]
    mixed = [rows for _, rows in alike.groupby(blobs) if len(rows[["split", "class"]].drop_duplicates()) > 1]
    if mixed:
        first, second = mixed[0].drop_duplicates(["split", "class"])["file"][:2]
        print(
            f"{sum(map(len, mixed))} files are equal, byte for byte, to one in another split or class, such as "
            f"{first} and {second}. Keep one of each, or results mean little."
        )


def patients_of(folder: Path, files: Sequence[str]) -> list[str]:
    """Return the patient of each file, named relative to `folder`.

    The article's images are known by name. For others, patients.csv (file, patient) in `folder` says;
    a file that neither names counts as a patient of its own. A row may name its file as train/a/1.png,
    by its whole path, or as 1.png where only one file has that name. Prints how many rows match no file
    and how many files have no row. Raises SetupError for a file with two patients.
    """
    known = dict(zip(ARTICLE["filename"], ARTICLE["patient"]))
    who = [known.get(posixpath.basename(file), file) for file in files]
    listing = folder / "patients.csv"
    if not listing.exists():
        return who
    try:
        table = pd.read_csv(io.BytesIO(read_bytes(listing)), dtype=str, encoding="utf-8-sig", keep_default_na=False)
        table = table.rename(columns=str.strip)
        rows = [(file, str(patient).strip()) for file, patient in zip(table["file"], table["patient"])]
    except (KeyError, ValueError, AttributeError):
        raise SetupError(f"{listing} needs the columns file and patient, in UTF-8, separated by commas.") from None

    starts = [f"{normalized(str(place))}/" for place in (folder.resolve(), folder.absolute(), folder)]
    places: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        places.setdefault(normalized(file), []).append(index)
        places.setdefault(normalized(posixpath.basename(file)), []).append(index)
    told, strangers = {}, []
    for file, patient in rows:
        key = normalized(file)
        for start in starts:
            key = key.removeprefix(start)
        found = places.get(key, [])
        if len(found) > 1:
            raise SetupError(f"{listing}: {file} is the name of {len(found)} files. Name each as train/CLASS/FILE.")
        if not found and not (folder / key).is_file():  # it may be of a class that is not asked for
            strangers.append(file)
        elif found and patient and told.setdefault(found[0], patient) != patient:
            both = f"{told[found[0]]!r} and {patient!r}"
            raise SetupError(f"{listing}: {files[found[0]]} has two patients, {both}. Correct one of the rows.")
    if strangers:
        print(f"{len(strangers)} of {len(rows)} rows of patients.csv match no image, such as {strangers[0]!r}.")
    unlisted = [file for index, file in enumerate(files) if index not in told]
    if unlisted:
        print(
            f"{len(unlisted)} of {len(files)} images have no patient in patients.csv, such as {unlisted[0]}. "
            "Each counts as a patient of its own."
        )
    return [told.get(index, patient) for index, patient in enumerate(who)]


def normalized(name: str) -> str:
    """Return a file's name in one form: slashes, no ./ and no blanks around it, Unicode composed, case as it is."""
    return posixpath.normpath(unicodedata.normalize("NFC", name.strip()).replace("\\", "/"))
