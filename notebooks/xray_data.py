"""The images of the two lessons: where they come from, how they are read, and who is on them.

First the list of images and its sources, then what becomes of them: one array and one table.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import itertools
import os
import re
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import cv2
import gdown
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
ZIP_NAME = "Covid_Data_GradientCrescent.zip"
DRIVE_URL = "https://drive.google.com/uc?id=1coM7x3378f-Ou2l6Pg2wldaOI7Dntu1a"
GITHUB = "https://raw.githubusercontent.com"
COLLECTION_URL = f"{GITHUB}/ieee8023/covid-chestxray-dataset/master"
NIH_COMMIT = "ee3e2cffc0824711bed675275506b26f19be7198"
NIH_URL = f"{GITHUB}/muhammedtalo/COVID-19/{NIH_COMMIT}"
KAGGLE = "paultimothymooney/chest-xray-pneumonia"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
TIMEOUT = 60  # seconds that a server may be silent
LARGEST = {".zip": 1_000_000_000, "image": 50_000_000}  # bytes of a download
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def read_manifest() -> pd.DataFrame:
    """Return the project's list of images, a row each: split, class, filename, patient, ...

    It is data/manifest.csv in a clone. Where a notebook runs alone, the toolbox cell has put a copy
    beside this module. Of controls, `class` is the group of their findings.
    """
    places = HERE / "manifest.csv", HERE.parent / "data" / "manifest.csv"
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise SetupError("manifest.csv is missing. Run the notebook's toolbox cell again.")
    return pd.read_csv(path, dtype=str, keep_default_na=False)


MANIFEST = read_manifest()
ARTICLE = MANIFEST[MANIFEST["split"].isin(["train", "test"])]
CONTROLS = {
    "controls": MANIFEST[MANIFEST["split"] == "control"],
    "nih_no_finding": MANIFEST[MANIFEST["split"] == "no_finding"],
}


def data_home() -> Path:
    """Return where data lie: ../data in a clone, whose notebooks run in their own folder, else data."""
    return Path("../data") if Path("../data/manifest.csv").exists() else Path("data")


def read_image(path: Path) -> np.ndarray:
    """Read an image file with OpenCV as RGB, uint8 (height, width, 3), 0 to 255.

    Gray, palette, RGBA, and CMYK files become RGB; of 16-bit ones the highest eight bits in use are
    kept. Raises SetupError where the file holds no image.
    """
    data = np.fromfile(path, np.uint8)
    with contextlib.suppress(cv2.error):
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
        if image is not None and image.dtype in (np.uint8, np.uint16):
            if image.dtype == np.uint16:
                image = (image >> max(0, int(image.max()).bit_length() - 8)).astype(np.uint8)
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    raise SetupError(f"{path} cannot be read as an image. Replace or delete it, then run again.")


def progress(steps: Iterable, what: str, total: int | None = None) -> Iterator:
    """Pass on `steps` while a bar in one line says how far they are; no bar for none, and none in CI."""
    total = len(steps) if total is None else total
    hidden = not total or bool(os.environ.get("CI"))
    return iter(tqdm(steps, what, total, file=sys.stdout, ncols=80, mininterval=0.5, disable=hidden))


def list_images(folder: Path) -> list[Path]:
    """Return the image files in `folder`, sorted by name; desktop.ini and hidden files are passed over."""
    names = folder.iterdir() if folder.is_dir() else []
    images = [p for p in names if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    return sorted(images, key=lambda path: path.name)  # Windows would ignore case, Keras does not


def list_classes(folder: Path, split: str) -> list[str]:
    """Return the class names, which are the folders in `folder`/`split`; hidden ones are passed over."""
    return sorted(p.name for p in (folder / split).iterdir() if p.is_dir() and p.name[0] != ".")


def holds_images(folder: Path) -> bool:
    """Tell whether `folder` has the two splits, train/ and test/."""
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def identify(folder: Path, files: Sequence[str]) -> str:
    """Name a data set: the article's if the names match, phantoms by the note beside them, or its folder."""
    for tree in (ARTICLE, ARTICLE[ARTICLE["class"].isin(["covid", "normal"])]):
        names = tree["split"] + "/" + tree["class"] + "/" + tree["filename"]
        if set(files) == set(names):
            return "Covid_Data_GradientCrescent"
    return "phantoms" if (folder.parent / "PHANTOMS.txt").exists() else folder.resolve().name


def is_safe(name: str) -> bool:
    """Tell whether a name from outside may become a file's name on any system."""
    plain = 0 < len(name) <= 200 and name.isprintable() and not re.search(r'[\\/:*?"<>|]', name)
    return plain and name[-1] not in ". " and name != ".." and not RESERVED.fullmatch(name)


def atomic_write(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `target` and move it there in one step: whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{os.getpid()}-{threading.get_ident()}-{target.name}")
    try:
        write(scratch)
        os.replace(scratch, target)
    finally:
        for leftover in target.parent.glob(f"{glob.escape(scratch.name)}*"):
            leftover.unlink(missing_ok=True)


def limited(parts: Iterable[bytes], largest: int, request: requests.PreparedRequest) -> Iterator[bytes]:
    """Pass on the parts of the answer to `request`; raises OSError for more than `largest` bytes."""
    total = 0
    try:
        for part in parts:
            if (total := total + len(part)) > largest:
                raise OSError(f"more than {largest / 1e6:.0f} MB")
            yield part
    except requests.RequestException as error:
        error.request = error.request or request  # a connection that breaks does not say whose it was
        raise


def reason_of(error: Exception) -> str:
    """Return in a few words why a download failed: the server is named, its library is not quoted."""
    cause = error
    while cause and not isinstance(cause, requests.RequestException):
        cause = cause.__cause__ or cause.__context__
    request = getattr(cause, "request", None)
    server = urlsplit(request.url).netloc if request is not None else "the server"
    if isinstance(cause, requests.Timeout) or "Read timed out" in str(cause):
        return f"{server} did not answer within {TIMEOUT} seconds"
    if isinstance(cause, requests.exceptions.ChunkedEncodingError):
        return f"{server} closed the connection too early"
    if isinstance(cause, requests.ConnectionError):
        return f"{server} cannot be reached"
    return " ".join(str(error).split())[:200] or type(error).__name__


def download(url: str, target: Path, largest: int) -> None:
    """Download `url` to `target` as it comes. Raises OSError for errors and more than `largest` bytes."""
    with requests.get(url, timeout=TIMEOUT, stream=True) as answer, open(target, "wb") as file:
        answer.raise_for_status()
        for part in limited(answer.iter_content(1 << 20), largest, answer.request):
            file.write(part)


def fetch_zip(url: str, folder: Path) -> None:
    """Fetch the article's zip into `folder`: from Google Drive with gdown, any web address, or a path.

    Only a zip is kept, never a web page in its place. Raises SetupError with the reason and what to do.
    """
    request = requests.Session.request

    def impatient(*arguments: object, **options: object) -> requests.Response:  # gdown 5 would wait forever
        answer = request(*arguments, **{**options, "timeout": TIMEOUT})
        parts = answer.iter_content
        answer.iter_content = lambda *sizes, **named: limited(parts(*sizes, **named), LARGEST[".zip"], answer.request)
        return answer

    def write(scratch: Path) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            shutil.copyfile(url2pathname(parts.path) if parts.scheme == "file" else url, scratch)
        elif "drive.google.com" in url:
            with mock.patch.object(requests.Session, "request", impatient):
                gdown.download(url, str(scratch), use_cookies=False)
        else:
            download(url, scratch, LARGEST[".zip"])
        if not scratch.exists() or not zipfile.is_zipfile(scratch):
            raise OSError("the download is not a zip; it may be a page about a dead link or an exceeded quota")

    try:
        atomic_write(folder / ZIP_NAME, write)
    except Exception as error:  # gdown 5 and 6 raise different ones
        raise SetupError(
            f"{url} cannot be downloaded ({reason_of(error)}). Open it in a browser and put the file into "
            f"{folder.resolve()} as {ZIP_NAME}, or set COVID_XRAY_URL to a copy of it."
        ) from None


def unzip_images(archive: Path, folder: Path, trees: Sequence[str] = ("all", "two")) -> None:
    """Unpack the folders `trees` of `archive` into `folder`, each whole or not at all; those there stay."""
    try:
        with (
            zipfile.ZipFile(archive) as zipped,
            tempfile.TemporaryDirectory(dir=folder, prefix=".unzip-") as scratch,
        ):
            for name in zipped.namelist():
                if not all(map(is_safe, name.removesuffix("/").split("/"))):
                    raise SetupError(
                        f"{archive} holds {name!r}, which is not a safe file name. Do not use this archive."
                    )
            if sum(member.file_size for member in zipped.infolist()) > 4 * LARGEST[".zip"]:
                raise SetupError(f"{archive} unpacks to more than 4 GB: it is not the article's data set.")
            zipped.extractall(scratch)
            for tree in trees:
                if not (Path(scratch) / tree).is_dir():
                    raise SetupError(f"{archive} has no folder {tree}/: it is not the article's data set.")
                try:
                    os.replace(Path(scratch) / tree, folder / tree)
                except OSError:
                    if not (folder / tree).is_dir():  # otherwise it was there, or another run was quicker
                        raise
    except SetupError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise SetupError(
            f"{archive} cannot be unpacked into {folder.resolve()}: {reason}. Fix that, and run again."
        ) from None
    except Exception as error:  # zipfile has many ways to say that a file is damaged
        raise SetupError(f"{archive} is damaged ({error}). Delete it and run again.") from None


def fetch_from_github(name: str, patient: str, target: Path) -> None:
    """Fetch one image of the COVID-19 collection, or of the NIH ("nih-...") from its copy there.

    Only what decodes is kept. Raises OSError, SetupError.
    """
    if patient.startswith("nih-"):
        source = os.environ.get("COVID_XRAY_NIH_URL") or NIH_URL
        url = f"{source}/{quote(f'X-Ray Image DataSet/No_findings/{name}')}"
    else:
        source = os.environ.get("COVID_CHESTXRAY_URL") or COLLECTION_URL
        url = f"{source}/images/{quote(name)}"

    def write(scratch: Path) -> None:
        download(url, scratch, LARGEST["image"])
        read_image(scratch)

    atomic_write(target, write)


def fetch_kermany(name: str, target: Path) -> None:
    """Fetch one image of the children from Kaggle: its train, test, and val folders are tried in turn."""
    try:
        kagglehub = importlib.import_module("kagglehub")
    except ImportError:
        raise SetupError("The children's X-rays come from Kaggle: `pip install kagglehub` and run again.") from None
    kind, errors = "PNEUMONIA" if name.startswith("person") else "NORMAL", []
    for split in ("train", "test", "val"):
        try:
            path = kagglehub.dataset_download(KAGGLE, path=f"chest_xray/{split}/{kind}/{name}")
            read_image(Path(path))
            return atomic_write(target, lambda scratch, path=path: shutil.copyfile(path, scratch))
        except Exception as error:  # kagglehub has its own for each of its sources
            errors.append(error)
    raise next((e for e in errors if getattr(getattr(e, "response", None), "status_code", 0) != 404), errors[0])


def fetch_images(table: pd.DataFrame, folder: Path, what: str) -> list[str]:
    """Fetch the images of `table` (filename, patient) that `folder` lacks, four at a time.

    Each is decoded before it is kept, so a second run goes on where the first one stopped. Returns the
    names that their source does not have. Raises SetupError where it cannot be reached, or nothing can
    be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [not (folder / name).exists() for name in table["filename"]]
    rows = list(table.loc[missing, ["filename", "patient"]].itertuples(index=False))

    def fetch(row: tuple[str, str]) -> str | None:
        name, patient = row
        try:
            if patient.startswith("kermany"):
                fetch_kermany(name, folder / name)
            else:
                fetch_from_github(name, patient, folder / name)
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status == 404 or "cannot be read as an image" in str(error):
                return name
            raise
        return None

    with ThreadPoolExecutor(4) as pool:
        try:
            return [name for name in progress(pool.map(fetch, rows), what, len(rows)) if name]
        except SetupError:
            raise
        except Exception as error:
            pool.shutdown(cancel_futures=True)
            raise SetupError(
                f"{what}: {reason_of(error)}. Images so far are kept in {folder}; run again to continue."
            ) from None


def rebuild(home: Path, keep: bool = False) -> None:
    """Build `home`/all and `home`/two from their public sources, as the list of images says.

    Trees that are there are moved aside first, or with `keep` they stay. Images that a source no longer
    has are named and left out; SetupError if they are more than one in ten.
    """
    print("The images come from their public sources: COVID-19 from GitHub, the children from Kaggle.")
    pool = home / "public"
    gone = fetch_images(ARTICLE, pool, "public sources")
    if len(gone) > len(ARTICLE) / 10:
        raise SetupError(f"{len(gone)} of {len(ARTICLE)} images are gone, such as {gone[0]}. Put the zip into {home}.")
    if gone:
        print(f"{len(gone)} images are no longer available and are left out: {', '.join(gone)}")
    with tempfile.TemporaryDirectory(dir=home, prefix=".rebuild-") as scratch:
        rows = ARTICLE.loc[~ARTICLE["filename"].isin(gone), ["split", "class", "filename"]]
        for split, name, file in rows.values:
            for tree in ("all", "two") if name in ("covid", "normal") else ("all",):
                target = Path(scratch) / tree / split / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pool / file, target)
        for tree in ("all", "two"):
            there = (home / tree).exists()  # asked first: another run may be about to put it there
            if keep and holds_images(home / tree):
                continue
            if there:
                aside = next(p for k in itertools.count(1) if not (p := home / f"{tree}.before-{k}").exists())
                os.replace(home / tree, aside)
                print(f"{home / tree} was there; it is now {aside}.")
            try:
                os.replace(Path(scratch) / tree, home / tree)
            except OSError:
                if not (keep and holds_images(home / tree)):  # otherwise another run was quicker
                    raise
    shutil.rmtree(pool, ignore_errors=True)


def find_images(tree: str, url: str = DRIVE_URL, home: Path | None = None, drawn: bool = True) -> Path:
    """Return the folder whose train/ and test/ a notebook reads; fetch the images if need be.

    Looks at COVID_XRAY_DATA (which holds `tree`/train or train/), at `home`/`tree`, its zip, and its
    phantoms (unless `drawn` is False), then downloads `url` (COVID_XRAY_URL overrides it), then goes to
    the public sources.
    """
    home, url = home or data_home(), os.environ.get("COVID_XRAY_URL") or url
    if setting := os.environ.get("COVID_XRAY_DATA"):
        for folder in (Path(setting) / tree, Path(setting)):
            if holds_images(folder):
                return folder
        raise SetupError(f"COVID_XRAY_DATA is {setting!r}, which holds neither {tree}/train nor train/, beside test/.")
    if not holds_images(home / tree):
        if not (home / ZIP_NAME).exists():
            if drawn and holds_images(home / "phantoms" / tree):
                return home / "phantoms" / tree
            try:
                fetch_zip(url, home)
            except SetupError as first:
                print(first)
                try:
                    rebuild(home, keep=True)
                except (SetupError, OSError) as second:
                    if not holds_images(home / tree):  # otherwise another run was quicker
                        raise SetupError(f"{first} The public sources fail, too: {second}") from None
                return home / tree
        unzip_images(home / ZIP_NAME, home)
    return home / tree


def find_controls(folder: Path, kind: str = "controls", class_names: Sequence[str] = ("covid",)) -> pd.DataFrame:
    """Return the X-rays of patients without COVID-19 below `folder`/`kind`, a row each.

    `kind` is "controls", other diseases in the COVID-19 images' own collection, or "nih_no_finding",
    X-rays of the NIH without a finding. Columns: file, filename, group (of findings), patient. Missing
    ones are unzipped from `folder`/`kind`.zip or fetched. The table is empty, with a printed message,
    where none can be had; it is empty for classes that are not the article's. A `kind`.csv beside the
    images replaces the project's own list.
    """
    pictures = folder / kind
    table = CONTROLS[kind].rename(columns={"class": "group"})
    is_drawn = (folder / "PHANTOMS.txt").exists() and not pictures.exists()  # by an older version
    if is_drawn or "covid" not in class_names or not set(class_names) <= set(LABELS):
        return table[:0].assign(file=[])
    try:
        if (pictures / f"{kind}.csv").exists():
            table = table[:0]  # the project's own list does not hold here, even if this one cannot be read
            own = pd.read_csv(pictures / f"{kind}.csv", dtype=str, keep_default_na=False)
            if not {"filename", "group", "patient"} <= set(own):
                raise SetupError(f"{pictures / kind}.csv needs the columns filename, group, and patient.")
            table = own
        else:
            if not pictures.exists() and (folder / f"{kind}.zip").exists():
                unzip_images(folder / f"{kind}.zip", folder, [kind])
            if gone := fetch_images(table, pictures, kind):
                print(f"{len(gone)} of {len(table)} {kind} are not available.")
    except (SetupError, OSError, ValueError) as error:
        print(f"Not all {kind} are available. {error}")
    there = [is_safe(name) and (pictures / name).is_file() for name in table["filename"]]
    table = table[np.array(there, bool)].reset_index(drop=True)
    return table.assign(file=[pictures / name for name in table["filename"]])


# ------------------------------------------------------------------------------- images and tables

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


def read_images(paths: Sequence[Path], size: int) -> np.ndarray:
    """Decode image files once: uint8 (n, size, size, 3), RGB, 0 to 255.

    They are resized as in the article: each pixel becomes its nearest neighbor.
    """
    nearest = cv2.INTER_NEAREST_EXACT
    images = [cv2.resize(read_image(path), (size, size), interpolation=nearest) for path in paths]
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)


def thumbnail(path: Path, longest: int = 260) -> np.ndarray:
    """Read an image and shrink it, its proportions kept, to at most `longest` pixels a side."""
    image = read_image(path)
    scale = min(1, longest / max(image.shape[:2]))
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def patients_of(folder: Path, files: Sequence[str]) -> list[str]:
    """Return the patient of each file, named relative to `folder`.

    The article's images are known by name. For others, patients.csv (file, patient) in `folder` says;
    a file that neither names counts as a patient of its own.
    """
    known = dict(zip(ARTICLE["filename"], ARTICLE["patient"]))
    listing = folder / "patients.csv"
    if listing.exists():
        try:
            table = pd.read_csv(listing, dtype=str, encoding="utf-8", keep_default_na=False)
            own = {file.replace("\\", "/"): who for file, who in zip(table["file"], table["patient"]) if who}
            known |= own
            if missing := [file for file in own if "/" in file and not (folder / file).exists()]:
                print(f"{len(missing)} files of {listing} are not here, such as {missing[0]}.")
        except (KeyError, ValueError) as error:
            raise SetupError(f"{listing} needs the columns file and patient ({error}).") from None
    return [str(known.get(file, known.get(file.split("/")[-1], file))) for file in files]


def load_images(
    folder: Path, size: int = 150, validation_split: float = 0.2, class_names: Sequence[str] | None = None
) -> tuple[np.ndarray, pd.DataFrame]:
    """Decode every image of `folder`/train and `folder`/test once.

    Returns the images, uint8 (n, size, size, 3), RGB, 0 to 255, and a table with a row for each:
    file (relative to `folder`), class, label (0, 1, ... in the order of `class_names`, by default the
    sorted folders), split ("train", "validation", "test"), patient. As in Keras, the first
    `validation_split` of each class by file name validate. Raises SetupError where a class has no image.
    """
    names = list(class_names or sorted({*list_classes(folder, "train"), *list_classes(folder, "test")}))
    if len(names) < 2:
        raise SetupError(f"{folder / 'train'} needs two or more class folders, and has {len(names)}.")
    rows = []
    for split, (label, name) in itertools.product(("train", "test"), enumerate(names)):
        paths = list_images(folder / split / name)
        if not paths:
            raise SetupError(f"{folder / split / name} holds no image. Every class needs some in train/ and in test/.")
        held_out = int(validation_split * len(paths)) if split == "train" else 0
        for index, path in enumerate(paths):
            part = "validation" if index < held_out else split
            rows.append((f"{split}/{name}/{path.name}", name, label, part))
    table = pd.DataFrame(rows, columns=["file", "class", "label", "split"])
    if "validation" not in set(table["split"]):
        raise SetupError(f"{folder} has no image to validate on. Put five or more images of a class into train/.")
    table["patient"] = patients_of(folder, table["file"])
    return read_images([folder / file for file in table["file"]], size), table


def count_images(table: pd.DataFrame) -> pd.DataFrame:
    """Count the images of each class and split and, in parentheses, the patients they show."""
    counts = table.groupby(["class", "split"], sort=False)["patient"].agg(["size", "nunique"])
    text = counts["size"].astype(str) + " (" + counts["nunique"].astype(str) + ")"
    text = text.unstack(fill_value="0 (0)")[["train", "validation", "test"]]
    text = text.rename(index=label_of, columns=lambda split: f"{split}: images (patients)")
    return text.rename_axis(index=None, columns=None)


def cases(table: pd.DataFrame, dataset: str) -> dict[str, list[str]]:
    """Return the classes of each case: the article's three and four, or all folders of other data."""
    names = list(dict.fromkeys(table["class"]))
    return {"three": names[:3], "four": names} if names == list(LABELS) else {dataset.replace(".", "_"): names}
