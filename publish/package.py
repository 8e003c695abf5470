"""vaekit's own source, read for the generators: which files, in which order."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, NOTEBOOKS = ROOT / "vaekit", ROOT / "notebooks"


def module_imports(tree: ast.Module) -> set[str]:
    """Names of the vaekit files that a file imports as it is loaded."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vaekit":
            inside = node.module.split(".")[1:]
            found |= set(inside) or {alias.name for alias in node.names}
    return found


def reading_order() -> list[str]:
    """Every file of the package, each after those that it imports; `__init__` last."""
    files = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
    graph = {name: module_imports(ast.parse(source(name))) & set(files) for name in files}
    return [*TopologicalSorter(graph).static_order(), "__init__"]


def source(name: str) -> str:
    return (PACKAGE / f"{name}.py").read_text()


def summary(name: str) -> str:
    """The first sentence of a file's docstring."""
    text = ast.get_docstring(ast.parse(source(name))) or ""
    return text.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")


def notebooks() -> list[Path]:
    return sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


def results() -> dict[str, bytes]:
    """{file name: content} of the measured results that the notebooks on sweeps draw."""
    files = sorted(f for f in (PACKAGE / "results").iterdir() if f.suffix in (".json", ".png"))
    return {file.name: file.read_bytes() for file in files}
