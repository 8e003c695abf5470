"""The files that `publish/` makes of the notebooks. `make rehearse` tests them in sandboxes."""

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bundle
import editions
import extract
import nbformat
import numpy as np
import onefile
import package
import pytest
import stamp
import weights
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = package.notebooks()
FIRST = next(path for path in NOTEBOOKS if path.stem == "01_data_and_clahe")
TRAINING = next(path for path in NOTEBOOKS if path.stem == "04_two_phase_training")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_of(notebook) -> str:
    return "\n".join(c.source for c in notebook.cells if c.cell_type == "code")


def sources(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.py")}


# ---- stamp ---------------------------------------------------------------------------------------


@each
def test_the_set_up_cell_is_the_stamped_one(path):
    notebook = read(path)
    cell = stamp.first_code(notebook).source
    assert cell == stamp.setup_cell(stamp.stamped_repo(notebook))


def test_stamping_writes_cell_and_badges_and_keeps_outputs():
    notebook, before = read(FIRST), read(FIRST)
    stamp.stamp(notebook, "01_data_and_clahe.ipynb", "someone/something")
    assert stamp.stamped_repo(notebook) == "someone/something"
    title = notebook.cells[0].source
    assert title.count("someone/something/blob/HEAD/notebooks/01_data_and_clahe.ipynb)") == 2
    assert [c.get("outputs") for c in notebook.cells] == [c.get("outputs") for c in before.cells]
    assert bundle.bundle(notebook).cells  # a line for pip is no Python
    stamp.stamp(notebook, "01_data_and_clahe.ipynb", "")
    assert notebook.cells == before.cells and stamp.stamped_repo(notebook) == ""


# ---- bundle --------------------------------------------------------------------------------------


def test_a_bundle_holds_the_package_and_imports_it_without_a_checkout(tmp_path):
    made = bundle.bundle(read(TRAINING))
    nbformat.validate(made)
    assert not any(c.get("outputs") for c in made.cells)
    begin = next(c.source for c in made.cells if c.source.startswith("import pathlib"))
    subprocess.run([sys.executable, "-c", begin], cwd=tmp_path, check=True)
    for cell in made.cells:
        if cell.source.startswith("%%writefile"):
            head, text = cell.source.split("\n", 1)
            (tmp_path / head.split()[1]).write_text(text + "\n")
    assert sources(tmp_path / "bundled" / "vaekit") == sources(ROOT / "vaekit")
    code = f"{begin}\nimport vaekit.files.cache\n"
    code += "print(vaekit.__file__, vaekit.files.cache.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    inside = tmp_path / "bundled" / "vaekit"
    assert run.stdout.split() == [f"{inside}/__init__.py", f"{inside}/files/cache.py"], run.stderr


@each
def test_a_bundle_holds_the_results_that_its_notebook_names_and_no_others(
    path, tmp_path, monkeypatch
):
    notebook = read(path)
    code = code_of(notebook)
    named = {a or b for a, b in re.findall(r'Sweep\.load\("(\w+)"\)|RESULTS / "(\w+)\.', code)}
    cells = [c for c in bundle.bundle(notebook).cells if "zlib.decompress" in c.source]
    (tmp_path / "bundled/vaekit/lessons").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for cell in cells:
        exec(cell.source, {"pathlib": __import__("pathlib")})
    written = {p: p.read_bytes() for p in tmp_path.glob("bundled/vaekit/lessons/results/*")}
    assert {p.name: data for p, data in written.items()} == package.results(code)
    assert {p.stem for p in written if p.suffix == ".json"} == named


def test_results_are_cut_to_what_the_code_draws(tmp_path, monkeypatch):
    row = {"psnr": 20.0, "curve": [1], "spectrum": [2]}
    (tmp_path / "sharp.json").write_text(json.dumps({"name": "sharp", "rows": [row]}))
    (tmp_path / "sharp.webp").write_bytes(b"pictures")
    monkeypatch.setattr(package, "RESULTS", tmp_path)
    found = package.results('swept = sweeps.Sweep.load("sharp")\nx = row["curve"]')
    assert list(found) == ["sharp.json"]
    assert json.loads(found["sharp.json"])["rows"] == [{"psnr": 20.0, "curve": [1]}]
    found = package.results('swept = sweeps.Sweep.load("sharp")\nswept.pictures("a")')
    assert list(found) == ["sharp.json", "sharp.webp"]


def test_files_come_after_what_they_import(tmp_path, monkeypatch):
    order = package.reading_order()
    assert order[-1] == "__init__" and order.index("config") < order.index("train")
    assert order.index("files.__init__") < order.index("files.sources") < order.index("keep.run")
    monkeypatch.setattr(package, "PACKAGE", tmp_path)
    files = {"__init__": "", "a": "from vaekit.b import c", "b/__init__": "",
             "b/c": "def later():\n    from vaekit import a"}  # fmt: skip
    (tmp_path / "b").mkdir()
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert package.reading_order() == ["b.__init__", "b.c", "a", "__init__"]
    (tmp_path / "b" / "c.py").write_text("import vaekit.a")
    with pytest.raises(ValueError, match="in a circle: a, b.c"):
        package.reading_order()


@pytest.mark.parametrize("repo", ["", "someone/something"])
def test_links_lead_somewhere_or_are_words(repo):
    links = "[next](02_model.ipynb), [back](../README.md), [x](#a)![look](thumbnails/01.webp)"
    cell = nbformat.v4.new_markdown_cell(links)
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell()])
    stamp.stamp(notebook, "01.ipynb", repo)
    text = bundle.blank(notebook).cells[0].source.split("\n\n[![")[0]
    there = "https://github.com/someone/something"
    here = f"{there}/blob/HEAD"
    wanted = f"[next]({here}/notebooks/02_model.ipynb), [back]({here}/README.md), [x](#a)"
    wanted += f"![look]({there}/raw/HEAD/notebooks/thumbnails/01.webp)"
    assert text == (wanted if repo else "next, back, [x](#a)look")


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Everything that is uploaded: what `make bundle` and `make editions` write."""
    out = tmp_path_factory.mktemp("dist")
    photos = tmp_path_factory.mktemp("my photos")
    Image.new("RGB", (70, 64), (250, 20, 0)).save(photos / "a.png")
    bundle.main(["--out", str(out), "--user", "me", "--images", str(photos)])
    editions.main(["--out", str(out)])
    return out


def test_kaggle_takes_whatever_is_uploaded(dist):
    sizes = {str(p.relative_to(dist)): p.stat().st_size for p in dist.rglob("*.ipynb")}
    assert len(sizes) == 4 * len(NOTEBOOKS) + 4
    assert {name: size for name, size in sizes.items() if size >= bundle.MAX_BYTES} == {}


def test_a_push_to_kaggle_says_all_that_matters(dist):
    folders = sorted((dist / "kaggle").iterdir())
    assert [f.name for f in folders] == [*(p.stem for p in NOTEBOOKS), onefile.NAME, onefile.OWN]
    found = [json.loads((folder / "kernel-metadata.json").read_text()) for folder in folders]
    for folder, metadata in zip(folders, found, strict=True):
        assert (folder / metadata["code_file"]).is_file()
        assert metadata["id"] == "me/" + re.sub(r"\W+", "-", metadata["title"].lower())
        assert metadata["machine_shape"] == "NvidiaTeslaT4" and metadata["enable_gpu"] is True
        assert metadata["enable_internet"] is True and metadata["is_private"] is True
        films = [] if folder.name == onefile.OWN else ["paultimothymooney/chest-xray-pneumonia"]
        assert metadata["dataset_sources"] == films
    chain = [metadata["kernel_sources"] for metadata in found[:-2]]
    assert chain == [[], *([metadata["id"]] for metadata in found[:-3])]


def test_a_wrong_folder_of_images_is_said_before_anything_is_written(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bundle.main(["--out", str(tmp_path / "dist"), "--images", "~/no such folder"])
    assert "no such folder" in capsys.readouterr().err and not (tmp_path / "dist").exists()


# ---- one file ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one():
    return onefile.build()


def test_one_file_has_the_main_line_in_order(one):
    text = "\n".join(cell.source for cell in one.cells)
    order = ("# A VAE", "import torch", "## Configuration", "class Config", "## Data set",
             "def apply_clahe", "def load_data", "display(show_rows(shown", "## Model arch",
             "class VAE(", "## Loss", "def vae_loss", "model = VAE(cfg)", "## Training func",
             "class Trainer", "train_until(cfg.epochs_phase1)", "train_until(cfg.num_epochs)",
             "display(plot_history", "## Generate", "z = fit_sampler(mu", "\"PSNR, dB\":",
             "## What to take")  # fmt: skip
    places = [text.index(mark) for mark in order]
    assert places == sorted(places)
    nbformat.validate(one)


def test_one_file_knows_every_name_it_uses(one):
    """ruff finds names that nobody defines, as running every branch would."""
    check = ["-m", "ruff", "check", "--isolated", "--select", "F821,F811,E9", "--stdin-filename"]
    code = code_of(one)
    run = subprocess.run([sys.executable, *check, "one.py", "-"], input=code, text=True,
                         capture_output=True)  # fmt: skip
    assert run.returncode == 0, run.stdout
    assert "vaekit import" not in code and "import vaekit" not in code


def test_one_file_runs_by_itself_and_goes_on_where_it_ended(one, tmp_path):
    """In the smoke profile; the second time it finds its own run and trains nothing. The sample
    that it would draw lies there: drawing it takes longer than the rest."""
    shutil.copytree(ROOT / "data/chest_xray_phantom", tmp_path / "chest_xray_phantom")
    (tmp_path / "vaekit.py").write_text("raise ImportError('the one file needs no package')")
    said = play(code_of(one), tmp_path, times=2, PYTHONPATH=str(tmp_path))
    first, second = said.split("torch ", 2)[1:]
    assert "phase 1 ends" in first and "epoch   3/3" in first and "going on" not in first
    assert "going on after epoch 3 of 3" in second and "epoch   " not in second


def test_one_file_has_no_formula_of_its_own(one):
    """Every function and class in it is the package's, but for the two that save and go on."""
    ours = {node.name for name in package.reading_order() for node in
            ast.parse(package.source(name)).body if hasattr(node, "name")}  # fmt: skip
    theirs = {node.name for node in ast.parse(code_of(one)).body if hasattr(node, "name")}
    files = "|".join(name.split(".")[-1] for name in package.reading_order())
    renamed = {name for name in theirs if re.sub(rf"_({files})$", "", name) in ours}
    assert theirs - ours - renamed == {"save", "train_until"}


def play(code: str, folder: Path, times: int = 1, **environment) -> str:
    """What the notebook's code prints in `folder`, where its Kaggle inputs are in input/."""
    code = code.replace('Path("/kaggle/input")', 'Path("input")')
    (folder / "own.py").write_text(f"from IPython.display import display\n{code}")
    start = f"import runpy\nfor _ in range({times}):\n    runpy.run_path('own.py')"
    given = {"VAEKIT_PROFILE": "smoke", "VAEKIT_PROGRESS": "lines", "MPLBACKEND": "Agg",
             "VAEKIT_CACHE": str(folder / "cache"), "VAEKIT_DATA": ""}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", start], cwd=folder, capture_output=True,
                          text=True, env=os.environ | given | environment)  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("mode, mount", [("RGB", "input/datasets/me/my photos"), ("L", "mine")])
def test_one_file_for_anyones_images_finds_them_and_trains(tmp_path, mode, mount):
    """It is made where the images lie elsewhere, holds no path, and does not talk of lungs."""
    rng = np.random.default_rng(0)
    for i in range(20):
        file = tmp_path / mount / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
        small.resize((320, 240)).convert(mode).save(file)
    made = onefile.build(tmp_path / mount)
    words = "\n".join(c.source for c in made.cells if c.cell_type == "markdown")
    (config,) = [c.source for c in made.cells if "\ncfg = Config(" in c.source]
    code = code_of(made)
    assert not re.search(r"film|lung|patients|X-ray|chest|clinical|CLAHE|[Pp]hase", words)
    assert not re.search(r"film|lung|heart", config)
    assert str(tmp_path) not in code + words and "thymus" not in code
    assert f"in_channels={len(mode)}" in config and "image_size=128" in config
    place = {} if mount.startswith("input") else {"VAEKIT_DATA": mount}
    text = play(code, tmp_path, **place)
    assert f"{'VAEKIT_DATA' if place else 'kaggle input'}, {mount}" in text
    assert "epoch   2/2" in text and re.search(r"network +PCA, \d+\nPSNR, dB +\d", text)


def test_extract_follows_imports_into_the_wings_and_renames_what_two_files_share(
    tmp_path, monkeypatch
):
    files = {
        "__init__": "", "core": "from vaekit.place import device\nCOUNT = 2\n\n"
        "COUNT += 0\nTABLE = {}\nTABLE['two'] = COUNT\n\n"
        "class Kept:\n    number = TABLE['two']\n\ndef _get():\n    return device.choose()\n\n"
        "def first():\n    return _get()",
        "place/__init__": "", "place/device": "import math\n\ndef choose():\n    return math.pi",
        "files/__init__": "", "files/two": "from vaekit.core import COUNT\n\nclass Kept:\n"
        "    number = 5 * COUNT\n\ndef _get():\n    from vaekit import core\n\n"
        "    return Kept.number, core.Kept.number\n\n"
        "def second():\n    from vaekit.place.device import choose\n\n"
        "    return *_get(), choose()\n\ndef third():\n    import vaekit\n    return vaekit",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(package, "PACKAGE", tmp_path)
    cut, notebook = extract.Extract(), {}
    text = cut.take("core.first", "files.two.second")
    exec(f"{extract.grouped(cut.imports)}\n{text}", notebook)
    assert notebook["first"]() == math.pi and notebook["second"]() == (10, 2, math.pi)
    assert cut.take("files.two.second") == "" and "vaekit" not in text  # nothing twice
    with pytest.raises(LookupError, match="vaekit/files/two.py does not define 'nothing'"):
        cut.take("files.two.nothing")
    with pytest.raises(LookupError, match="vaekit has no file files.three"):
        cut.take("files.three.first")


# ---- editions ------------------------------------------------------------------------------------


@each
def test_a_student_gets_no_solution_and_a_hint(path):
    source, made = read(path), editions.student(read(path))
    nbformat.validate(made)
    (solution,) = re.findall(r"```python\n(.*?)\n```", editions.tagged(source, "solution").source,
                             re.S)  # fmt: skip
    text = "\n".join(cell.source for cell in made.cells)
    body = solution.split("\n", 1)[1]
    assert body not in text and "Solution" not in text and "Hint" in text
    assert not any(c.get("outputs") for c in made.cells)
    assert editions.tagged(source, "exercise").source in text  # the stub, which runs unfilled
    numbers = [number for number, _ in editions.exercises(source)]
    assert len(numbers) >= 3
    assert all(f"\n{number}. *" in made.cells[-2].source for number in numbers)  # room for each


@each
def test_a_teacher_gets_minutes_solutions_and_a_rubric(path):
    made = editions.teacher(read(path), path.stem)
    nbformat.validate(made)
    assert not any(c.get("outputs") for c in made.cells)
    stub, source = editions.tagged(made, "exercise").source, editions.tagged(read(path), "exercise")
    assert stub != source.source and "yours" in stub and "your turn" not in stub
    ast.parse(stub)
    text = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    headings = [heading for _, heading, *_ in editions.sections(read(path))]
    timed = r"\n\n\*\d+ minutes?(, \d+ s of them computing)?\*$"
    for heading in headings:  # as it was: links lead to it
        assert re.search(f"^{re.escape(heading)}{timed}", text, re.M), heading
    assert "| points |" in made.cells[-1].source


def test_a_derivation_is_not_marked_as_a_run():
    kinds = list(editions.kinds(read(FIRST)).values())
    assert kinds == ["predict", "predict", "derive", "find", "fill in"]


def test_a_teachers_minutes_hold_what_the_stored_run_measured():
    notebook = read(FIRST)
    for cell in notebook.cells:
        cell.metadata.pop("seconds", None)
    plain = editions.sections(notebook)
    where = next(i for i, cell in enumerate(notebook.cells) if i > plain[-3][0]
                 and cell.cell_type == "code")  # fmt: skip
    notebook.cells[where].metadata["seconds"] = 240.0
    measured = editions.sections(notebook)
    assert not any(seconds for *_, seconds in plain)
    assert measured[-3][2:] == (plain[-3][2] + 4, 240.0) and measured[0] == plain[0]
    assert "the stored run computed 4.0 (vaekit " in editions.rubric(notebook, "01")
    made = editions.teacher(notebook, "01")
    assert any("minutes, 240 s of them computing*" in cell.source for cell in made.cells)
    assert "seconds" not in str([c.metadata for c in editions.student(notebook).cells])


def test_a_training_that_the_stored_run_found_finished_is_named():
    notebook = read(TRAINING)
    assert editions.found_finished(notebook) == ""  # trained there, then loaded again
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "epoch   1/" in output.get("text", ""):
                output.text = "finished run found: 20260101_000000-chest_xray, 80 epochs; loaded"
    assert editions.found_finished(notebook) == "3 trainings"
    assert "Not counted: 3 trainings that it found finished" in editions.rubric(notebook, "04")


def test_a_solution_of_another_function_is_an_error():
    with pytest.raises(ValueError, match="another function"):
        editions.filled("def mine():\n    pass\n\n\n", "```python\ndef yours():\n    pass\n```")


# ---- weights -------------------------------------------------------------------------------------


def test_the_list_of_weights_is_current():
    assert weights.table() in weights.README.read_text()
