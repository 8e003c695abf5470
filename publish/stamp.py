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
import glob, sys  # Set-up: vaekit lies near this notebook, or is attached to it on Kaggle

near = [".", "..", "../..", "*"]
attached = ["*", "*/*", "datasets/*/*", "datasets/*/*/*", "notebooks/*/*"]
for place in near + ["/kaggle/input/" + kind for kind in attached]:
    sys.path += glob.glob(place + "/vaekit/..")
{take}
print(vaekit.set_up())"""
FOLDED = {"jupyter": {"source_hidden": True}, "_kg_hide-input": True, "cellView": "form"}
WITHOUT_ADDRESS = """\
import vaekit  # not found? On Kaggle attach the repository, or use a file of `make bundle`"""
WITH_ADDRESS = """\
try:
    import vaekit
except ModuleNotFoundError:  # no internet? Attach the repository, or see `make bundle`
    %pip install -q --retries=1 --no-deps https://github.com/{repo}/archive/HEAD.zip
    import vaekit"""

SHIELD = "[![{host}](https://img.shields.io/badge/{host}-open-{colour})]({url})"
BADGES = [  # where a notebook can be opened: host, colour, address
    ("Colab", "orange", "https://colab.research.google.com/github/{file}"),
    ("Kaggle", "blue", "https://kaggle.com/kernels/welcome?src=https://github.com/{file}"),
]
BADGE_LINE = re.compile(r"\s*^\[!\[.*$", re.M)


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
    """Set-up cell and badges of the notebook called `name`; no badges without an address."""
    cell = first_code(notebook)
    cell.source = setup_cell(repo)
    cell.metadata |= FOLDED
    title = notebook.cells[0]
    title.source = BADGE_LINE.sub("", title.source)
    if repo:
        title.source += "\n\n" + badges(repo, name)


def badges(repo: str, name: str) -> str:
    file = f"{repo}/blob/HEAD/notebooks/{name}"
    found = [SHIELD.format(host=h, colour=c, url=u.format(file=file)) for h, c, u in BADGES]
    return " ".join(found)


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
