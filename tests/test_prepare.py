"""data/prepare.py and the cells that it shares with the notebooks: every source, and everything that can go wrong."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile

import cv2
import numpy as np
import prepare
import pytest
from conftest import BINARY, ROOT, ZIP_NAME, clean_environment, execute, load, outputs_of

UNREACHABLE = "http://127.0.0.1:9/nothing.zip"


@pytest.fixture
def home(tmp_path):
    """A copy of the project without data, in which the notebook's paths are ../data and ../output."""
    for folder in ("notebooks", "data"):
        shutil.copytree(
            ROOT / folder,
            tmp_path / "project" / folder,
            ignore=lambda at, names: [name for name in names if not name.endswith((".py", ".ipynb", "manifest.csv"))],
        )
    return tmp_path / "project"


def functions(home, **settings):
    """The notebook's functions as in the project `home`, with paths that hold from anywhere."""
    nb = load(BINARY, home / "notebooks", **settings)
    nb["DATA_HOME"] = home / "data"
    return nb


def run(home, *arguments, **settings):
    """Run prepare.py of `home` in a process of its own, with weights out of the question."""
    settings = {
        "VGG16_WEIGHTS": "random",
        "COVID_XRAY_URL": UNREACHABLE,
        "COVID_CHESTXRAY_URL": "http://127.0.0.1:9",
        **settings,
    }
    command = [sys.executable, str(home / "data" / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, env=clean_environment(**settings), capture_output=True, text=True, cwd=home)


# --- sources, in their order


def test_phantoms_where_nothing_can_be_reached(home):
    done = run(home)
    assert done.returncode == 0, done.stderr
    assert "could not be downloaded" in done.stdout and "SYNTHETIC" in done.stdout
    assert "all: 88 images can be read, 24 of them to test" in done.stdout
    assert functions(home)["find_images"]("all") == home / "data" / "phantoms" / "all"
    assert run(home).returncode == 0  # and again, with the phantoms in place


def test_download_then_zip_then_trees(home, archive, server):
    url = server.put("/data.zip", archive.read_bytes())
    done = run(home, COVID_XRAY_URL=url)
    assert done.returncode == 0 and f"{url}: unpacked" in done.stdout, done.stdout + done.stderr
    assert "two: 14 images can be read, 4 of them to test" in done.stdout and "controls: skipped" in done.stdout
    assert "two and all: there" in run(home).stdout
    shutil.rmtree(home / "data" / "two")
    assert "zip in data/: unpacked" in run(home).stdout and (home / "data" / "two").is_dir()
    assert server.asked == ["/data.zip"]


def test_setting_comes_first_and_must_be_right(home, tree):
    done = run(home, COVID_XRAY_DATA=str(tree))
    assert done.returncode == 0 and f"COVID_XRAY_DATA: {tree}" in done.stdout and "controls: 6 images" in done.stdout
    done = run(home, COVID_XRAY_DATA=str(home))
    assert (
        done.returncode == 1 and "holds neither all/train nor train/" in done.stderr and "Traceback" not in done.stderr
    )


def test_controls_come_from_the_collection_and_go_on_where_they_stopped(home, tree, server):
    nb = functions(home, COVID_CHESTXRAY_URL=server.url)
    nb["COLLECTION_URL"] = server.url
    picture = next((tree / "controls").glob("*.jpeg")).read_bytes()
    server.put(
        "/metadata.csv",
        b"patientid,finding,view,modality,filename\n"
        + b"".join(b"%d,Pneumonia/Viral/SARS,PA,X-ray,c %d.jpg\n" % (number, number) for number in range(4)),
    )
    server.put("/images/c%200.jpg", picture)
    server.put("/images/c%201.jpg", picture)
    server.put("/images/c%202.jpg", b"", status=500)
    with pytest.raises(OSError):
        nb["fetch_controls"](home / "data")
    server.put("/images/c%202.jpg", picture)  # the fourth stays 404: withdrawn
    table = nb["fetch_controls"](home / "data")
    assert table["filename"].tolist() == ["c 0.jpg", "c 1.jpg", "c 2.jpg"] and set(table["patient"]) == {
        "cohen-0",
        "cohen-1",
        "cohen-2",
    }
    assert server.asked.count("/images/c%200.jpg") == 1 and server.asked.count("/metadata.csv") == 1
    assert not [path for path in (home / "data" / "controls").iterdir() if path.name.startswith(".")]


def kermany_names():
    return [row["filename"] for row in prepare.read_manifest() if row["source"].startswith("Kermany")]


@pytest.mark.parametrize("layout", ["chest_xray/train/NORMAL", "", "zip"])
def test_rebuild_from_public_sources(home, tree, server, tmp_path, layout):
    picture = next((tree / "all" / "train" / "covid").iterdir()).read_bytes()
    for row in prepare.read_manifest():
        if not row["source"].startswith("Kermany"):
            server.put(f"/images/{row['filename']}", picture)
    if layout == "zip":
        kermany = tmp_path / "archive.zip"
        with zipfile.ZipFile(kermany, "w") as zipped:
            for name in kermany_names():
                zipped.writestr(f"ChestXRay2017/chest_xray/test/{name}", picture)
                zipped.writestr(f"__MACOSX/chest_xray/._{name}", b"rubbish")
    else:
        kermany = tmp_path / "kermany"
        (kermany / layout).mkdir(parents=True)
        for name in kermany_names():
            (kermany / layout / name).write_bytes(picture)
    done = run(home, "--from-public", "--kermany", kermany, COVID_CHESTXRAY_URL=server.url)
    assert done.returncode == 0, done.stderr
    assert "all: 306 images can be read, 36 of them to test" in done.stdout and "two: 148 images" in done.stdout
    nb = functions(home)
    for name, tree_name in (("d13d5db2", "two"), ("ab8881c3", "all")):  # the names are the article's
        folder = home / "data" / tree_name
        files = nb["load_images"](folder, nb["list_classes"](folder))[3]
        nb["ARTICLE_FILES_SHA256"] = (
            nb["ARTICLE_FILES_SHA256"]
            if tree_name == "two"
            else ("ab8881c329a2390f8d6c77dd910c7ab70c2797d3ed4d04bd041403ae40a8f848")
        )
        assert nb["identify"](folder, files) == "Covid_Data_GradientCrescent", name


def test_rebuild_says_what_is_missing_and_keeps_what_came(home, server, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run(home, "--from-public", "--kermany", tmp_path / "empty", COVID_CHESTXRAY_URL=server.url)
    assert done.returncode == 1 and "run again to go on" in done.stderr and "Traceback" not in done.stderr
    for row in prepare.read_manifest():
        if not row["source"].startswith("Kermany"):
            server.put(f"/images/{row['filename']}", b"x")
    done = run(home, "--from-public", "--kermany", tmp_path / "empty", COVID_CHESTXRAY_URL=server.url)
    assert done.returncode == 1 and "lacks 237 of the 237 images" in done.stderr
    asked = len(server.asked)
    run(home, "--from-public", "--kermany", tmp_path / "empty", COVID_CHESTXRAY_URL=server.url)
    assert len(server.asked) == asked  # nothing is fetched twice


# --- weights


def test_weights_from_the_mirror_are_vgg16s(nb, weights):
    assert nb["weights_sha256"](nb["load_conv_base"](str(weights))) == nb["VGG16_SHA256"]


def test_tampered_or_cut_weights_are_refused(nb, weights, tmp_path):
    keras = nb["keras"]
    base = nb["load_conv_base"](str(weights))
    arrays = base.get_weights()
    arrays[0][0, 0, 0, 0] += 1e-6
    base.set_weights(arrays)
    base.save_weights(tmp_path / "tampered.weights.h5")
    (tmp_path / "cut.weights.h5").write_bytes(weights.read_bytes()[:100000])
    (tmp_path / "empty.weights.h5").write_bytes(b"")
    for name in ("tampered", "cut", "empty", "absent"):
        with pytest.raises(nb["Problem"], match="VGG16"):
            nb["load_conv_base"](str(tmp_path / f"{name}.weights.h5"))
    assert keras.config.dtype_policy().name == "float32"


def test_weights_chain(home, weights, monkeypatch, capsys):
    """A damaged file in data/weights is passed over; Keras's server fails; the mirror's weights take its place."""
    monkeypatch.delenv("VGG16_WEIGHTS", raising=False)
    nb = functions(home)
    target = home / "data" / "weights" / "vgg16.weights.h5"
    nb["PREPARED_WEIGHTS"] = target
    target.parent.mkdir()
    target.write_bytes(weights.read_bytes()[:100000])
    real, base = nb["load_conv_base"], nb["load_conv_base"](str(weights))

    def without_network(source, *rest):
        if source == "imagenet":
            raise nb["Problem"]("no network")
        return real(source, *rest)

    monkeypatch.setitem(nb, "load_conv_base", without_network)
    monkeypatch.setattr(prepare, "weights_from_mirror", lambda nb: base)
    prepare.prepare_weights(nb)
    printed = capsys.readouterr().out
    assert (
        "could not be had from" in printed
        and "Keras's server: no network" in printed
        and f"{prepare.MIRROR}: checked" in printed
    )
    assert nb["weights_sha256"](real(str(target))) == nb["VGG16_SHA256"]
    assert [path.name for path in target.parent.iterdir()] == ["vgg16.weights.h5"]


def test_keras_download_is_checked(nb, weights, server, tmp_path, monkeypatch):
    """Keras's own download, from a server on loopback that gives a good file, a wrong one, none, and no answer."""
    from keras.src.applications import vgg16

    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/none.h5", b"", status=503))
    monkeypatch.setattr(
        vgg16.file_utils,
        "get_file",
        lambda name, origin, **_: __import__("urllib.request").request.urlretrieve(
            origin, tmp_path / "vgg16.weights.h5"
        )[0],
    )
    with pytest.raises(nb["Problem"], match="could not be had from 'imagenet'"):
        nb["load_conv_base"]("imagenet")
    assert socket.getdefaulttimeout() == nb["TIMEOUT"] == 60
    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/hangs.h5", None))
    socket.setdefaulttimeout(1)
    try:
        with pytest.raises(nb["Problem"], match="timed out"):
            nb["load_conv_base"]("imagenet")
    finally:
        socket.setdefaulttimeout(nb["TIMEOUT"])
    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/half.h5", weights.read_bytes()[:200000]))
    with pytest.raises(nb["Problem"], match="VGG16"):
        nb["load_conv_base"]("imagenet")
    monkeypatch.setattr(vgg16, "WEIGHTS_PATH_NO_TOP", server.put("/good.h5", weights.read_bytes()))
    assert nb["load_conv_base"]("imagenet").count_params() == 14_714_688


# --- faults of the download


@pytest.mark.parametrize(
    "body, status, words",
    [
        (b"<html>Quota exceeded</html>", 200, "no zip file"),
        (b"gone", 404, "404"),
        (b"", 200, "no zip file"),
        (b"", 500, "500"),
    ],
)
def test_no_page_is_taken_for_the_zip(home, server, body, status, words):
    nb = functions(home)
    nb["DATA_URL"] = server.put("/data.zip", body, status)
    with pytest.raises(nb["Problem"], match=words) as caught:
        nb["download_zip"](home / "data")
    assert "Open it in a browser" in str(caught.value) and ZIP_NAME in str(caught.value)
    assert not [path for path in (home / "data").iterdir() if "zip" in path.name]


def test_no_network_and_a_server_that_hangs(home, server):
    nb = functions(home)
    nb["DATA_URL"] = UNREACHABLE
    with pytest.raises(nb["Problem"], match="could not be downloaded"):
        nb["download_zip"](home / "data")
    nb["DATA_URL"], nb["TIMEOUT"] = server.put("/hangs.zip", None), 1
    with pytest.raises(nb["Problem"], match="[Tt]imed out"):
        nb["download_zip"](home / "data")


@pytest.mark.parametrize("cut", [0.5, 0.999])
def test_truncated_zip(home, archive, server, cut):
    content = archive.read_bytes()
    nb = functions(home)
    nb["DATA_URL"] = server.put("/data.zip", content[: int(cut * len(content))])
    with pytest.raises(nb["Problem"]):
        nb["download_zip"](home / "data")
    (home / "data" / ZIP_NAME).write_bytes(content[: int(cut * len(content))])
    with pytest.raises(nb["Problem"], match="is damaged"):
        nb["find_images"]("two")
    assert not (home / "data" / "two").exists() and not (home / "data" / "all").exists()


def test_damaged_zip(home, archive):
    content = bytearray(archive.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 4000] = bytes(4000)
    (home / "data" / ZIP_NAME).write_bytes(content)
    nb = functions(home)
    with pytest.raises(nb["Problem"], match="is damaged|could not be unpacked"):
        nb["find_images"]("two")
    assert sorted(path.name for path in (home / "data").iterdir() if path.is_dir() and path.name != "__pycache__") == []


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "two/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_zip_that_would_write_elsewhere(home, name):
    path = home / "data" / ZIP_NAME
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("two/train/covid/a.jpg", b"x")
        zipped.writestr(name, b"x")
    nb = functions(home)
    with pytest.raises(nb["Problem"], match="would be written outside"):
        nb["find_images"]("two")
    assert (
        not (home / "data" / "two").exists()
        and not (home.parent / "evil.txt").exists()
        and not (home / "evil.txt").exists()
    )


def test_another_zip(home):
    with zipfile.ZipFile(home / "data" / ZIP_NAME, "w") as zipped:
        zipped.writestr("cats/1.jpg", b"x")
    nb = functions(home)
    with pytest.raises(nb["Problem"], match="no folder all/"):
        nb["find_images"]("two")


# --- faults of the images


@pytest.fixture
def copy(tree, tmp_path):
    """A copy of the phantoms that a test may spoil."""
    return shutil.copytree(tree, tmp_path / "copy")


def test_missing_class_folder(copy, home):
    shutil.rmtree(copy / "all" / "test" / "normal")
    done = run(home, COVID_XRAY_DATA=str(copy))
    assert (
        done.returncode == 1
        and f"{copy}/all/test/normal holds no image" in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    "content", [b"", b"this is no picture", b"\xff\xd8\xff\xe0" + bytes(200), b"\x89PNG\r\n\x1a\n"]
)
def test_unreadable_image_is_named(copy, home, content):
    bad = copy / "all" / "train" / "normal" / "zz_bad.png"
    bad.write_bytes(content)
    done = run(home, COVID_XRAY_DATA=str(copy))
    assert (
        done.returncode == 1 and f"{bad} cannot be read as an image" in done.stderr and "Traceback" not in done.stderr
    )


def test_rubbish_is_passed_over_and_a_wrong_ending_is_no_fault(nb, copy):
    folder = copy / "two" / "train" / "covid"
    before = nb["list_images"](folder)
    for name in ("desktop.ini", "Thumbs.db", ".hidden.jpg", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (copy / "two" / "train" / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints").mkdir()
    assert nb["list_images"](folder) == before and nb["list_classes"](copy / "two") == ["covid", "normal"]
    before[0].rename(before[0].with_suffix(".PNG"))  # a JPEG under another name
    assert len(nb["load_images"](copy / "two", nb["CLASS_NAMES"])[0]) == 14


def test_kinds_of_image(nb, tmp_path):
    """Grey, RGBA, palette, 16-bit (full and 12-bit range), CMYK and very large files show the same picture."""
    from PIL import Image

    grey = np.add.outer(np.arange(120), np.arange(100)).astype(np.uint8)
    colour = np.stack([grey, 255 - grey, grey // 2], axis=-1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(colour).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([colour, np.full_like(grey, 9)])).save(tmp_path / "rgba.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    cv2.imwrite(str(tmp_path / "full16.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "twelve16.png"), grey.astype(np.uint16) << 4)
    cv2.imwrite(str(tmp_path / "large.png"), np.kron(grey, np.ones((34, 40), np.uint8)))
    for name in ("grey", "palette", "full16", "twelve16"):
        image = nb["read_image"](tmp_path / f"{name}.png")
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, np.dstack([grey] * 3), err_msg=name)
    for name in ("rgb", "rgba"):
        np.testing.assert_array_equal(nb["read_image"](tmp_path / f"{name}.png"), colour)
    assert np.abs(nb["read_image"](tmp_path / "cmyk.jpg").astype(int) - colour).max() <= 6
    assert nb["read_image"](tmp_path / "large.png").shape == (4080, 4000, 3)
    assert nb["thumbnail"](tmp_path / "large.png").shape[0] == 300


def test_class_with_a_single_image(nb, copy):
    folder = copy / "two"
    for path in sorted((folder / "train" / "covid").iterdir())[1:]:
        path.unlink()
    splits = nb["load_images"](folder, nb["CLASS_NAMES"])[2]
    assert list(splits).count("validation") == 1  # the other class still has one
    for path in sorted((folder / "train" / "normal").iterdir())[1:]:
        path.unlink()
    with pytest.raises(nb["Problem"], match="too few images to validate"):
        nb["load_images"](folder, nb["CLASS_NAMES"])


# --- faults of the machine


@pytest.mark.parametrize("step", ["download", "extraction"])
def test_killed_in_the_middle(home, archive, server, step):
    """kill -9 leaves no half that the next run takes for a whole."""
    url = server.put("/data.zip", archive.read_bytes())
    pause = {
        "download": "zipfile.is_zipfile = lambda path: (print('now', flush=True), time.sleep(60))",
        "extraction": "zipfile.ZipFile.extractall = lambda self, where: (self.extract(self.namelist()[0], where), "
        "print('now', flush=True), time.sleep(60))",
    }[step]
    code = f"import sys, time, zipfile; sys.path.insert(0, {str(home / 'data')!r}); import prepare; {pause}; prepare.main()"
    environment = clean_environment(
        COVID_XRAY_URL=url, VGG16_WEIGHTS="random", COVID_CHESTXRAY_URL="http://127.0.0.1:9"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as victim:
        while victim.stdout.readline().strip() != "now":
            assert victim.poll() is None
        victim.send_signal(signal.SIGKILL)
    assert not (home / "data" / "two").exists()
    done = run(home, COVID_XRAY_URL=url)
    assert done.returncode == 0 and "two: 14 images can be read" in done.stdout, done.stdout + done.stderr


def test_killed_while_weights_are_written(home, weights, monkeypatch):
    """A half that a killed run left behind is no weights file to the next one."""
    nb = functions(home)
    nb["PREPARED_WEIGHTS"] = home / "data" / "weights" / "vgg16.weights.h5"
    base = nb["load_conv_base"](str(weights))

    def killed(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.delenv("VGG16_WEIGHTS", raising=False)
    monkeypatch.setitem(nb, "load_conv_base", lambda *_: base)
    monkeypatch.setattr(base, "save_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_weights(nb)
    assert not nb["PREPARED_WEIGHTS"].exists()


def test_two_runs_at_once(home, archive, server):
    url = server.put("/data.zip", archive.read_bytes())
    settings = clean_environment(COVID_XRAY_URL=url, VGG16_WEIGHTS="random", COVID_CHESTXRAY_URL="http://127.0.0.1:9")
    command = [sys.executable, str(home / "data" / "prepare.py")]
    runs = [
        subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for done in runs:
        printed, error = done.communicate(timeout=120)
        assert done.returncode == 0 and "two: 14 images can be read" in printed, printed + error


def test_full_disk(home, archive):
    """A limit on the size of files stands in for a full disk: the error has the same path through the code."""
    shutil.copy(archive, home / "data" / ZIP_NAME)
    limit = (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])

    def shrink():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    code = (
        f"import sys; sys.path.insert(0, {str(home / 'data')!r}); import prepare\n"
        f"import os; os.chdir({str(home / 'notebooks')!r})\n"
        "nb = prepare.run_cells(prepare.NOTEBOOK, prepare.CELLS)\n"
        "try:\n    nb['find_images']('two')\nexcept nb['Problem'] as error:\n    sys.exit(f'Problem: {error}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True, preexec_fn=shrink
    )
    assert done.returncode == 1 and "could not be unpacked" in done.stderr and "File too large" in done.stderr, (
        done.stderr
    )
    assert not (home / "data" / "two").exists()


def test_data_that_cannot_be_written(home, archive, monkeypatch):
    """A read-only data/ (the error is made here, since root may write anywhere) is named, with what to do."""
    nb = functions(home)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(home / "data"))

    monkeypatch.setattr(nb["gdown"], "download", refuse)
    with pytest.raises(nb["Problem"], match="Permission denied.*COVID_XRAY_DATA"):
        nb["download_zip"](home / "data")
    shutil.copy(archive, home / "data" / ZIP_NAME)
    monkeypatch.setattr(nb["tempfile"], "TemporaryDirectory", refuse)
    with pytest.raises(nb["Problem"], match="could not be unpacked into .*Permission denied"):
        nb["find_images"]("two")


@pytest.mark.parametrize("text", ["zero", "0", "-3", "1.5", "", "1e3", "٣"])
def test_setting_that_does_not_parse(tmp_path, text):
    done = run(ROOT, NUM_EPOCHS=text, COVID_XRAY_DATA=str(tmp_path))
    assert done.returncode == 1 and f"NUM_EPOCHS is {text!r}" in done.stderr and "Traceback" not in done.stderr


def test_the_notebook_says_it_in_one_sentence(home, tmp_path):
    """Without images and network, the notebook's page shows the sentence that prepare.py prints, and no traceback."""
    cells = execute(home / "notebooks" / BINARY.name, home / "notebooks", tmp_path, COVID_XRAY_URL=UNREACHABLE)
    errors = [output for cell in cells for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert errors[0]["ename"] == "Problem" and "Open it in a browser" in errors[0]["evalue"]
    assert len(errors[0]["traceback"]) == 1 and errors[0]["traceback"][0].startswith("Problem: ")


def test_results_so_far_survive_a_failure(home, tree, tmp_path):
    """A notebook that fails in its evaluation leaves the seconds and features' facts of what came before."""
    broken = json.loads((home / "notebooks" / BINARY.name).read_text())
    for cell in broken["cells"]:
        if "".join(cell["source"]).startswith("# shared: evaluate"):
            cell["source"] = ["raise ValueError('broken on purpose')"]
    path = home / "notebooks" / BINARY.name
    path.write_text(json.dumps(broken))
    settings = {
        "COVID_XRAY_DATA": str(tree),
        "COVID_XRAY_OUTPUT": str(tmp_path),
        "VGG16_WEIGHTS": "random",
        "NUM_EPOCHS": "1",
    }
    cells = execute(path, home / "notebooks", tmp_path, **settings)
    assert "broken on purpose" in outputs_of(cells, "error")
    assert json.loads((tmp_path / "binary.json").read_text())["seconds"]["training"] > 0
    assert (tmp_path / "binary_curves.png").exists()


def test_time_is_kept(nb, tmp_path):
    nb.update(OUTPUT=tmp_path, STARTED=time.perf_counter())
    prepare_cells = [
        cell
        for cell in json.loads(BINARY.read_text())["cells"]
        if "".join(cell["source"]).startswith("# shared: record")
    ]
    exec("".join(prepare_cells[0]["source"]), nb)
    with nb["stopwatch"]("part"):
        time.sleep(0.2)
    with nb["stopwatch"]("part"):
        time.sleep(0.2)
    assert json.loads((tmp_path / "binary.json").read_text())["seconds"]["part"] >= 0.4
    assert os.listdir(tmp_path) == ["binary.json"]
