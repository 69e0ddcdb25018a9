"""The archives, and one image of each group of controls, still answer with the right bytes.

A weekly job asks them: `pytest tests/tools/links.py`.
"""

import prepare
import pytest
import xray_data


@pytest.mark.parametrize("url", [prepare.DRIVE_URL, prepare.GITHUB_URL])
def test_archive(url, tmp_path):
    prepare.fetch_zip(url, tmp_path)
    for tree in prepare.FOLDERS:
        prepare.unpack(tmp_path / prepare.ZIP_NAME, tmp_path, tree)
        found = xray_data.check_files(tmp_path / tree, xray_data.list_files(tmp_path / tree))
        assert found["dataset"] == xray_data.ARTICLE_NAME, found["sentence"]


@pytest.mark.parametrize("kind", xray_data.CONTROLS)
def test_control(kind, tmp_path):
    assert xray_data.fetch_controls(xray_data.CONTROLS[kind].head(1), tmp_path / kind).all()
