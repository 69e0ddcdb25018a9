"""The images of the two lessons: where they come from, which files they are, how they are read, who is on them.

An image is the article's if its bytes are: data/manifest.csv has the git blob of each. Names of files
and folders decide nothing.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import itertools
import os
import posixpath
import re
import sys
import tempfile
import threading
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import cv2
import gdown
import numpy as np
import pandas as pd
import PIL.Image
import requests
from tqdm import tqdm


class SetupError(RuntimeError):
    """Something that you can fix. Jupyter shows the sentence alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in place of a traceback."""
        return [f"SetupError: {self}"]


HERE = Path(__file__).resolve().parent
ARTICLE_NAME = "Covid_Data_GradientCrescent"  # of its data set
ZIP_NAME = f"{ARTICLE_NAME}.zip"
DRIVE_URL = "https://drive.google.com/uc?id=1coM7x3378f-Ou2l6Pg2wldaOI7Dntu1a"
GITHUB_COMMIT = "14ddbe22787f6bcf890ceb916574178fd8b9b885"
GITHUB_URL = f"https://github.com/mdshopon/COVID19_Classification/archive/{GITHUB_COMMIT}.zip"
RAW_URL = "https://raw.githubusercontent.com"
FOLDERS = {"two": ("two", "data_two_class"), "all": ("all", "data_four_class")}  # in the article's zip, on GitHub
TIMEOUT = 60  # seconds that a server may be silent
MOST_FAILURES = 8  # after so many failed downloads of controls, no other is tried

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
NO_IMAGES = {"desktop.ini", "thumbs.db"}  # as operating systems leave them behind
SAVE_AS = "Save it as an 8-bit or 16-bit PNG, gray or RGB."

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


def read_manifest() -> pd.DataFrame:
    """Return the project's list of images, a row each, all of it text: split, class, filename, patient, ...

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


def progress(steps: Iterable, what: str, total: int | None = None) -> Iterator:
    """Pass on `steps` while a bar in one line says how far they are; no bar for none, and none in CI."""
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


def is_listed(path: Path, blob: str, pixels: str) -> str:
    """Return how a file agrees with the list: "bytes", or "pixels" (SHA-1 of its RGB pixels), or ""."""
    if git_blob(path) == blob:
        return "bytes"
    with contextlib.suppress(SetupError):
        if pixels and hashlib.sha1(read_image(path).tobytes()).hexdigest() == pixels:
            return "pixels"
    return ""


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


def check_files(folder: Path, files: Sequence[str]) -> dict[str, str | int]:
    """Say which data set the images `files` (named relative to `folder`, as in list_table) are, by their bytes.

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
            "So these are not the article's images, and the numbers below are not to be compared with its numbers."
        )
    else:
        sentence = f"These are {n} images of your own."
        if article:
            sentence += f" {article} of them are the article's, byte for byte; it has {len(listed)}, or {len(two)}."
    return {"dataset": dataset, "article": article, "same_pixels": same, "other": other, "sentence": sentence}


# ------------------------------------------------------------------------------------------------ sources


def reason_of(error: BaseException) -> str:
    """Return in a few words why a download or a file failed; libraries are not quoted where it can be said."""
    cause = error
    while cause.__cause__ and not isinstance(cause, requests.RequestException):  # gdown wraps what went wrong
        cause = cause.__cause__
    if isinstance(cause, requests.Timeout) or "timed out" in str(cause):
        return f"no answer within {TIMEOUT} seconds"
    for kind, words in (
        (requests.exceptions.SSLError, "its certificate is not trusted here; behind a proxy, set REQUESTS_CA_BUNDLE"),
        (requests.exceptions.ProxyError, "the proxy that this machine is set to use does not let it through"),
        (requests.exceptions.ChunkedEncodingError, "the connection was closed too early"),
        (requests.ConnectionError, "it cannot be reached"),
    ):
        if isinstance(cause, kind):
            return words
    if isinstance(cause, requests.HTTPError):
        status = cause.response.status_code
        return f"HTTP {status}" + (", too many requests: wait some minutes" if status == 429 else "")
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.filename}: {cause.strerror}" if cause.filename else cause.strerror
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def fetch_zip(url: str, home: Path) -> None:
    """Fetch a zip of the article's images into `home`, whole or not at all: from Google Drive with gdown, or HTTP.

    A web page in its place (an exceeded quota, say) is not kept. Raises SetupError with the reason.
    """

    def write(scratch: Path) -> None:
        if (urlsplit(url).hostname or "") == "drive.google.com":
            link = re.sub(r"/file/d/([^/?]+).*", r"/uc?id=\1", url)
            gdown.download(link, str(scratch), use_cookies=False)
        else:
            with requests.get(url, timeout=TIMEOUT, stream=True) as answer, open(scratch, "wb") as file:
                answer.raise_for_status()
                size = int(answer.headers.get("Content-Length", 154 << 20)) >> 20
                for part in progress(answer.iter_content(1 << 20), "download, MB", size):
                    file.write(part)
        if not scratch.exists() or not zipfile.is_zipfile(scratch):
            raise OSError("a web page, or half a file, came in place of the zip")

    print(f"Downloading {url} (154 MB)")
    try:
        atomic_write(home / ZIP_NAME, write)
    except Exception as error:  # gdown 5 and 6 raise different ones
        raise SetupError(f"{url} ({reason_of(error)})") from None


def holds_images(folder: Path) -> bool:
    """Tell whether `folder` has the two splits, train/ and test/."""
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def unpack(archive: Path, home: Path, tree: str) -> None:
    """Unpack the article's two/ and all/ into `home`, each in one step; those that are there stay.

    GitHub's archive has them as data_two_class and data_four_class in a folder of its own. Raises
    SetupError where `tree` is not among them, or nothing can be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=home, prefix=".unzip-") as scratch, zipfile.ZipFile(archive) as zipped:
            zipped.extractall(scratch)
            places = [Path(scratch), *filter(Path.is_dir, Path(scratch).iterdir())]
            for name, place in itertools.product(FOLDERS, places):
                for source in filter(holds_images, (place / folder for folder in FOLDERS[name])):
                    with contextlib.suppress(OSError):  # it is there, or another run was quicker; asked below
                        os.replace(source, home / name)
    except OSError as error:
        raise SetupError(f"{archive} cannot be unpacked into {home.resolve()} ({reason_of(error)})") from None
    except Exception as error:  # zipfile has many ways to say that a file is damaged
        raise SetupError(f"{archive} is damaged ({reason_of(error)})") from None
    if not holds_images(home / tree):
        what = home / tree if (home / tree).exists() else archive
        raise SetupError(f"{what} does not hold the article's images")


def find_images(tree: str, url: str | None = None, home: Path | None = None) -> Path:
    """Return the folder whose train/ and test/ a lesson reads; download the images if need be.

    tree: "two" or "all". Looks at COVID_XRAY_DATA (a folder with `tree`/train or train/), at `home`/`tree`,
    at the zip in `home`, then downloads COVID_XRAY_URL (by default `url`, by default Google Drive), then
    GitHub's archive of the same files. Raises SetupError that names what was tried. Never phantoms.
    """
    home = home or data_home()
    if setting := os.environ.get("COVID_XRAY_DATA"):
        given = Path(setting).expanduser()
        for folder in (given / tree, given):
            if holds_images(folder):
                return folder
        raise SetupError(f"COVID_XRAY_DATA is {setting!r}, which holds neither {tree}/train nor train/, beside test/.")
    if holds_images(home / tree):
        return home / tree
    if (home / ZIP_NAME).exists():
        try:
            unpack(home / ZIP_NAME, home, tree)
        except SetupError as error:
            raise SetupError(f"{error}. Mend that or move it away, and run again.") from None
        return home / tree
    tried = []
    for source in (os.environ.get("COVID_XRAY_URL") or url or DRIVE_URL, GITHUB_URL):
        try:
            fetch_zip(source, home)
            try:
                unpack(home / ZIP_NAME, home, tree)
            except SetupError as error:
                (home / ZIP_NAME).unlink(missing_ok=True)  # of no use, and the next run would stop at it
                raise SetupError(f"{source} ({error})") from None
            return home / tree
        except SetupError as error:
            print(f"No images from {error}")
            tried.append(str(error))
    raise SetupError(
        f"No images. Tried: {'; '.join(tried)}. Open one address in a browser and put the zip into {home.resolve()} "
        f"as {ZIP_NAME}, or set COVID_XRAY_DATA to a folder that holds train/ and test/."
    )


def find_controls(kind: str, folder: Path, dataset: str, home: Path | None = None) -> pd.DataFrame:
    """Return X-rays of patients without COVID-19, a row each.

    kind: "controls", other diseases in the COVID-19 images' own collection, or "nih_no_finding", adults
    without a finding, from the NIH. folder, dataset: as find_images and check_files give them. Columns:
    file (its path), filename, group (of findings), answer (the class that is right, "" for none),
    patient, and what else the list knows (age, sex, view).

    The article's data set has them in `home`/`kind`, from `home`/`kind`.zip or fetched from GitHub, each
    checked by its blob. Phantoms bring their own. The table is empty for your own images. A printed
    message says how many cannot be had.
    """
    table, pictures = CONTROLS[kind].rename(columns={"class": "group"}), (home or data_home()) / kind
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
    """Fetch the images of `table` into the folder `pictures`, four at a time; returns bool (n,): who is there.

    Those that are there and right stay. Each new one is written only if its blob is right. Prints why
    some are missing.
    """
    rows, failures = list(table.itertuples(index=False)), []

    def is_right(row: tuple) -> bool:
        path = pictures / row.filename
        return path.is_file() and bool(is_listed(path, row.git_blob, row.pixels))

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

    archive = pictures.with_name(f"{pictures.name}.zip")
    try:
        with zipfile.ZipFile(archive) as zipped:
            for row in itertools.filterfalse(is_right, rows):
                with contextlib.suppress(KeyError):  # it is not in the zip
                    zipped.extract(f"{pictures.name}/{row.filename}", pictures.parent)
    except FileNotFoundError:
        pass
    except Exception as error:
        print(f"{archive} is not used ({reason_of(error)}).")
    there = np.array([is_right(row) for row in rows], bool)
    missing = np.flatnonzero(~there)
    with ThreadPoolExecutor(4) as pool:
        fetched = pool.map(fetch, [rows[index] for index in missing])
        there[missing] = list(progress(fetched, pictures.name, len(missing)))
    if failures:
        print(
            f"{np.sum(~there)} of {len(rows)} {pictures.name} are missing: {failures[0]}. "
            "The lesson goes on without them. Check the network, and run again."
        )
    return there


# ----------------------------------------------------------------------------------------- pixels


def decode(path: Path) -> np.ndarray:
    """Decode an image file as RGB, uint8 or uint16 (height, width, 3).

    Raises SetupError for what is no image, is damaged, or is of a kind that would be read wrongly.
    """
    data = read_bytes(path)
    for kind, found in (("DICOM", data[128:132] == b"DICM"), ("HEIC or AVIF", data[4:8] == b"ftyp")):
        if found:
            raise SetupError(f"{path} is a {kind} file, which is not read here. {SAVE_AS}")
    image = None
    try:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            image = decode_tiff(data, path)
        else:
            image = decode_any(data)
        if image.dtype in (np.uint8, np.uint16):
            return image
    except SetupError:
        raise
    except Exception:  # OpenCV and Pillow have many ways to say that they cannot
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is not None:
        raise SetupError(f"{path} holds pixels of a kind that is not read here ({image.dtype}). {SAVE_AS}")
    raise SetupError(f"{path} cannot be read as an image. Replace or delete it, then run again.")


def decode_tiff(data: bytes, path: Path) -> np.ndarray:
    """Decode a TIFF's content as decode does; of its many kinds OpenCV misreads some without a word."""
    with PIL.Image.open(io.BytesIO(data)) as picture:
        tags = picture.tag_v2
        bits, unsigned = max(tags.get(258, (1,))), set(tags.get(339, (1,))) == {1}
        white_is_zero, planes_apart = tags.get(262) == 0, tags.get(284) == 2
        if bits <= 8 and unsigned:
            return np.asarray(picture.convert("RGB"))
    if bits != 16 or not unsigned or planes_apart:
        raise SetupError(f"{path} holds pixels of a kind that is not read here ({bits} bits). {SAVE_AS}")
    return ~decode_any(data) if white_is_zero else decode_any(data)


def decode_any(data: bytes) -> np.ndarray:
    """Decode a file's content with OpenCV as RGB, in its own depth; IMREAD_COLOR_RGB would garble 16-bit TIFF."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def bits_in_use(image: np.ndarray) -> int:
    """Return how many bits, 8 to 16, hold all but the brightest 1% of a 16-bit image: a marker changes nothing."""
    step = max(1, min(image.shape[:2]) // 500)
    return max(8, int(np.quantile(image[::step, ::step], 0.99)).bit_length())


def to_8_bits(image: np.ndarray, bits: int) -> np.ndarray:
    """Return the highest eight of `bits` bits of a 16-bit image; what is brighter becomes white."""
    return np.minimum(image >> (bits - 8), 255).astype(np.uint8)


def read_image(path: Path) -> np.ndarray:
    """Read an image file as RGB, uint8 (height, width, 3), 0 to 255.

    Gray, palette, RGBA, and CMYK files become RGB; of 16-bit ones the highest eight bits in use are
    kept. Raises SetupError where the file holds no image, or one that would be read wrongly.
    """
    image = decode(path)
    return image if image.dtype == np.uint8 else to_8_bits(image, bits_in_use(image))


def shrink_images(files: Sequence[Path], names: Sequence[str], folder: Path, size: int) -> list[str]:
    """Shrink images once: each of `files` becomes `folder`/NAME.png, (size, size, 3), for its NAME in `names`.

    Each pixel becomes its nearest neighbor, as in the article. All 16-bit images keep the same eight
    bits, the highest that any of them uses. Returns the names with ".png". Raises SetupError.
    """
    deep = {}  # 16-bit images wait for the bits of the whole set

    def write(name: str, image: np.ndarray) -> None:
        target = folder / f"{name}.png"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
        except OSError as error:
            raise SetupError(f"{target} cannot be written: {error.strerror}.") from None

    for path, name in progress(zip(files, names), "shrink images", len(files)):
        image = cv2.resize(decode(path), (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
        write(name, image)
        if image.dtype == np.uint16:
            deep[name] = bits_in_use(image)
    for name in deep:
        write(name, to_8_bits(decode(folder / f"{name}.png"), max(deep.values())))
    return [f"{name}.png" for name in names]


# ------------------------------------------------------------------------------------ tables


def walk(folder: Path) -> tuple[list[str], list[str]]:
    """Return the images below `folder`, in Keras's order, and the files that are not read; hidden ones are neither.

    Names are relative to `folder`, with slashes. Raises SetupError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise SetupError(f"{error.filename} cannot be listed: {error.strerror}.")

    images, others = [], []
    if not folder.is_dir():
        return images, others
    for root, _, files in sorted(os.walk(folder, onerror=refuse)):
        for name in sorted(files):  # Windows would ignore case, Keras does not
            path = Path(root, name).relative_to(folder)
            if any(part[0] == "." for part in path.parts) or name.lower() in NO_IMAGES:
                continue
            (images if path.suffix.lower() in IMAGE_SUFFIXES else others).append(path.as_posix())
    return images, others


def list_classes(folder: Path, split: str) -> list[str]:
    """Return the class names, which are the folders in `folder`/`split`; hidden ones are passed over."""
    try:
        return sorted(p.name for p in (folder / split).iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError as error:
        raise SetupError(f"{error.filename} cannot be listed: {error.strerror}.") from None


def list_table(folder: Path, validation_split: float = 0.2, class_names: Sequence[str] | None = None) -> pd.DataFrame:
    """List the images of `folder`/train and `folder`/test, a row each, and say what is odd about them.

    Columns: file (relative to `folder`), class, label (0, 1, ... in the order of `class_names`, by default
    the sorted folders), split ("train", "validation", "test"), patient. The order is Keras's
    (flow_from_directory), and so is the split: the first `validation_split` of each class by file name
    validate. Prints which files are not read and which are equal. Raises SetupError where a class has no
    image, or none is left to validate on.
    """
    folder = Path(folder)
    names = list(class_names or sorted({*list_classes(folder, "train"), *list_classes(folder, "test")}))
    if len(names) < 2:
        raise SetupError(f"{folder / 'train'} needs two or more class folders, and has {len(names)}.")
    rows, unread = [], []
    for split, (label, name) in itertools.product(("train", "test"), enumerate(names)):
        images, others = walk(folder / split / name)
        unread += [f"{split}/{name}/{other}" for other in others]
        if not images:
            raise SetupError(f"{folder / split / name} holds no image. Every class needs some in train/ and in test/.")
        held_out = int(validation_split * len(images)) if split == "train" else 0
        for index, image in enumerate(images):
            rows.append((f"{split}/{name}/{image}", name, label, "validation" if index < held_out else split))
    table = pd.DataFrame(rows, columns=["file", "class", "label", "split"])
    if validation_split and "validation" not in set(table["split"]):
        raise SetupError(f"{folder} has no image to validate on. Put five or more images of a class into train/.")
    table["patient"] = patients_of(folder, table["file"])
    report_unread(folder, unread)
    report_equal(folder, table)
    return table


def report_unread(folder: Path, unread: Sequence[str]) -> None:
    """Print, by kind, how many files of the class folders are not read, and images elsewhere in `folder`."""
    kinds = Counter(Path(name).suffix.lower() or "no ending" for name in unread)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        print(f"{len(unread)} files are not read, such as {unread[0]} ({listed}). {SAVE_AS}")
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        with contextlib.suppress(OSError, SetupError):  # another folder that cannot be listed does not matter
            images = walk(place)[0]
            loose = [name for name in images if "/" not in name]
            if place.name in ("train", "test") and loose:
                print(f"{len(loose)} images in {place.name}/ are in no class folder, such as {loose[0]}. Not read.")
            elif place.name not in ("train", "test") and images:
                print(
                    f"{len(images)} images in {place.name}/ are not read. Put images into train/CLASS and test/CLASS."
                )


def report_equal(folder: Path, table: pd.DataFrame) -> None:
    """Print how many files have the same bytes as one in another split or class, with an example."""
    try:
        sizes = [(folder / file).stat().st_size for file in table["file"]]
    except OSError as error:
        raise SetupError(f"{error.filename} cannot be read: {error.strerror}.") from None
    alike = table[pd.Series(sizes).duplicated(keep=False).to_numpy()]
    blobs = [git_blob(folder / file) for file in alike["file"]]
    mixed = [rows for _, rows in alike.groupby(blobs) if rows["split"].nunique() > 1 or rows["class"].nunique() > 1]
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

    starts = [normalized(str(place)) + "/" for place in (folder.resolve(), folder.absolute(), folder)]
    places: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        places.setdefault(normalized(file), []).append(index)
        places.setdefault(normalized(posixpath.basename(file)), []).append(index)
    told, strangers = {}, []
    for file, patient in rows:
        key = normalized(file)
        key = next((key.removeprefix(start) for start in starts if key.startswith(start)), key)
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


def count_table(table: pd.DataFrame) -> pd.DataFrame:
    """Count the images of each class and split and, in parentheses, the patients they show."""
    counts = table.groupby(["class", "split"], sort=False)["patient"].agg(["size", "nunique"])
    text = counts["size"].astype(str) + " (" + counts["nunique"].astype(str) + ")"
    text = text.unstack(fill_value="0 (0)").reindex(columns=["train", "validation", "test"], fill_value="0 (0)")
    text = text.rename(index=label_of, columns=lambda split: f"{split}: images (patients)")
    return text.rename_axis(index=None, columns=None)
