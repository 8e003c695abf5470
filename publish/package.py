"""vaekit's own source, read for the generators: which files, in which order."""

import ast
import re
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, NOTEBOOKS = ROOT / "vaekit", ROOT / "notebooks"
RESULTS, KINDS = PACKAGE / "results", ("json", "png", "safetensors")


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


def mentioned(code: str) -> set[str]:
    """Every name that `code` imports or takes from vaekit, files and what is in them alike."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "vaekit":
            found.add(node.attr)
    return found


def results(code: str) -> dict[str, bytes]:
    """{file name: content} of the measured results in vaekit/results that `code` draws.

    Wanted is what the code, or a file of the package that it imports, loads by a name in quotes:
    Sweep.load("clinic"), RESULTS / "betas.json", RESULTS.glob("slider_*.safetensors").
    """
    texts = [code, *(source(name) for name in reading_order() if name in mentioned(code))]
    loads = r'Sweep\.load\("(\w+)"\)|RESULTS(?: / |\.glob\()"([\w.*]+)"'
    quoted = {"".join(found) for text in texts for found in re.findall(loads, text)}
    wanted = quoted | {f"{word}.{ending}" for word in quoted for ending in KINDS}
    found = sorted(f for f in RESULTS.iterdir() if f.suffix.removeprefix(".") in KINDS)
    return {f.name: f.read_bytes() for f in found if any(fnmatch(f.name, w) for w in wanted)}
