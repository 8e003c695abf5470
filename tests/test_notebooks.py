"""The form that every notebook keeps. That they run is nbval's part of `make test`."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
MAIN_LINE = ["01_data_and_clahe", "02_model", "03_loss_design", "04_two_phase_training",
             "05_evaluation", "06_generation"]  # fmt: skip


def cells(path: Path, kind: str) -> list[str]:
    return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def outputs(path: Path) -> list:
    return [o for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", [])]


def config_cell(path: Path) -> str:
    (cell,) = [c for c in cells(path, "code") if re.search(r"^cfg = vaekit\.preset\(", c, re.M)]
    return cell


def test_the_main_line_is_there():
    assert [p.stem for p in NOTEBOOKS][: len(MAIN_LINE)] == MAIN_LINE


def test_the_set_up_cell_is_the_same_everywhere():
    setups = {cells(path, "code")[0] for path in NOTEBOOKS}
    assert len(setups) == 1
    (setup,) = setups
    assert len([line for line in setup.splitlines() if line.strip()]) <= 12


def test_training_evaluation_and_generation_have_one_configuration():
    assert len({config_cell(FOLDER / f"{name}.ipynb") for name in MAIN_LINE[3:]}) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestForm:
    def test_opening(self, path):
        title, learn = cells(path, "markdown")[:2]
        number, *_ = path.stem.split("_")
        assert re.match(rf"# {number} · \w", title) and "?" in title
        assert "Colab" in title and "Kaggle" in title
        assert "What you will learn" in learn and 3 <= len(re.findall(r"^- ", learn, re.M)) <= 5
        assert "Prerequisites" in learn and "What it takes" in learn
        assert "seed" in cells(path, "code")[1] and "version" in cells(path, "code")[1]

    def test_one_config_cell_with_hints(self, path):
        cell = config_cell(path)
        assert "# the profile decides" in cell and "try " in cell
        for line in cell.splitlines()[2:-1]:
            assert "#" in line or not line.strip() or line.strip() == ")", line

    def test_ending(self, path):
        text = cells(path, "markdown")
        summary = next(i for i, t in enumerate(text) if "## Summary" in t)
        after = "\n".join(text[summary:])
        assert "## Exercises" in after and "<details>" in after
        assert "](" in text[-1].splitlines()[-1]  # a link to go on with
        code = "\n".join(cells(path, "code"))
        assert "yours" in code and "expected" in code  # the stub

    def test_size(self, path):
        code = cells(path, "code")
        lines = sum(bool(line.strip()) for cell in code for line in cell.splitlines())
        words = sum(len(text.split()) for text in cells(path, "markdown"))
        assert 25 <= len(code) + len(cells(path, "markdown")) <= 48
        assert 12 <= len(code) <= 24 and 120 <= lines <= 320 and 700 <= words <= 2400
        assert max(len(cell.splitlines()) for cell in code) <= 45

    def test_no_profile_switch_no_star_import_no_absolute_path(self, path):
        code = "\n".join(cells(path, "code")[1:])
        assert not re.search(r"smoke|import \*|['\"]/(?:home|root|work|tmp|Users)/|!pip", code)
        ast.parse(code)

    def test_checked_cells(self, path):
        marked = [c for c in cells(path, "code") if c.startswith("# NBVAL_CHECK_OUTPUT")]
        assert len(marked) >= 2

    def test_stored_outputs(self, path):
        notebook = nbformat.read(path, as_version=4)
        counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1)), "not executed in order"
        assert path.stat().st_size <= 1_000_000
        assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs(path))
        figures = sum("image/png" in o.get("data", {}) for o in outputs(path))
        assert figures >= len(counts) / 5
        text = "".join(str(o.get("text", "")) for o in outputs(path))
        assert not re.search(r"(?<![\w/.:])/(?!kaggle|content|dev)[a-z]+/[\w.-]+/", text)
