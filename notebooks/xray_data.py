"""The images of the two lessons: which files they are, who is on them, and controls to compare them with.

An image is the article's if it has the article's name and the article's bytes: data/manifest.csv has the git blob of
each. A name alone decides nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
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

import matplotlib.font_manager
import numpy as np
import pandas as pd
import requests
from PIL import Image
from tqdm import tqdm


class SetupError(RuntimeError):
    """Something that you can fix. Jupyter shows the sentence alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in place of a traceback."""
        return [f"SetupError: {self}"]


ARTICLE_NAME = "Covid_Data_GradientCrescent"  # of its data set
RAW_URL = "https://raw.githubusercontent.com"
TIMEOUT = 60  # seconds that a server may be silent
MOST_FAILURES = 8  # after so many failed downloads of controls, the rest are not tried
FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff")  # that Keras reads
LEAST_CONTRAST = 64  # gray levels between the darkest and the brightest 1% of an image; 0 to 255 are possible
SPLITS = ("train", "test")
CJK_FONTS = {
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "WenQuanYi Zen Hei", "Droid Sans Fallback",
}  # fmt: skip
HOW_MANY = "Each class needs five or more images in train/, and one or more in test/."

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
HERE = Path(__file__).resolve().parent
LISTS = HERE / "manifest.csv", HERE.parent / "data" / "manifest.csv"
MANIFEST = pd.read_csv(next(filter(Path.exists, LISTS), LISTS[1]), dtype=str, keep_default_na=False)
ARTICLE = MANIFEST[MANIFEST["split"].isin(SPLITS)]
CONTROLS = {
    "nih": MANIFEST[MANIFEST["split"] == "no_finding"],
    "collection": MANIFEST[MANIFEST["split"] == "control"],
}
FOLDERS = {"nih": "nih_no_finding", "collection": "controls"}  # of the controls, on disk
CONTROL_COLUMNS = ["file", "filename", "group", "answer", "patient", "age", "sex", "view", "page", "site"]


def progress(steps: Iterable, what: str, total: int | None = None) -> Iterator:
    """Pass on `steps` while a bar in one line says how far they are; no bar if there are no steps, or in CI."""
    total = len(steps) if total is None else total
    hidden = not total or bool(os.environ.get("CI"))
    return iter(tqdm(steps, what, total, file=sys.stdout, ncols=80, mininterval=0.5, disable=hidden))


# ---------------------------------------------------------------------------------- files and their bytes


def read_bytes(path: Path) -> bytes:
    """Return a file's content; raises SetupError with the file and the reason, also for a pipe, which would wait."""
    if path.exists() and not path.is_file():
        raise SetupError(f"{path} is no file. Remove or rename it, and run again.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}. Replace or delete it, and run again.") from None


def blob_of(data: bytes) -> str:
    """Return the name that git gives to a content: SHA-1 of "blob", its length, a zero byte, its bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def read_image(path: Path) -> Image.Image:
    """Decode an image file with Pillow, as Keras does; raises SetupError with the file and what to do."""
    data, problem = read_bytes(path), "cannot be read as an image. Replace or delete it, and run again."
    if data[128:132] == b"DICM" or data[4:8] == b"ftyp":
        problem = "is a DICOM or HEIC file, which is not read here. Save it as PNG, and run again."
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image
    except Image.DecompressionBombError:
        raise SetupError(f"{path} has too many pixels. Make the image smaller, and run again.") from None
    except Exception:  # Pillow has many ways to say that it cannot
        raise SetupError(f"{path} {problem}") from None


def match_listed(path: Path, blob: str, pixels: str) -> str:
    """Return how a file agrees with the list: "bytes", or "pixels" (SHA-1 of its RGB pixels), or ""."""
    if blob_of(read_bytes(path)) == blob:
        return "bytes"
    with contextlib.suppress(SetupError):
        if pixels and hashlib.sha1(read_image(path).convert("RGB").tobytes()).hexdigest() == pixels:
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
        with contextlib.suppress(OSError):  # where the folder cannot be made
            scratch.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- folders of images


def list_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in `folder`, sorted; hidden ones are passed over."""
    if not folder.is_dir():
        raise SetupError(f"{folder} is no folder. It must hold a folder for each class.")
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def list_files(folder: Path, quiet: bool = False) -> list[str]:
    """Return the images of `folder`/train and `folder`/test as Keras finds them, relative to `folder`, in order.

    Prints how many other files there are, by their endings, unless it is to be quiet. Raises SetupError for what Keras
    would pass over without a word (linked folders) or take for an image (pipes, links to nothing, hidden files).
    """

    def refuse(error: OSError) -> None:
        raise SetupError(f"{error.filename} cannot be listed: {error.strerror}.")

    images = []
    others = [path for split in SPLITS for path in (folder / split).glob("*") if path.is_file()]  # in no class folder
    for place in (folder / split / name for split in SPLITS for name in list_folders(folder / split)):
        for root, folders, names in sorted(os.walk(place, onerror=refuse), key=lambda step: step[0]):
            for path in (Path(root, name) for name in sorted([*folders, *names])):
                is_image, problem = path.suffix.lower() in FORMATS, ""
                if path.is_dir() and path.is_symlink():
                    problem = "is a linked folder, which Keras passes over. Copy what it points to"
                elif is_image and not path.is_file():
                    problem = "is no file, but a folder, a pipe, or a link to nothing. Remove or rename it"
                elif is_image and "/." in path.relative_to(folder).as_posix():
                    problem = "is hidden, and Keras would read it. Delete it"
                if problem:
                    raise SetupError(f"{path} {problem}, and run again.")
                if path.is_file():
                    (images if is_image else others).append(path)
    others = [path for path in others if path.name[0] != "." and path.name.lower() not in ("desktop.ini", "thumbs.db")]
    if others and not quiet:
        endings = Counter(path.suffix.lower() or "no ending" for path in others).most_common()
        listed = ", ".join(f"{count} {ending}" for ending, count in endings)
        print(f"{len(others)} files are not read, such as {others[0]} ({listed}). Save images as PNG in class folders.")
    return [path.relative_to(folder).as_posix() for path in images]


def installed_cjk_fonts() -> list[str]:
    """Return the names of the fonts on this machine that have Chinese, Japanese, and Korean letters."""
    return sorted(CJK_FONTS.intersection(matplotlib.font_manager.get_font_names()))


def check_images(folder: Path) -> list[str]:
    """Return the names of the classes in `folder`, the folders of train/ and test/, after reading each image once.

    Raises SetupError, a line with the file and what to do, for the first thing that would go wrong later, or stay
    unnoticed: what list_files and read_image refuse; fewer than two classes, one without an image in a split, two with
    one label; an image of more than 8 bits, which Keras cuts off, or without contrast. Prints a line if figures cannot
    show the letters of a class.
    """
    files = list_files(folder)
    class_names = sorted({name for split in SPLITS for name in list_folders(folder / split)})
    if len(class_names) < 2:
        raise SetupError(f"{folder / 'train'} needs two or more class folders, and has {len(class_names)}.")
    for name, split in itertools.product(class_names, SPLITS):
        if not any(file.startswith(f"{split}/{name}/") for file in files):
            raise SetupError(f"The class {name} has no image in {folder / split / name}. {HOW_MANY}")
    for first, second in itertools.combinations(class_names, 2):
        if label_of(first).casefold() == label_of(second).casefold():
            raise SetupError(f"The classes {first} and {second} have one label, {label_of(first)}. Rename one.")

    def check(file: str) -> None:
        image = read_image(folder / file)
        small = np.asarray(image.convert("RGB").resize((150, 150), Image.Resampling.NEAREST))
        low, high = np.quantile(small, [0.01, 0.99])  # what 1% of the pixels show may be a marker
        if image.mode[0] in "IF" or high - low < LEAST_CONTRAST:
            problem = "has more than 8 bits" if image.mode[0] in "IF" else "is nearly black, or has hardly any contrast"
            raise SetupError(f"{folder / file} {problem}. Convert all images with data/own_images.py, or delete it.")

    with ThreadPoolExecutor() as pool:
        list(progress(pool.map(check, files), f"check {folder.name}", len(files)))
    wide = [name for name in class_names if any(unicodedata.east_asian_width(letter) == "W" for letter in name)]
    if wide and not installed_cjk_fonts():
        print(f"Figures show squares in place of {wide[0]}: no font has these letters. Install Noto Sans CJK.")
    return class_names


def identify_dataset(folder: Path, files: Sequence[str]) -> dict[str, str | int]:
    """Say which data set the images `files` (named relative to `folder`, as in list_images) are, by their bytes.

    Returns "dataset" (ARTICLE_NAME, "phantoms", or "own_" and the folder's name), the numbers of files
    "article" (the article's bytes), "same_pixels" (its pixels in other bytes), and "other", and a
    "sentence" about them. It is the article's only if no file of its two or four classes is another.
    """
    listed = ARTICLE.assign(name=ARTICLE["split"] + "/" + ARTICLE["class"] + "/" + ARTICLE["filename"])
    two = listed[listed["class"].isin(["covid", "normal"])]
    named_alike = set(files) in (set(listed["name"]), set(two["name"]))
    known = listed.set_index("name")[["git_blob", "pixels"]].T.to_dict("list")
    found = Counter(match_listed(folder / file, *known[file]) if file in known else "" for file in files)
    n, article, same, other = len(files), found["bytes"], found["pixels"], found[""]
    dataset = "own_" + re.sub(r"[^\w-]", "_", folder.resolve().name)
    if named_alike and not other:
        dataset = ARTICLE_NAME
        with_pixels = f", {'one' if same == 1 else same} with the same pixels" if same else ""
        sentence = f"{n} of {n} files are the article's own: {article} byte for byte{with_pixels}."
    elif (folder.resolve().parent / "PHANTOMS.txt").exists():
        dataset = "phantoms"
        sentence = f"These {n} images are drawn phantoms, not X-rays. What follows says nothing about X-rays."
    elif named_alike:
        sentence = (
            f"{n} files have the article's names, but {other} are other files. So these are not the article's images. "
            "Do not compare the numbers below with the article's."
        )
    else:
        sentence = f"These are {n} images of your own."
        if article:
            sentence += f" {article} of them are the article's, byte for byte; it has {len(listed)}, or {len(two)}."
    return {"dataset": dataset, "article": article, "same_pixels": same, "other": other, "sentence": sentence}


# ----------------------------------------------------------------------------------------------- controls


def reason_of(error: BaseException) -> str:
    """Return in a few words why a download or a file failed."""
    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT} seconds"
    if isinstance(error, requests.ConnectionError):
        return "it cannot be reached; behind a proxy, see HTTPS_PROXY and REQUESTS_CA_BUNDLE"
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200]


def find_controls(source: str, folder: Path, dataset: str, home: Path) -> pd.DataFrame:
    """Return X-rays of patients without COVID-19, a row each.

    source: "nih", adults without a finding, or "collection", other diseases in the COVID-19 images' own collection.
    folder: where the lesson's images lie; dataset: as identify_dataset gives it. Columns: file (its path), filename,
    group (of findings), answer (the class that is right, "" for none), patient, and from the record age, sex, view,
    page, and site (of the publication), "" where it has none.

    The article's data set has them in `home`, fetched from GitHub, each checked by its blob. Phantoms bring
    their own. The table is empty for your own images. Prints how many are missing.
    """
    table, pictures = CONTROLS[source].rename(columns={"class": "group"}), home / FOLDERS[source]
    if dataset == "phantoms":
        pictures = folder.resolve().parent / FOLDERS[source]
        listing = pictures / f"{FOLDERS[source]}.csv"
        table = pd.read_csv(listing, dtype=str, keep_default_na=False) if listing.exists() else table[:0]
    elif dataset == ARTICLE_NAME:
        table = table[fetch_controls(table, pictures)]
    else:
        table = table[:0]
    answers = table["group"].map(RIGHT_ANSWERS).fillna("")
    if "xray" in table:
        answers = answers.where(table["xray"] != "normal", "")  # filed as pneumonia, recorded as a normal X-ray
    table = table.assign(answer=answers, file=[pictures / name for name in table["filename"]])
    return table.reindex(columns=CONTROL_COLUMNS, fill_value="").reset_index(drop=True)


def fetch_controls(table: pd.DataFrame, pictures: Path) -> np.ndarray:
    """Fetch the images of `table` into the folder `pictures`, four at a time; returns bool (n,): which are there.

    Files that are already right stay. A new one is written only if its blob is right. Prints why some are missing.
    """
    failures = []

    def fetch(row: tuple) -> bool:
        path = pictures / row.filename
        if path.is_file() and match_listed(path, row.git_blob, row.pixels):
            return True
        url = f"{RAW_URL}/{row.repository}/{row.commit}/{quote(row.path)}"
        try:
            if len(failures) < MOST_FAILURES:
                answer = requests.get(url, timeout=TIMEOUT)
                answer.raise_for_status()
                if blob_of(answer.content) != row.git_blob:
                    raise ValueError("what came is another file")
                atomic_write(path, lambda scratch: scratch.write_bytes(answer.content))
                return True
        except (requests.RequestException, ValueError, SetupError) as error:
            failures.append(f"{url} ({reason_of(error)})")
        return False

    is_new = not all((pictures / name).exists() for name in table["filename"])
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(fetch, table.itertuples(index=False))
        there = np.array(list(progress(found, pictures.name, len(table) * is_new)), bool)
    if failures:
        print(
            f"{np.sum(~there)} of {len(there)} {pictures.name} are missing: {failures[0]}. "
            "The lesson goes on without them. Check the network, and run again."
        )
    return there


# ------------------------------------------------------------------------------------------------- tables


def list_images(folder: Path, train_batches: Sequence, valid_batches: Sequence, test_batches: Sequence) -> pd.DataFrame:
    """List the images of three generators (flow_from_directory), a row each, and say what is odd about them.

    folder: where train/ and test/ lie. Columns: file (relative to `folder`), class, label (0, 1, ...), split ("train",
    "validation", "test"), patient. The images of train/ come first, class by class, and of each class those to
    validate on, which is Keras's order. Raises SetupError where a class has no image in a split.
    """
    rows = []
    for split, batches in (("validation", valid_batches), ("train", train_batches), ("test", test_batches)):
        class_names = list(batches.class_indices)
        for missing in set(range(len(class_names))).difference(batches.classes):
            raise SetupError(f"The class {class_names[missing]} has no image for the split {split}. {HOW_MANY}")
        place = "test" if split == "test" else "train"
        for name, label in zip(batches.filenames, batches.classes):
            rows.append((f"{place}/{Path(name).as_posix()}", class_names[label], label, split))
    rows.sort(key=lambda row: (row[3] == "test", row[2]))
    table = pd.DataFrame(rows, columns=["file", "class", "label", "split"])
    table["patient"] = patients_of(folder, table["file"])
    report_equal(folder, table)
    return table


def report_equal(folder: Path, table: pd.DataFrame) -> None:
    """Print how many files have the same bytes as one in another split or class, with an example."""
    blobs = [blob_of(read_bytes(folder / file)) for file in table["file"]]
    mixed = [rows for _, rows in table.groupby(blobs) if len(rows[["split", "class"]].drop_duplicates()) > 1]
    if mixed:
        first, second = mixed[0].drop_duplicates(["split", "class"])["file"][:2]
        print(
            f"{sum(map(len, mixed))} files are equal, byte for byte, to one in another split or class, such as "
            f"{first} and {second}. Keep one of each, or results mean little."
        )


def patients_of(folder: Path, files: Sequence[str]) -> list[str]:
    """Return the patient of each file, named relative to `folder`.

    The article's images are known by name. For others, patients.csv (file, patient) in `folder` says; a file that
    neither names is a patient of its own. A row may name its file as train/a/1.png, by its whole path, or as 1.png
    where only one file has that name. Prints how many rows match no file and how many files have no row. Raises
    SetupError for a list that cannot be read, and for a file with two patients.
    """
    known = dict(zip(ARTICLE["filename"], ARTICLE["patient"]))
    patients = {file: known.get(posixpath.basename(file), file) for file in files}
    listing = folder / "patients.csv"
    if not listing.exists():
        return list(patients.values())
    try:
        text = io.BytesIO(read_bytes(listing))
        table = pd.read_csv(text, dtype=str, encoding="utf-8-sig", keep_default_na=False).rename(columns=str.strip)
        rows = table[["file", "patient"]].fillna("").to_numpy().tolist()
    except (KeyError, ValueError):
        raise SetupError(f"{listing} needs the columns file and patient, in UTF-8, separated by commas.") from None

    names = Counter(posixpath.basename(file) for file in files)
    places = {normalized(posixpath.basename(file)): file for file in files if names[posixpath.basename(file)] == 1}
    places |= {normalized(file): file for file in files}
    patient_by_row, unmatched_rows = {}, []
    for name, patient in rows:
        key = normalized(name).removeprefix(f"{normalized(str(folder.absolute()))}/")
        if key not in places and not (folder / key).is_file():  # it may be of a class that is not asked for
            unmatched_rows.append(name)
        elif key in places and patient.strip():
            if patient_by_row.setdefault(places[key], patient.strip()) != patient.strip():
                raise SetupError(f"{listing}: {places[key]} has two patients. Correct one of the rows.")
    if unmatched_rows:
        example = f"such as {unmatched_rows[0]!r}"
        print(f"{len(unmatched_rows)} of {len(rows)} rows of patients.csv match no image, or several, {example}.")
    if missing := [file for file in files if file not in patient_by_row]:
        print(f"{len(missing)} of {len(files)} images have no patient in patients.csv, such as {missing[0]}. ", end="")
        print("Each counts as a patient of its own.")
    return list((patients | patient_by_row).values())


def normalized(name: str) -> str:
    """Return a file's name in one form: slashes, no ./ and no blanks around it, Unicode composed, case as it is."""
    return posixpath.normpath(unicodedata.normalize("NFC", name.strip()).replace("\\", "/"))
