"""`make bundle`: every notebook as one file that needs no checkout, and ready for Kaggle.

    python publish/bundle.py [--out dist] [--user KAGGLE_NAME]

DIR/<notebook>.ipynb        the notebook, with the whole package in extra cells
DIR/vae_chest_xray.ipynb    the main line in one readable notebook (see onefile.py)
DIR/vae_images.ipynb        the same for the images in the folder that --images names
DIR/kaggle/<name>/          the same files, each with the kernel-metadata.json for
                            `kaggle kernels push -p DIR/kaggle/<name>`
"""

import argparse
import base64
import json
import re
import shutil
import zlib
from pathlib import Path

import nbformat
import onefile
import package
import stamp
from nbformat.v4 import new_code_cell, new_markdown_cell

FOLDER = "bundled"  # where a bundle writes the package; never `vaekit`: that may be a checkout
MAX_BYTES = 900_000  # Kaggle refuses a notebook of 1,000,000
KERMANY = "paultimothymooney/chest-xray-pneumonia"
NOBODY = "INSERT_KAGGLE_USERNAME_HERE"
FOLDED = stamp.FOLDED | {"tags": ["package"]}

ABOUT = """\
## The package

This file needs nothing but itself and what Kaggle and Colab have installed. The next {count} cells
hold the package `vaekit`, file by file, and write it to the folder `{folder}/`; the lesson begins
after them. Read one when the lesson mentions it. After you change one, run it and restart the
kernel: Python keeps what it has imported.

{table}"""
BEGIN = """\
import pathlib
import sys

for name in {folders}:
    pathlib.Path("{folder}", name).mkdir(parents=True, exist_ok=True)
sys.path.insert(0, str(pathlib.Path("{folder}").resolve()))"""
PHANTOMS = """\
from vaekit.files import sources
from vaekit.files import phantom

if not sources.BUNDLE.is_dir():
    phantom.write_bundle(sources.BUNDLE, films=phantom.SAMPLE)"""

SET_UP = """\
import vaekit

print(vaekit.set_up())"""
RESULTS = """\
import base64
import zlib

# What was measured or trained before, as the lesson reads it: files, compressed, in letters
for name, text in {files!r}.items():
    path = pathlib.Path("{folder}/vaekit/lessons/results", name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zlib.decompress(base64.b85decode(text)))"""


def bundle(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the whole package in cells before the set-up cell, without outputs."""
    names = package.reading_order()
    paths = {name: package.path_of(name).as_posix() for name in names}
    table = "\n".join(f"- `{paths[name]}`: {package.summary(name)}" for name in names)
    about = ABOUT.format(count=len(names), folder=FOLDER, table=table)
    folders = sorted({str(Path("vaekit", path).parent) for path in paths.values()})
    begin = BEGIN.format(folder=FOLDER, folders=json.dumps(folders))
    cells = [new_markdown_cell(about), new_code_cell(begin)]
    for name in names:
        text = f"%%writefile {FOLDER}/vaekit/{paths[name]}\n{package.source(name)}"
        cells.append(new_code_cell(text.rstrip("\n"), metadata=FOLDED))
    lesson = notebook.cells[notebook.cells.index(stamp.first_code(notebook)) + 1 :]
    code = "\n".join(cell.source for cell in lesson if cell.cell_type == "code")
    files = {
        name: base64.b85encode(zlib.compress(content, 9)).decode()
        for name, content in package.results(code).items()
    }
    if files:
        text = RESULTS.format(files=files, folder=FOLDER)
        cells.append(new_code_cell(text, metadata=FOLDED))
    if any("BUNDLE" in cell.source for cell in notebook.cells):
        cells.append(new_code_cell(PHANTOMS))
    for i, cell in enumerate(cells):
        cell.id = f"package-{i:02}"
    made = blank(notebook)
    first = made.cells.index(stamp.first_code(made))
    made.cells[first].source = SET_UP
    made.cells[first:first] = cells
    return made


def blank(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without outputs; links to other notebooks become web addresses, or plain words where
    no address was stamped."""
    copy, repo = nbformat.from_dict(json.loads(json.dumps(notebook))), stamp.stamped_repo(notebook)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("seconds", None)  # of the run whose outputs these were
        elif cell.cell_type == "markdown":
            cell.source = re.sub(
                r"(!?)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)",
                lambda link: _absolute(link, repo),
                cell.source,
            )
    return copy


def _absolute(link: re.Match, repo: str) -> str:
    picture, text, target = link.groups()
    inside = target.removeprefix("../") if target.startswith("../") else f"notebooks/{target}"
    kind = "raw" if picture else "blob"
    return f"{picture}[{text}](https://github.com/{repo}/{kind}/HEAD/{inside})" if repo else text


def kernel_metadata(
    name: str, user: str, before: str | None = None, data: tuple = (KERMANY,)
) -> dict:
    """The metadata for `kaggle kernels push`; `before`: the notebook whose output is attached;
    `data`: the data sets that are."""

    def title(stem):
        return f"vaekit {stem.replace('_', ' ')}"

    def slug(stem):  # Kaggle derives it from the title, so it must be just this
        return f"{user}/{title(stem).replace(' ', '-').lower()}"

    return {
        "id": slug(name),
        "title": title(name),
        "code_file": f"{name}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "machine_shape": "NvidiaTeslaT4",
        "enable_internet": True,
        "dataset_sources": list(data),
        "competition_sources": [],
        "kernel_sources": [slug(before)] if before else [],
        "model_sources": [],
    }


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Without line breaks in the JSON, and print its size."""
    nbformat.validate(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook, ensure_ascii=False, separators=(",", ":")))
    size = path.stat().st_size
    print(f"{size:>9,} bytes  {path}" + "  TOO LARGE for Kaggle" * (size >= MAX_BYTES))


def write(notebook: nbformat.NotebookNode, out: Path, name: str, metadata: dict) -> None:
    save(notebook, out / f"{name}.ipynb")
    folder = out / "kaggle" / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / f"{name}.ipynb", folder)
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("dist"))
    parser.add_argument("--user", default="", help="on Kaggle; default: owner of the stamped REPO")
    parser.add_argument("--images", help="a folder: also write a one-file notebook for its images")
    args = parser.parse_args(arguments)
    own = {}
    if args.images:
        try:
            own[onefile.OWN] = onefile.build(Path(args.images).expanduser()), ()
        except FileNotFoundError as error:
            parser.error(f"--images: {error}")
    made = {onefile.NAME: (onefile.build(), (KERMANY,)), **own}
    before = None
    for path in package.notebooks():
        notebook = nbformat.read(path, as_version=4)
        user = args.user or stamp.stamped_repo(notebook).split("/")[0] or NOBODY
        write(bundle(notebook), args.out, path.stem, kernel_metadata(path.stem, user, before))
        before = path.stem
    for name, (notebook, data) in made.items():
        write(notebook, args.out, name, kernel_metadata(name, user, data=data))
    alone = " and ".join(f"{name}.ipynb" for name in made)
    print(
        f"{len(package.notebooks())} bundles, and {alone}, each in one file, in {args.out};"
        f" for Kaggle: kaggle kernels push -p {args.out}/kaggle/<name>"
    )
    if user == NOBODY:
        print(f"say --user, or put your name for {NOBODY} into each kernel-metadata.json")


if __name__ == "__main__":
    main()
