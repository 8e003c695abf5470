"""Reads vaekit's source for the generators: its files, and the order in which they import.

A file is named as an import names it, without `vaekit.`: "config", "files.cache"; the file that
makes a folder a package is its `__init__`: "__init__", "files.__init__".
"""

import ast
import json
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, NOTEBOOKS = ROOT / "vaekit", ROOT / "notebooks"
RESULTS = PACKAGE / "lessons" / "results"


def file_names() -> list[str]:
    """Every file of the package."""
    paths = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return [".".join(path.with_suffix("").parts) for path in paths]


def path_of(name: str) -> Path:
    """The file, relative to the package's folder."""
    return Path(*name.split(".")).with_suffix(".py")


def source(name: str) -> str:
    return (PACKAGE / path_of(name)).read_text()


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def summary(name: str) -> str:
    """The first sentence of a file's docstring."""
    text = ast.get_docstring(parsed(source(name))) or ""
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
    """Every file of the package, each after the files that it imports when loaded; the core before
    the wings where possible, the package's `__init__` last."""
    left = sorted(set(file_names()) - {"__init__"}, key=lambda name: ("." in name, name))
    needs = {name: files_imported(parsed(source(name)).body) & set(left) for name in left}
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


def results(code: str) -> dict[str, bytes]:
    """{file name: content} of the measured results in vaekit/lessons/results that `code` draws.

    These are files that it loads by a name in quotes: Sweep.load("clinic"), RESULTS / "betas.json";
    and a sweep's pictures, if `.pictures` is called on its name. Lists in a sweep's rows that the
    code does not name, such as "spectrum", are left out.
    """
    names = re.findall(r'Sweep\.load\("(\w+)"\)|RESULTS / "(\w+)\.json"', code)
    loaded = dict(re.findall(r'(\w+) = (?:sweeps\.)?Sweep\.load\("(\w+)"\)', code))
    pictured = {name for variable, name in loaded.items() if f"{variable}.pictures(" in code}
    files = {}
    for name in sorted({sweep or other for sweep, other in names}):
        text = (RESULTS / f"{name}.json").read_text()
        files[f"{name}.json"] = drawn(json.loads(text), code).encode()
    for name in sorted(pictured):
        files[f"{name}.webp"] = (RESULTS / f"{name}.webp").read_bytes()
    return files


def drawn(measured, code: str) -> str:
    """JSON of `measured`, its rows without the lists that the code does not name."""
    rows = measured.get("rows", []) if isinstance(measured, dict) else []
    for row in rows:
        for key in [key for key, value in row.items() if isinstance(value, list)]:
            if f'"{key}"' not in code and f"'{key}'" not in code:
                del row[key]
    return json.dumps(measured)
