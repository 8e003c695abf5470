"""Execute notebooks in the working folder, as Kaggle's Save & Run All does.

rehearse.py runs this in a sandbox, with the sandbox's own Python. Needs nbclient, nbconvert (which
makes the pages that Kaggle shows) and ipykernel.

    python play.py OUT NOTEBOOK ...
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter


def play(path: Path, out: Path) -> str:
    """Execute one notebook, write it and its page to `out`; returns what it printed.

    CellExecutionError is passed on.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": str(Path.cwd())}},
    )
    client.create_kernel_manager()
    client.km.transport = "ipc"  # no network, not even to itself
    try:
        client.execute()
    finally:
        nbformat.write(notebook, out / path.name)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    (out / f"{path.stem}.html").write_text(page)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return "".join(str(o.get("text", "")) for o in outputs)


def main(out: str, *paths: str) -> int:
    for path in map(Path, paths):
        begun = time.perf_counter()
        try:
            printed = play(path, Path(out))
        except CellExecutionError as error:
            print(f"{path.name} failed:\n{error}")
            return 1
        (Path(out) / f"{path.stem}.txt").write_text(printed)
        print(f"  {path.name:32} {time.perf_counter() - begun:5.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
