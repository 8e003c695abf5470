"""Write the set-up cell, and the repository's address, into every notebook.

    python publish/stamp.py [owner/name]

Without an address the one that is there stays. Stored outputs stay as they are.
"""

import re
import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

# The first code cell of every notebook, at most 12 lines: all that a notebook knows about where
# vaekit may be. What is missing besides is the business of `vaekit.set_up`.
SETUP = """\
# Set-up: finds vaekit or installs it, then what else is missing; never torch, torchvision, numpy, cv2
import glob, importlib.util, pathlib, subprocess, sys
REPO = "{repo}"  # owner/name on GitHub, written here by `make stamp`
if getattr(importlib.util.find_spec("vaekit"), "origin", None) is None:
    up = [glob.escape(str(p)) for p in (pathlib.Path.cwd(), *pathlib.Path.cwd().parents)]
    kaggle = ["/kaggle/" + p for p in ("input/*", "input/datasets/*/*", "input/notebooks/*/*", "usr/lib/*", "usr/lib/notebooks/*/*")]
    found = [f for p in (*up, up[0] + "/*", *kaggle, *(k + "/*" for k in kaggle)) for f in glob.glob(p + "/vaekit/__init__.py")]
    sys.path[:0] = [str(pathlib.Path(f).parents[1]) for f in found[:1]]
    if not found and (not REPO or subprocess.call([sys.executable, "-m", "pip", "install", "-q", "--retries=1", "--no-deps", f"https://github.com/{{REPO}}/archive/HEAD.zip"])):
        raise ModuleNotFoundError("vaekit is not here" + f" and cannot be fetched from {{REPO}}" * bool(REPO) + ". Ways out: run this notebook inside its repository; switch the internet on and pip install the repository; on Kaggle, attach the repository as a data set, or upload the edition from `make bundle`, which needs nothing else")
import vaekit
print(vaekit.set_up())
"""  # noqa: E501

OPEN = {
    "Colab": "https://colab.research.google.com/github/{repo}/blob/HEAD/notebooks/{name}",
    "Kaggle": "https://kaggle.com/kernels/welcome?src=https://github.com/{repo}/blob/HEAD/notebooks/{name}",  # noqa: E501
}


def first_code(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


def stamped_repo(notebook: nbformat.NotebookNode) -> str:
    """The address in the set-up cell; "" where none was stamped yet."""
    found = re.search(r'^REPO = "(.*?)"', first_code(notebook).source, re.M)
    return found.group(1) if found else ""


def stamp(notebook: nbformat.NotebookNode, name: str, repo: str) -> None:
    """Set-up cell and badges of the notebook called `name`; a badge without address leads to #."""
    first_code(notebook).source = SETUP.format(repo=repo).rstrip()
    title = notebook.cells[0]
    for badge, url in OPEN.items():
        target = url.format(repo=repo, name=name) if repo else "#"
        pattern = rf"(\[!\[{badge}\]\([^)]*\)\])\([^)]*\)"
        title.source = re.sub(pattern, rf"\1({target})", title.source)


def main(arguments: list[str]) -> None:
    repo = arguments[0] if arguments else None
    if repo and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise SystemExit(f"REPO={repo} is not owner/name")
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        stamp(notebook, path.name, stamped_repo(notebook) if repo is None else repo)
        nbformat.write(notebook, path)
        print(f"{path.name}: {stamped_repo(notebook) or 'no address yet'}")


if __name__ == "__main__":
    main(sys.argv[1:])
