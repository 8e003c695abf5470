"""Execute notebooks in order: what `make run` and `make notebooks` call.

    python notebooks/execute.py [NAME ...] [--out DIR] [--jobs N] [--store]

Executes the named notebooks (default: 00 to 06) with the Python that runs this script, two at a
time, which share the cores, and writes them and one HTML report with every figure to DIR. --store
executes one at a time, and also writes them back, outputs included, after checking size, private
paths, errors and figures. The profile is VAEKIT_PROFILE's.
"""

import argparse
import os
import re
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

HERE = Path(__file__).resolve().parent
MAX_BYTES = 1_000_000
FEW_COLOURS = 4096  # a drawing with smooth edges has fewer, a colour photograph more
WIDGET = "application/vnd.jupyter.widget-view+json"
RUNS_OF = {"05": "04", "06": "04"}  # notebooks that look at the runs of another
PRIVATE_PATH = re.compile(r"(?<![\w/.:])/(?!kaggle|content|dev)[a-z]+/[\w.-]+/")


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; prints its seconds. CellExecutionError carries it as
    `.notebook`, and `.path`."""
    begun = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=7200, kernel_name="python3", resources={"metadata": {"path": str(HERE)}},
        record_timing=True, extra_arguments=["--log-level=ERROR"],
    )  # fmt: skip
    try:
        client.execute()
    except CellExecutionError as error:
        error.notebook, error.path = notebook, path
        raise
    print(f"{path.name:32} {time.perf_counter() - begun:6.0f} s", flush=True)
    return tidy(notebook)


def execute_all(paths: list[Path], jobs: int) -> Iterator[tuple[Path, nbformat.NotebookNode]]:
    """Each notebook as `execute` returns it, `jobs` at a time, no sooner than one that it needs."""
    begun = {}

    def in_turn(path):
        if needed := begun.get(RUNS_OF.get(path.name[:2])):
            needed.result()
        return execute(path)

    with ThreadPoolExecutor(jobs) as pool:
        # those that others wait for come first: nobody waits for one that has not begun
        for path in sorted(paths, key=lambda path: path.name[:2] not in RUNS_OF.values()):
            begun[path.name[:2]] = pool.submit(in_turn, path)
        try:
            for path in paths:
                yield path, begun[path.name[:2]].result()
        finally:
            pool.shutdown(cancel_futures=True)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Join the pieces of a stream, and keep each cell's time in seconds. Drop metadata that differs
    between machines, and widgets, which need a kernel. Figures get a palette."""
    for cell in notebook.cells:
        joined = []
        if times := cell.metadata.pop("execution", None):
            begun, *_, ended = sorted(map(datetime.fromisoformat, times.values()))
            cell.metadata["seconds"] = round((ended - begun).total_seconds(), 1)
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                continue
            if png := output.get("data", {}).get("image/png"):
                output.data["image/png"] = b64encode(with_palette(b64decode(png))).decode()
            same = joined and output.output_type == joined[-1].output_type == "stream"
            if same and output.name == joined[-1].name:
                joined[-1].text += output.text
            else:
                joined.append(output)
        if cell.cell_type == "code":
            cell.outputs = joined
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })  # fmt: skip
    return notebook


def with_palette(png: bytes) -> bytes:
    """The figure in at most 256 colours, which is smaller; `png` itself if it has too many. Grey
    pictures lose nothing: they are stored as grey, which takes a third less than a palette."""
    image = Image.open(BytesIO(png)).convert("RGB")
    grey = image.convert("L")
    if grey.convert("RGB").tobytes() == image.tobytes():
        small = grey
    elif image.getcolors(FEW_COLOURS) is None:
        return png
    else:
        small = image.quantize(256)
    out = BytesIO()
    small.save(out, "PNG", optimize=True)
    return min(out.getvalue(), png, key=len)


def objections(notebook: nbformat.NotebookNode) -> list[str]:
    """Why this notebook should not be stored: size, private paths, errors, no figure."""
    text = nbformat.writes(notebook)
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    printed = "".join(str(o.get("text", "")) for o in outputs)
    found = []
    if len(text) > MAX_BYTES:
        found.append(f"{len(text) / 1e6:.1f} MB")
    if match := PRIVATE_PATH.search(printed):
        found.append(f"a path of this machine: {match.group()}")
    if any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs):
        found.append("an error or a warning among the outputs")
    if not any("image/png" in o.get("data", {}) for o in outputs):
        found.append("no figure")
    return found


def keep_figures(notebook: nbformat.NotebookNode) -> None:
    """The figure of a cell tagged `readme:NAME.png` as notebooks/NAME.png."""
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            if tag.startswith("readme:"):
                shown = next(o.data for o in cell.outputs if "image/png" in o.get("data", {}))
                (HERE / tag.removeprefix("readme:")).write_bytes(b64decode(shown["image/png"]))


def report(notebooks: dict[str, nbformat.NotebookNode], path: Path) -> None:
    """Text and figures of all notebooks in one HTML file, code left out."""
    from nbconvert import HTMLExporter

    together = nbformat.v4.new_notebook()
    together.cells = [cell for notebook in notebooks.values() for cell in notebook.cells]
    for i, cell in enumerate(together.cells):
        cell.id = f"cell-{i}"
    together.metadata = {"title": "vaekit"}
    html, _ = HTMLExporter(exclude_input=True).from_notebook_node(together)
    path.write_text(html)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of file names, such as 03")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time; default: 2")
    parser.add_argument("--store", action="store_true", help="write the outputs back")
    args = parser.parse_args()
    wanted = tuple(args.names) or tuple(f"0{i}" for i in range(7))
    paths = [p for p in sorted(HERE.glob("[0-9]*.ipynb")) if p.name.startswith(wanted)]
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("VAEKIT_RUNS", str(out / "runs"))
    os.environ.setdefault("VAEKIT_PROGRESS", "lines")
    os.environ.pop("MPLBACKEND", None)  # "Agg" would keep every figure out of the notebooks
    jobs = 1 if args.store else max(1, min(args.jobs, os.cpu_count() or 1))
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str((os.cpu_count() or 1) // jobs))
    done, start = {}, time.perf_counter()
    try:
        for path, notebook in execute_all(paths, jobs):
            nbformat.write(notebook, out / path.name)
            done[path.name] = notebook
            if args.store:
                if found := objections(notebook):
                    print(f"{path.name} is not fit to be stored: {'; '.join(found)}")
                    return 1
                nbformat.write(notebook, path)
                keep_figures(notebook)
    except CellExecutionError as error:
        nbformat.write(error.notebook, out / error.path.name)
        print(f"{error.path.name} failed:\n{error}\nas far as it came: {out / error.path.name}")
        return 1
    report(done, out / "report.html")
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(done)} notebooks in {minutes:.1f} minutes; executed notebooks: {out}")
    print(f"report with every figure: {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
