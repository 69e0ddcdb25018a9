"""The archives, and one image of each group of controls, still answer with the right bytes.

A weekly job asks them: `pytest tests/tools/links.py`.
"""

import pytest
import xray_data
from conftest import BINARY, MULTI
from lessons import run_lesson

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize("notebook", [BINARY, MULTI])
@pytest.mark.parametrize("dead", ["GITHUB_URL", "DRIVE_URL"])
def test_archive(dead, notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_lesson(notebook, {dead: NOWHERE}, last="unzip")["DATASET"]
    found = xray_data.identify_dataset(folder, xray_data.list_files(folder))
    assert found["dataset"] == xray_data.ARTICLE_NAME, found["sentence"]


@pytest.mark.parametrize("source", xray_data.CONTROLS)
def test_control(source, tmp_path):
    assert xray_data.fetch_controls(xray_data.CONTROLS[source].head(1), tmp_path).all()
