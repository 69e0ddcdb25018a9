"""Draw synthetic chest radiographs, so that the notebooks run where no data set can be reached.

    python data/phantoms.py

The tree is that of the article: two/ and all/, each with train/ and test/. Beside them are two groups without COVID-19,
controls/ and nih_no_finding/, each with its list. Every image has PHANTOM burned in, and PHANTOMS.txt says what they
are. Nothing measured on them says anything about X-rays.

All classes share one anatomy, exposure and framing; they differ in the opacities of the lungs alone, and those vary
from obvious to nearly invisible: normal lungs are clear; a bacterial pneumonia is one dense lobar consolidation; a
viral one a diffuse, fine reticular pattern on both sides; COVID-19 several hazy patches in the periphery of both
lungs, lower ones more often (the textbook patterns that Jacobi et al., Clinical Imaging 64, 2020, describe).
"""

import itertools
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("covid", "normal", "pneumonia_bac", "pneumonia_vir")
CONTROLS = {  # folder: groups of findings, and what is drawn for them
    "controls": {"bacterial pneumonia": "pneumonia_bac", "viral pneumonia": "pneumonia_vir"},
    "nih_no_finding": {"no finding": "normal"},
}
NOTE = "The images below this folder are drawn by data/phantoms.py. They are not X-rays, and show nobody.\n"
SIZE = 512  # of the canvas, in pixels; everything is drawn in shares of it


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; `sigma` in shares of the canvas."""
    return cv2.GaussianBlur(image, (0, 0), sigma * SIZE)


def shape(points: np.ndarray) -> np.ndarray:
    """Filled polygon as float (SIZE, SIZE), 0 or 1; `points` in shares of the canvas."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    cv2.fillPoly(mask, [np.int32(np.array(points) * SIZE)], 1)
    return mask


def lines(strokes: list, thickness: float) -> np.ndarray:
    """Open polylines as float (SIZE, SIZE), 0 or 1; points and thickness in shares of the canvas."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    for points in strokes:
        cv2.polylines(mask, [np.int32(np.array(points) * SIZE)], False, 1, max(1, int(thickness * SIZE)), cv2.LINE_AA)
    return mask


def smooth_noise(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Noise (SIZE, SIZE) of mean 0 and standard deviation 1, smooth over `scale` of the canvas."""
    noise = blur(rng.standard_normal((SIZE, SIZE)).astype(np.float32), scale)
    return noise / noise.std()


def lung_outlines(body: dict[str, float]) -> list[np.ndarray]:
    """The outlines of the two lungs (the image's left and right) of one patient, in shares of the canvas."""
    angles = np.linspace(0, 2 * np.pi, 80)
    outlines = []
    for side in (-1, 1):
        width, height = body["lung_width"], body["lung_height"]
        x = 0.5 + side * (body["gap"] + width) + width * np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** 0.75
        taper = 1 - 0.35 * np.clip(-np.sin(angles), 0, 1)  # lungs narrow toward the apex
        x = 0.5 + side * body["gap"] + (x - 0.5 - side * body["gap"]) * taper
        y = 0.48 + height * np.sin(angles) - (0.02 if side < 0 else 0)
        outlines.append(np.stack([x, np.minimum(y, body["dome"] + 0.9 * np.abs(x - 0.5 - side * 0.17) ** 1.7)], axis=1))
    return outlines


def opacities(rng: np.random.Generator, kind: str, lungs: np.ndarray, outlines: list[np.ndarray]) -> np.ndarray:
    """What the disease `kind` adds to the lungs, float (SIZE, SIZE), about 0 to 0.35."""
    severity = rng.uniform(0.45, 1.0)
    added = np.zeros((SIZE, SIZE), np.float32)
    if kind == "pneumonia_bac":
        outline = outlines[rng.integers(2)]
        center = outline.mean(axis=0) + rng.uniform(-1, 1, 2) * (0.03, 0.12)
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        radius = rng.uniform(0.07, 0.12) * rng.uniform(0.75, 1.25, (12, 1))
        added = blur(shape(center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)), 0.012) * 0.34
    elif kind == "pneumonia_vir":
        starts = rng.uniform((0.15, 0.15), (0.85, 0.85), (900, 2))
        turns = rng.uniform(0, np.pi, 900)
        strokes = [(s, s + 0.03 * np.array([np.cos(t), np.sin(t)])) for s, t in zip(starts, turns)]
        added = blur(lines(strokes, 0.004), 0.0025) * 0.24 + 0.05 * np.clip(smooth_noise(rng, 0.012), 0, 2)
    elif kind == "covid":
        for outline in outlines:
            outer = outline[np.abs(outline[:, 0] - 0.5) > np.abs(outline[:, 0] - 0.5).mean()]
            for x, y in outer[rng.choice(len(outer), rng.integers(2, 5), replace=False)]:
                inward = np.sign(0.5 - x) * rng.uniform(0.01, 0.045)
                patch = np.zeros((SIZE, SIZE), np.float32)
                axes = np.int32(rng.uniform(0.03, 0.07, 2) * SIZE)
                place = (int((x + inward) * SIZE), int((0.55 * y + 0.45 * rng.uniform(0.5, 0.66)) * SIZE))
                cv2.ellipse(patch, place, [int(a) for a in axes], float(rng.uniform(0, 180)), 0, 360, 1, -1)
                added = np.maximum(added, blur(patch, 0.018) * rng.uniform(0.20, 0.32))
        added *= 1 + 0.25 * smooth_noise(rng, 0.008)
    return severity * added * lungs


def draw(patient: int, view: int, kind: str) -> np.ndarray:
    """Draw one radiograph.

    patient: seed of the anatomy, the same for all images of a patient; view: seed of position, exposure, noise and
    disease; kind: one of CLASSES. Returns gray uint8 (height, width), 400 to 640 pixels a side.
    """
    anatomy, rng = np.random.default_rng([patient, 1]), np.random.default_rng([patient, view, 2])
    body = {
        name: anatomy.uniform(*span)
        for name, span in {
            "lung_width": (0.135, 0.165),
            "lung_height": (0.30, 0.35),
            "gap": (0.045, 0.06),
            "dome": (0.66, 0.73),
            "heart": (0.11, 0.15),
            "chest": (0.41, 0.47),
            "rib_slope": (0.05, 0.10),
        }.items()
    }
    outlines = lung_outlines(body)
    lungs = np.clip(sum(blur(shape(outline), 0.006) for outline in outlines), 0, 1)

    x = np.linspace(0, 1, SIZE, dtype=np.float32)[None]
    y = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None]
    wide = body["chest"] * (0.72 + 0.4 * np.clip(y / 0.25, 0, 1)) * np.ones_like(x)
    torso = blur((np.abs(x - 0.5) < wide).astype(np.float32), 0.012)
    image = torso * (0.62 + 0.10 * y)
    image -= lungs * (0.36 + 0.05 * smooth_noise(anatomy, 0.05))
    image += lungs * 0.035 * smooth_noise(rng, 0.006)  # vessels
    image += 0.14 * blur(((np.abs(x - 0.5) < 0.045) * torso).astype(np.float32), 0.012)  # spine
    heart = np.zeros((SIZE, SIZE), np.float32)
    cv2.ellipse(
        heart, (int(0.55 * SIZE), int(0.60 * SIZE)), (int(body["heart"] * SIZE), int(0.11 * SIZE)), 35, 0, 360, 1, -1
    )
    image += 0.30 * blur(heart, 0.012) * (0.25 + 0.75 * lungs)
    for level in np.arange(-0.05, 0.62, 0.072):  # ribs, seen from behind and through the front
        strokes = []
        for side in (-1, 1):
            reach = np.linspace(0.02, body["chest"] * 0.94, 24)
            arch = level + 0.16 - 0.5 * body["rib_slope"] + body["rib_slope"] * (reach / 0.4) ** 2 * 2.2
            strokes.append(np.stack([0.5 + side * reach, arch], axis=1))
        image += 0.075 * blur(lines(strokes, 0.02), 0.004) * torso
    clavicles = [[(0.5 + side * 0.04, 0.20), (0.5 + side * 0.18, 0.155), (0.5 + side * 0.36, 0.17)] for side in (-1, 1)]
    image += 0.13 * blur(lines(clavicles, 0.02), 0.004)
    image += opacities(rng, kind, lungs, outlines)

    image = np.clip(image + 0.018 * rng.standard_normal((SIZE, SIZE)), 0, 1.15) / 1.15
    image = image ** rng.uniform(0.8, 1.3) * rng.uniform(0.85, 1.0)
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), rng.uniform(-4, 4), rng.uniform(0.95, 1.12))
    turn[:, 2] += rng.uniform(-0.03, 0.03, 2) * SIZE
    image = cv2.warpAffine(image.astype(np.float32), turn, (SIZE, SIZE))
    image = cv2.resize(image, [int(side) for side in rng.integers(400, 640, 2)], interpolation=cv2.INTER_AREA)
    image = (np.clip(image, 0, 1) * 255).astype(np.uint8)
    scale = image.shape[1] / 500
    cv2.putText(image, "PHANTOM", (8, image.shape[0] - 10), cv2.FONT_HERSHEY_SIMPLEX, scale, 240, 2, cv2.LINE_AA)
    return image


def save(path: Path, *drawing: int | str) -> None:
    """Draw one radiograph (see draw) and write it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, draw(*drawing))[1])


def write_tree(folder: Path, train: int = 16, test: int = 6) -> None:
    """Draw the whole tree into `folder`: `train` and `test` images a class, and 2 x `test` in each group of controls.

    Every third patient has two images, and one test patient of each class is in training, too, as happens.
    patients.csv in each tree, controls/controls.csv, and nih_no_finding/nih_no_finding.csv say who is on which image.
    Same counts, same images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "PHANTOMS.txt").write_text(NOTE, encoding="utf-8")
    drawings, patients = {}, []
    for (index, kind), (split, count) in itertools.product(enumerate(CLASSES), (("train", train), ("test", test))):
        for number in range(count):
            person = number - (number % 4 == 1) + (1000 * (split == "test" and number > 0)) + 10000 * index
            name = f"{split}/{kind}/person{person:05d}_{kind.removeprefix('pneumonia_')}_{number:03d}.jpeg"
            drawings[f"all/{name}"] = (person, number + 500 * (split == "test"), kind)
            patients.append((f"{name}", f"phantom-{person}"))
    for group, (where, findings) in enumerate(CONTROLS.items()):
        rows = ["filename,group,patient"]
        for number in range(2 * test):
            finding, kind = list(findings.items())[number % len(findings)]
            person = 50000 + 20000 * group + number
            name = f"person{person}_control_{number:03d}.jpeg"
            drawings[f"{where}/{name}"] = (person, number, kind)
            rows.append(f"{name},{finding},phantom-{person}")
        (folder / where).mkdir(exist_ok=True)
        (folder / where / f"{where}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    with ThreadPoolExecutor() as pool:  # OpenCV and NumPy leave the interpreter's lock while they work
        list(pool.map(lambda item: save(folder / item[0], *item[1]), drawings.items()))
    for tree, kinds in (("all", CLASSES), ("two", CLASSES[:2])):
        rows = [row for row in patients if row[0].split("/")[1] in kinds]
        for name, _ in rows if tree == "two" else ():
            (folder / tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "all" / name, folder / tree / name)
        text = "".join(f"{name},{patient}\n" for name, patient in [("file", "patient"), *rows])
        (folder / tree / "patients.csv").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    target = Path(__file__).parent / "phantoms"
    if target.exists() and not (target / "PHANTOMS.txt").exists():
        sys.exit(f"Problem: {target} holds other files than phantoms. Move them away.")
    shutil.rmtree(target, ignore_errors=True)
    write_tree(target)
    print(f"Drew {len(list(target.glob('all/*/*/*')))} phantoms, and controls, in {target}")
