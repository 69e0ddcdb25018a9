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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("covid", "normal", "pneumonia_bac", "pneumonia_vir")
CONTROLS = {  # folder: groups of findings, and what is drawn for them
    "controls": {"bacterial pneumonia": "pneumonia_bac", "viral pneumonia": "pneumonia_vir"},
    "nih_no_finding": {"no finding": "normal"},
}
NOTE = "The images below this folder are drawn by data/phantoms.py. They are not X-rays, and show nobody."
SIZE = 512  # of the canvas, in pixels; everything is drawn in shares of it
X = np.linspace(0, 1, SIZE, dtype=np.float32)[None]
Y = X.T


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; `sigma` in shares of the canvas."""
    return cv2.GaussianBlur(np.float32(image), (0, 0), sigma * SIZE)


def polygon(points: np.ndarray) -> np.ndarray:
    """Filled polygon as float (SIZE, SIZE), 0 or 1; `points` in shares of the canvas."""
    return cv2.fillPoly(np.zeros((SIZE, SIZE), np.float32), [np.int32(np.array(points) * SIZE)], 1)


def lines(strokes: Sequence, thickness: float) -> np.ndarray:
    """Open polylines as float (SIZE, SIZE), 0 or 1; points and thickness in shares of the canvas."""
    strokes = [np.int32(np.array(points) * SIZE) for points in strokes]
    canvas = np.zeros((SIZE, SIZE), np.float32)
    return cv2.polylines(canvas, strokes, False, 1, max(1, int(thickness * SIZE)), cv2.LINE_AA)


def ellipse(center: Sequence[float], axes: Sequence[float], turn: float) -> np.ndarray:
    """Filled ellipse as float (SIZE, SIZE), 0 or 1; center and half axes in shares of the canvas, turned by degrees."""
    angles = np.linspace(0, 2 * np.pi, 60)
    along, across = axes[0] * np.cos(angles), axes[1] * np.sin(angles)
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return polygon(np.stack([center[0] + along * cos - across * sin, center[1] + along * sin + across * cos], axis=1))


def smooth_noise(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Noise (SIZE, SIZE) of mean 0 and standard deviation 1, smooth over `scale` of the canvas."""
    noise = blur(rng.standard_normal((SIZE, SIZE)), scale)
    return noise / noise.std()


def opacities(rng: np.random.Generator, kind: str, outlines: Sequence[np.ndarray]) -> np.ndarray:
    """What the disease `kind` adds to the lungs, float (SIZE, SIZE), about 0 to 0.35; outlines: of both lungs."""
    added = np.zeros((SIZE, SIZE), np.float32)
    if kind == "pneumonia_bac":
        center = outlines[rng.integers(2)].mean(axis=0) + rng.uniform(-1, 1, 2) * (0.03, 0.12)
        added = 0.34 * blur(ellipse(center, rng.uniform(0.06, 0.13, 2), rng.uniform(0, 180)), 0.014)
    elif kind == "pneumonia_vir":
        starts, turns = rng.uniform(0.15, 0.85, (900, 2)), rng.uniform(0, np.pi, 900)
        ends = starts + 0.03 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        added = 0.24 * blur(lines(np.stack([starts, ends], axis=1), 0.004), 0.0025)
        added += 0.05 * np.clip(smooth_noise(rng, 0.012), 0, 2)
    elif kind == "covid":
        for outline in outlines:
            distances = np.abs(outline[:, 0] - 0.5)
            outer = outline[distances > distances.mean()]
            for x, y in outer[rng.choice(len(outer), rng.integers(2, 5), replace=False)]:
                center = (x + np.sign(0.5 - x) * rng.uniform(0.01, 0.045), 0.55 * y + rng.uniform(0.22, 0.3))
                patch = ellipse(center, rng.uniform(0.03, 0.07, 2), rng.uniform(0, 180))
                added = np.maximum(added, blur(patch, 0.018) * rng.uniform(0.20, 0.32))
        added *= 1 + 0.25 * smooth_noise(rng, 0.008)
    return rng.uniform(0.45, 1.0) * added


def draw(patient: int, view: int, kind: str) -> np.ndarray:
    """Draw one radiograph.

    patient: seed of the anatomy, the same for all images of a patient; view: seed of position, exposure, noise and
    disease; kind: one of CLASSES. Returns gray uint8 (height, width), 400 to 640 pixels a side.
    """
    anatomy, rng = np.random.default_rng([patient, 1]), np.random.default_rng([patient, view, 2])
    width, height, gap = anatomy.uniform((0.135, 0.30, 0.045), (0.165, 0.35, 0.06))  # of a lung, and between the two
    dome, heart, chest, slope = anatomy.uniform((0.66, 0.11, 0.41, 0.05), (0.73, 0.15, 0.47, 0.10))
    angles = np.linspace(0, 2 * np.pi, 80)
    across = gap + width * (1 + np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** 0.75)
    across = gap + (across - gap) * (1 - 0.35 * np.clip(-np.sin(angles), 0, 1))  # lungs narrow toward the apex
    down = np.minimum(0.48 + height * np.sin(angles), dome + 0.9 * np.abs(across - 0.17) ** 1.7)
    outlines = [np.stack([0.5 + side * across, down], axis=1) for side in (-1, 1)]
    lungs = np.clip(sum(blur(polygon(outline), 0.006) for outline in outlines), 0, 1)

    torso = blur(np.abs(X - 0.5) < chest * (0.72 + 0.4 * np.clip(Y / 0.25, 0, 1)), 0.012)
    image = torso * (0.62 + 0.10 * Y)
    image -= lungs * (0.36 + 0.05 * smooth_noise(anatomy, 0.05))
    image += lungs * 0.035 * smooth_noise(rng, 0.006)  # vessels
    image += 0.14 * blur((np.abs(X - 0.5) < 0.045) * torso, 0.012)  # spine
    image += 0.30 * blur(ellipse((0.55, 0.60), (heart, 0.11), 35), 0.012) * (0.25 + 0.75 * lungs)
    reach = np.linspace(0.02, chest * 0.94, 24)
    for level in np.arange(0.11, 0.78, 0.072):  # ribs
        arch = level + slope * (13.75 * reach**2 - 0.5)
        ribs = [np.stack([0.5 + side * reach, arch], axis=1) for side in (-1, 1)]
        image += 0.075 * blur(lines(ribs, 0.02), 0.004) * torso
    clavicles = [[(0.5 + side * 0.04, 0.20), (0.5 + side * 0.18, 0.155), (0.5 + side * 0.36, 0.17)] for side in (-1, 1)]
    image += 0.13 * blur(lines(clavicles, 0.02), 0.004)
    image += opacities(rng, kind, outlines) * lungs

    image = np.clip(image + 0.018 * rng.standard_normal((SIZE, SIZE)), 0, 1.15) / 1.15
    image = image ** rng.uniform(0.8, 1.3) * rng.uniform(0.85, 1.0)
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), rng.uniform(-4, 4), rng.uniform(0.95, 1.12))
    turn[:, 2] += rng.uniform(-0.03, 0.03, 2) * SIZE
    image = cv2.warpAffine(np.float32(255 * image), turn, (SIZE, SIZE))
    image = cv2.resize(image, rng.integers(400, 640, 2).tolist(), interpolation=cv2.INTER_AREA).astype(np.uint8)
    scale, place = image.shape[1] / 500, (8, image.shape[0] - 10)
    return cv2.putText(image, "PHANTOM", place, cv2.FONT_HERSHEY_SIMPLEX, scale, 240, 2, cv2.LINE_AA)


def write_tree(folder: Path, train: int = 8, test: int = 3) -> None:
    """Draw the whole tree into `folder`: `train` and `test` images a class, and 2 x `test` in each group of controls.

    Every third patient has two images, and one test patient of each class is in training, too, as happens.
    patients.csv in each tree, controls/controls.csv, and nih_no_finding/nih_no_finding.csv say who is on which image.
    Same counts, same images.
    """
    drawings, lists = {}, {}
    for (index, kind), (split, count) in itertools.product(enumerate(CLASSES), (("train", train), ("test", test))):
        for number in range(count):
            person = number - (number % 4 == 1) + (1000 * (split == "test" and number > 0)) + 10000 * index
            name = f"{split}/{kind}/person{person:05d}_{kind.removeprefix('pneumonia_')}_{number:03d}.jpeg"
            drawings[f"all/{name}"] = person, number + 500 * (split == "test"), kind
            for tree in ("all", "two") if kind in CLASSES[:2] else ("all",):
                lists.setdefault(f"{tree}/patients.csv", ["file,patient"]).append(f"{name},phantom-{person}")
    for (index, (place, findings)), number in itertools.product(enumerate(CONTROLS.items()), range(2 * test)):
        finding, kind = list(findings.items())[number % len(findings)]
        person = 50000 + 20000 * index + number
        name = f"person{person}_control_{number:03d}.jpeg"
        drawings[f"{place}/{name}"] = person, number, kind
        rows = lists.setdefault(f"{place}/{place}.csv", ["filename,group,patient"])
        rows.append(f"{name},{finding},phantom-{person}")

    def save(name: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(cv2.imencode(".jpeg", draw(*drawings[name]))[1])

    with ThreadPoolExecutor() as pool:  # OpenCV and NumPy leave the interpreter's lock while they work
        list(pool.map(save, drawings))
    for split, kind in itertools.product(("train", "test"), CLASSES[:2]):
        shutil.copytree(folder / "all" / split / kind, folder / "two" / split / kind, dirs_exist_ok=True)
    for name, rows in {**lists, "PHANTOMS.txt": [NOTE]}.items():
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    target = Path(__file__).parent / "phantoms"
    if target.exists() and not (target / "PHANTOMS.txt").exists():
        sys.exit(f"Problem: {target} holds other files than phantoms. Move them away.")
    shutil.rmtree(target, ignore_errors=True)
    write_tree(target)
    print(f"Drew {len(list(target.glob('all/*/*/*')))} phantoms, and controls, in {target}")
