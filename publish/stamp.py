"""Write the set-up cell, and the repository's address, into every notebook.

    python publish/stamp.py [owner/name]

Without an address, the present one is kept. Stored outputs are not changed.
"""

import re
import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

# The first code cell of every notebook: the places where vaekit may be. `vaekit.set_up` installs
# everything else that is missing.
SETUP = """\
import glob, sys  # Set-up: vaekit lies in a folder above or beside this notebook, or is attached
kaggle = "* */* datasets/*/* datasets/*/*/* notebooks/*/*".split()  # no deeper: sets are large
for place in (".", "..", "../..", "../../..", "*", *(f"/kaggle/input/{{path}}" for path in kaggle)):
    sys.path += glob.glob(f"{{place}}/vaekit/..")
{take}
print(vaekit.set_up())"""
WITHOUT_ADDRESS = """\
import vaekit  # not found? Attach the repository on Kaggle, or take a file of `make bundle`"""
WITH_ADDRESS = """\
try:
    import vaekit
except ModuleNotFoundError:  # no internet? Attach the repository, or see `make bundle`
    %pip install -q --retries=1 --no-deps https://github.com/{repo}/archive/HEAD.zip
    import vaekit"""

OPEN = {
    "Colab": "https://colab.research.google.com/github/{repo}/blob/HEAD/notebooks/{name}",
    "Kaggle": "https://kaggle.com/kernels/welcome?src=https://github.com/{repo}/blob/HEAD/notebooks/{name}",  # noqa: E501
}


def first_code(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


def setup_cell(repo: str) -> str:
    """The set-up cell of a repository at github.com/`repo`; "" for no address yet."""
    take = WITH_ADDRESS.format(repo=repo) if repo else WITHOUT_ADDRESS
    return SETUP.format(take=take)


def stamped_repo(notebook: nbformat.NotebookNode) -> str:
    """The address in the set-up cell; "" where none was stamped yet."""
    found = re.search(r"https://github.com/(.+)/archive/HEAD.zip", first_code(notebook).source)
    return found.group(1) if found else ""


def stamp(notebook: nbformat.NotebookNode, name: str, repo: str) -> None:
    """Set-up cell and badges of the notebook called `name`; a badge without address leads to #."""
    first_code(notebook).source = setup_cell(repo)
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
