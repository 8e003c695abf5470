"""The form that every notebook keeps. That they run is nbval's part of `make test`."""

import ast
import base64
import json
import random
import re
import time
from html import escape
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import execute
import nbformat
import numpy as np
import pytest
import torch
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from PIL import Image

import vaekit
from vaekit.data import Split
from vaekit.model import stage_sizes

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
ONE_CONFIGURATION = ["04_two_phase_training", "05_evaluation", "06_generation"]


CODE = re.compile(r"```.*?```|`[^`\n]+`", re.S)


def cells(path: Path, kind: str) -> list[str]:
    return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def outputs(path: Path) -> list:
    return [o for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", [])]


def config_cell(path: Path) -> str:
    (cell,) = [c for c in cells(path, "code") if re.search(r"^cfg = vaekit\.preset\(", c, re.M)]
    return cell


def configs(path: Path) -> tuple:
    """`cfg` and `sharp_cfg` as the notebook's cells make them, for grey images."""
    package = SimpleNamespace(preset=vaekit.preset, count_channels=lambda: 1)
    made = {"vaekit": package, "stage_sizes": stage_sizes}
    for cell in cells(path, "code"):
        if re.search(r"^(sharp_)?cfg = vaekit\.preset\(", cell, re.M):
            exec(cell, made)
    return made["cfg"], made["sharp_cfg"]


@pytest.mark.parametrize("profile", ["smoke", "quick", "full"])
def test_training_evaluation_and_generation_have_one_configuration(profile, monkeypatch):
    """05 and 06 name fewer values than 04, and find its two runs."""
    monkeypatch.setenv("VAEKIT_PROFILE", profile)
    training, *others = [configs(FOLDER / f"{name}.ipynb") for name in ONE_CONFIGURATION]
    assert all(other == training for other in others)


def test_the_table_of_siblings_has_a_cap():
    """Of all N images it would be N x N numbers: 8 GB at 21,000."""
    (cell,) = [c for c in cells(FOLDER / "01_data_and_clahe.ipynb", "code") if "corrcoef" in c]
    images = torch.randint(0, 256, (2000, 1, 32, 32), dtype=torch.uint8)
    split = Split(images, None, [], [str(i // 2) for i in range(2000)], [])
    found = {"data": SimpleNamespace(train=split, val=split, test=split)}
    found |= {"torch": torch, "np": np, "F": torch.nn.functional}
    exec(cell.split("several =")[0], found)
    assert len(found["num_siblings"]) == 3000
    assert set(found["num_siblings"]) == {5}  # whole groups: twice in each of three splits


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestForm:
    def test_opening(self, path):
        title, learn = cells(path, "markdown")[:2]
        number, *_ = path.stem.split("_")
        assert re.match(rf"# {number} · \w", title) and "?" in title
        assert "What you will learn" in learn
        assert "Prerequisites" in learn and "What it takes" in learn
        assert "](GLOSSARY.md" in "\n".join(cells(path, "markdown"))

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

    def test_no_profile_switch_no_star_import_no_absolute_path(self, path):
        code = "\n".join(cells(path, "code")[1:])
        assert not re.search(r"smoke|import \*|['\"]/(?:home|root|work|tmp|Users)/|!pip", code)
        # an Output widget, also interact's: nbclient may then miss the reply and wait for ever
        assert not re.search(r"interact(ive)?\(|Output\(", code)
        ast.parse(code)

    def test_some_output_is_compared_with_the_stored_one(self, path):
        notebook = nbformat.read(path, as_version=4)
        assert any("nbval-check-output" in c.metadata.get("tags", []) for c in notebook.cells)
        assert "NBVAL" not in "\n".join(cells(path, "code"))  # a tag, out of a reader's sight

    def test_stored_outputs(self, path):
        notebook = nbformat.read(path, as_version=4)
        counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1)), "not executed in order"
        assert execute.objections(notebook) == []


# ---- as GitHub shows them ------------------------------------------------------------------------

DISPLAYED, INLINE = re.compile(r"\$\$(.+?)\$\$", re.S), re.compile(r"\$([^$]+?)\$")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def faults_of_math(text: str) -> list[str]:
    """What MathJax on GitHub would not draw: $ without a partner or beside a space, \\begin
    outside of $$, braces that do not close, a $$ inside a line."""
    text = CODE.sub("", text)
    found = [f"$$ inside a line: {m[0]}" for m in re.finditer(r"^.*\S.*\$\$.+$", text, re.M)
             if not m[0].startswith("$$")]  # fmt: skip
    displayed = DISPLAYED.findall(text)
    text = DISPLAYED.sub("", text)
    inline = INLINE.findall(text)
    found += [f"a space beside $: {m}" for m in inline if m != m.strip()]
    found += [f"braces: {m}" for m in displayed + inline if m.count("{") != m.count("}")]
    text = INLINE.sub("", text)
    return found + ["$ without a partner"] * ("$" in text) + ["\\begin"] * ("\\begin{" in text)


def targets_of_headings(text: str, on: str) -> set[str]:
    """The #targets of the headings: a notebook's keep their letters, a README's are slugs."""
    heads = re.findall(r"^#+ +(.+?) *$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    if on == "notebook":
        return {head.replace(" ", "-") for head in heads}
    plain = (re.sub(r"\[([^\]]+)\]\([^)]*\)|`", r"\1", head) for head in heads)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in plain}


def broken_links(text: str, folder: Path, on: str) -> list[str]:
    """Relative links to nowhere, of Markdown that lies in `folder`; code is no link."""
    found = []
    for link in LINK.findall(CODE.sub("", text)):
        file, _, target = unquote(link).partition("#")
        there = not file or (folder / file).exists()
        if target and not file:
            there = target in targets_of_headings(text, on)
        elif target and there and file.endswith(".md"):
            there = target in targets_of_headings((folder / file).read_text(), "page")
        if not link.startswith("https://") and not there:
            found.append(link)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestOnGitHub:
    def test_it_is_valid_and_every_output_can_be_seen_without_a_kernel(self, path):
        nbformat.validate(json.loads(path.read_text()))
        assert "widgets" not in nbformat.read(path, as_version=4).metadata
        for output in outputs(path):
            kinds = set(output.get("data", {"text/plain": ""}))
            pictures = {"image/png", "image/jpeg"}
            assert kinds <= {"text/plain", "text/markdown", "text/html"} | pictures, kinds
            assert len(str(output.get("text", ""))) <= 20_000
            if "image/png" in kinds:
                png = base64.b64decode(output.data["image/png"])
                assert png.startswith(b"\x89PNG") and len(png) <= 400_000

    def test_formulas(self, path):
        for text in cells(path, "markdown"):
            assert not faults_of_math(text)
            html = markdown2html_mistune(text)
            for formula in INLINE.findall(DISPLAYED.sub("", CODE.sub("", text))):
                assert escape(formula, quote=False) in html, formula  # not taken for emphasis

    def test_links_and_folds(self, path):
        text = "\n\n".join(cells(path, "markdown"))
        assert not broken_links(text, FOLDER, "notebook")
        opened = re.findall(r"^<details>\s*<summary>[^<\n]+</summary>\n\n", text, re.M)
        assert len(opened) == text.count("<details>") == text.count("</details>")


def test_links_of_the_pages():
    root = FOLDER.parent
    pages = list(root.glob("*.md"))
    for folder in ("benchmarks", "data", "notebooks", "publish", "vaekit"):
        pages += (root / folder).glob("*.md")
    assert len(pages) >= 7
    for page in pages:
        assert not broken_links(page.read_text(), page.parent, "page"), page


def test_every_claim_has_its_verdict():
    sources = (FOLDER / "SOURCES.md").read_text()
    assert re.findall(r"^\| (C\d+) ", sources, re.M) == [f"C{i}" for i in range(1, 41)]


def test_every_paper_that_is_cited_stands_in_the_sources():
    root = FOLDER.parent
    texts = ["\n".join(cells(path, "markdown")) for path in NOTEBOOKS]
    pages = [p for where in (".", "*") for p in root.glob(f"{where}/*.md")]
    texts += [p.read_text() for p in pages if not p.parent.name.startswith(".")]
    texts += [path.read_text() for path in (root / "vaekit").rglob("*.py")]
    cited = r"([A-Z]\w+) (?:et al\.|and [A-Z]\w+),? \(?((?:19|20)\d\d)"
    found = set(re.findall(cited, " ".join(" ".join(texts).split())))
    listed = set(re.findall(cited, (FOLDER / "SOURCES.md").read_text()))
    assert len(found) > 30 and found <= listed, found - listed


@pytest.mark.parametrize("jobs", [1, 2])
def test_two_notebooks_at_a_time_but_none_before_one_that_it_needs(monkeypatch, jobs):
    begun, ended, most = [], [], []

    def fake(path):
        begun.append(path.name[:2])
        most.append(len(begun) - len(ended))
        if path.name.startswith(("05", "06")):
            assert "04" in ended
        time.sleep(0.2 if path.name.startswith("04") else 0.01)
        ended.append(path.name[:2])
        return path.name

    monkeypatch.setattr(execute, "execute", fake)
    done = list(execute.execute_all(NOTEBOOKS, jobs))
    assert done == [(path, path.name) for path in NOTEBOOKS] and max(most) == jobs


def test_an_error_ends_those_that_wait_as_well(monkeypatch):
    def fake(path):
        if path.name.startswith("04"):
            raise ValueError("broken")
        return path

    monkeypatch.setattr(execute, "execute", fake)
    with pytest.raises(ValueError, match="broken"):
        list(execute.execute_all(NOTEBOOKS, 2))


def test_what_should_not_be_stored_is_found():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell()])
    assert execute.objections(notebook) == ["no figure"]
    for text, name, said in (("see /home/me/x", "stdout", "a path of"), ("ok", "stderr", "error"),
                             ("x" * execute.MAX_BYTES, "stdout", "MB")):  # fmt: skip
        notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text=text, name=name)]
        assert any(said in found for found in execute.objections(notebook)), said
    for text in ("/kaggle/working/a/b", "https://a.org/home/b/c", "/content/sample/x"):
        notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text=text)]
        assert execute.objections(notebook) == ["no figure"], text


def test_a_figure_gets_a_palette_and_a_grey_one_loses_nothing():
    grey = Image.effect_noise((99, 99), 50).convert("RGB")
    noise = Image.frombytes("RGB", (99, 99), random.Random(0).randbytes(3 * 99 * 99))
    for image, smaller in ((grey, True), (noise, False)):
        png = BytesIO()
        image.save(png, "PNG")
        kept = execute.with_palette(png.getvalue())
        assert Image.open(BytesIO(kept)).convert("RGB").tobytes() == image.tobytes()
        assert (len(kept) < len(png.getvalue())) is smaller
        assert (Image.open(BytesIO(kept)).mode == "L") is smaller
