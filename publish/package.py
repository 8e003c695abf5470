"""vaekit's own source, read for the generators: which files, in which order.

A file is named as an import names it, without `vaekit.`: "config", "files.cache"; the file that
makes a folder a package is its `__init__`: "__init__", "files.__init__".
"""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, NOTEBOOKS = ROOT / "vaekit", ROOT / "notebooks"
RESULTS, KINDS = PACKAGE / "lessons" / "results", ("json", "png", "safetensors")


def file_names() -> list[str]:
    """Every file of the package."""
    paths = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return [".".join(path.with_suffix("").parts) for path in paths]


def path_of(name: str) -> Path:
    """The file, relative to the package's folder."""
    return Path(*name.split(".")).with_suffix(".py")


def source(name: str) -> str:
    return (PACKAGE / path_of(name)).read_text()


def summary(name: str) -> str:
    """The first sentence of a file's docstring."""
    text = ast.get_docstring(ast.parse(source(name))) or ""
    return text.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")


def imported(node: ast.Import | ast.ImportFrom) -> dict[str, tuple[str, str]]:
    """{local name: (file, name in it)} of what an import takes from vaekit.

    A whole file has the name "": `from vaekit.files import cache` is {"cache": ("files.cache", "")}
    """
    found = {}
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vaekit":
        inside = node.module.split(".")[1:]
        for alias in node.names:
            file = ".".join([*inside, alias.name])
            whole = (PACKAGE / path_of(file)).is_file()
            key = (file, "") if whole else (".".join(inside) or "__init__", alias.name)
            found[alias.asname or alias.name] = key
    elif isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.startswith("vaekit."):
                file = alias.name.removeprefix("vaekit.")
                found[alias.asname or alias.name] = (file, "")
    return found


def files_imported(nodes) -> set[str]:
    """Names of the package's files that the imports among `nodes` ask for."""
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return {file for node in imports for file, _ in imported(node).values()}


def reading_order() -> list[str]:
    """Every file of the package, each after those that it imports as it is loaded: the core before
    the wings where that can be, the `__init__` of the whole last."""
    left = sorted(set(file_names()) - {"__init__"}, key=lambda name: ("." in name, name))
    needs = {name: files_imported(ast.parse(source(name)).body) & set(left) for name in left}
    order = []
    while left:
        ready = [name for name in left if needs[name] <= set(order)]
        if not ready:
            raise ValueError(f"these files import one another in a circle: {', '.join(left)}")
        order.append(ready[0])
        left.remove(ready[0])
    return [*order, "__init__"]


def notebooks() -> list[Path]:
    return sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


def files_used(code: str) -> set[str]:
    """The package's files that `code` imports, or reaches as attributes of `vaekit`."""
    nodes = list(ast.walk(ast.parse(code)))
    attributes = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    return files_imported(nodes) | {
        text.removeprefix("vaekit.") for text in attributes if text.startswith("vaekit.")
    }


def results(code: str) -> dict[str, bytes]:
    """{file name: content} of the measured results in vaekit/lessons/results that `code` draws.

    Wanted is what the code, or a file of the package that it imports, loads by a name in quotes:
    Sweep.load("clinic"), RESULTS / "betas.json", RESULTS.glob("slider_*.safetensors").
    """
    used = files_used(code)
    texts = [code, *(source(name) for name in file_names() if name in used)]
    loads = r'Sweep\.load\("(\w+)"\)|RESULTS(?: / |\.glob\()"([\w.*]+)"'
    quoted = {"".join(found) for text in texts for found in re.findall(loads, text)}
    wanted = quoted | {f"{word}.{ending}" for word in quoted for ending in KINDS}
    found = sorted(f for f in RESULTS.iterdir() if f.suffix.removeprefix(".") in KINDS)
    return {f.name: f.read_bytes() for f in found if any(fnmatch(f.name, w) for w in wanted)}
