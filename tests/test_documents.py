"""What documents say can be done: files that are shown are studies, and pictures and links are there."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import ROOT

import harness
from harness.components import LEARNERS

DOCS = ROOT / "docs"


def shown_files() -> dict[str, str]:
    """The files in configuration.md, by the learner that they are shown for."""
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    part = text.partition("## A file for each learner")[2].partition("\n## ")[0]
    found = {}
    for kind, block in re.findall(r"\(\[(\w+)\]\(learners/\w+\.md\)\):\n\n((?:    .*\n|\n)+)", part):
        found[kind] = "\n".join(line[4:] for line in block.splitlines())
    return found


def test_every_learner_has_a_file() -> None:
    own = {kind for kind, found in LEARNERS.loaded.items() if not found.package}
    assert shown_files().keys() == own == {path.stem for path in (DOCS / "learners").glob("*.md")}


@pytest.mark.parametrize("kind", sorted(shown_files()))
def test_a_file_that_is_shown_is_a_study(kind: str, tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    config.write_text(shown_files()[kind])
    found = harness.plan(config, tmp_path / "root")
    assert found["chains"] >= 1 and found["generations_unique"] > found["chains"]


def test_pictures_are_well_formed_and_follow_the_scheme() -> None:
    """An SVG says what it shows to those who do not see it, and has colours for light and dark."""
    pictures = sorted((DOCS / "figures").glob("*.svg"))
    assert pictures
    for path in pictures:
        root = ET.parse(path).getroot()  # noqa: S314 (our own file)
        names = {child.tag.rpartition("}")[2] for child in root}
        assert {"title", "desc"} <= names and root.get("role") == "img", path
        text = path.read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text and path.stat().st_size < 20_000
        assert "<script" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in [ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("learners/*.md"), *DOCS.glob("adr/*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in link and not (path.parent / link).exists():
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert not broken, broken


def test_the_notebook_keeps_its_outputs() -> None:
    """As it was run from top to bottom, without a trace of where that was."""
    text = (DOCS / "notebook.ipynb").read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {"execute_result", "display_data"} == {output["output_type"] for output in outputs}
    assert any("image/png" in output["data"] for output in outputs)
    assert any("text/html" in output["data"] for output in outputs)
    assert "/tmp/" not in text and "/home/" not in text
