"""The structure of the package: a short core, wings, imports that point one way, a line budget."""

import ast
import io
import tokenize
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vaekit

ROOT = Path(vaekit.__file__).parent
WINGS = ("files", "judge", "keep", "lessons", "place", "priors")
CORE = (
    "config presets data linear quantise model features critic losses schedules train sample"
    " metrics plots"
)
CORE = tuple(CORE.split())
# Lines of code and characters a line, as they are: what is added has to be made room for.
BUDGET = {"core": (1803, 41.0), "package": (6428, 43.1)}

# What the core may open besides itself: these at any time,
STANDS_ON = {"place.device", "fast", "checks", "published"}
# these inside functions only.
DOORS = {("data", "files"), ("features", "files"), ("sample", "priors")}
# What a wing may open besides the core and the `place` it stands on.
MAY_OPEN = {"place": (), "files": (), "priors": (), "keep": (), "judge": ("files",)}

TREES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(ROOT.rglob("*.py"))
}
MODULES = {name for name in TREES if not name.endswith("__init__")}


def part_of(module: str) -> str:
    """The wing of a module, "core", or "" for what stands beside both."""
    wing = module.split(".")[0]
    if wing in WINGS:
        return wing
    return "core" if module in CORE else ""


def imports(tree: ast.AST) -> set[tuple[str, bool]]:
    """(module of vaekit, whether inside a function) for every import, and for every name that
    `import vaekit` leads to: `vaekit.keep.run`."""
    found = set()
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vaekit":
            base = node.module.split(".")[1:]
            for alias in node.names:
                full = ".".join([*base, alias.name])
                found.add((full if full in MODULES else ".".join(base), id(node) in inside))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("vaekit."):
                    found.add((alias.name.removeprefix("vaekit."), id(node) in inside))
    return {(module, local) for module, local in found if module}


@pytest.mark.parametrize("name", CORE)
def test_the_core_opens_wings_only_through_its_doors(name):
    for module, inside in imports(TREES[name]):
        if part_of(module) == "core" or module in STANDS_ON:
            continue
        door = (name, part_of(module))
        assert inside and door in DOORS, f"{name} imports {module}"


@pytest.mark.parametrize("wing", MAY_OPEN)
def test_wings_point_to_the_core(wing):
    allowed = {wing, "core", "place", *MAY_OPEN[wing]}
    if wing == "place":
        allowed -= {"core"}
    for name in MODULES:
        if part_of(name) == wing:
            for module, _ in imports(TREES[name]):
                assert part_of(module) in allowed or module in STANDS_ON, f"{name} -> {module}"


def test_no_circle():
    """Counting what is imported as a module is loaded, and everything but the doors."""
    graph = {}
    for name in MODULES:
        graph[name] = set()
        for module, inside in imports(TREES[name]):
            if not (inside and (name, part_of(module)) in DOORS):
                graph[name].add(module)
    list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def attributes(tree: ast.AST) -> tuple[set[str], set[str]]:
    """(names that are defined or set on something, names that are read from something)."""
    defined, read = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
        elif isinstance(node, ast.Attribute):
            (read if isinstance(node.ctx, ast.Load) else defined).add(node.attr)
    return defined, read


def test_the_core_names_no_attribute_that_only_a_wing_has():
    core_defined, core_read = set(), set()
    wing_defined = set()
    for name, tree in TREES.items():
        defined, read = attributes(tree)
        if part_of(name) == "core":
            core_defined |= defined
            core_read |= read
        elif part_of(name):
            wing_defined |= defined
    # names that torch, accelerate, matplotlib, str, dict and slice have as well
    of_libraries = {"buffers", "close", "figure", "interpolate", "prepare", "split", "stop"}
    of_libraries |= {"strip", "values"}
    assert sorted(core_read & (wing_defined - core_defined - of_libraries)) == []


def test_nothing_reaches_into_another_by_strings():
    """No getattr, setattr or vars on a name that is put together; fields of a Config aside."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if called and node.func.id in ("getattr", "setattr", "delattr"):
                assert not isinstance(node.args[1], ast.JoinedStr), f"{name}:{node.lineno}"
            assert not (called and node.func.id == "setattr"), f"{name}:{node.lineno}"


def test_no_public_function_shares_its_name_with_a_module():
    modules = {part for name in TREES for part in name.split(".")}
    assert not modules & set(vaekit._WHERE)
    assert all(getattr(vaekit, name) is not None for name in vaekit.__all__)


def code_lines(path: Path) -> list[str]:
    """Lines that hold code: no blank ones, comments and docstrings; without their indentation."""
    source = path.read_text()
    texts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts.update(range(node.lineno, node.end_lineno + 1))
    numbers = set()
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank | {tokenize.ENDMARKER}:
            numbers.update(range(token.start[0], token.end[0] + 1))
    lines = source.splitlines()
    return [lines[number - 1].strip() for number in sorted(numbers - texts)]


@pytest.mark.parametrize("part", BUDGET)
def test_what_has_to_be_read_stays_short(part):
    most_lines, most_characters = BUDGET[part]
    names = (*CORE, "__init__") if part == "core" else TREES
    lines = [line for n in names for line in code_lines(ROOT / f"{n.replace('.', '/')}.py")]
    found = f"{part}: {len(lines)} lines of {sum(map(len, lines)) / len(lines):.3f} characters"
    fits = len(lines) <= most_lines and sum(map(len, lines)) <= most_characters * len(lines)
    assert fits, f"{found}; there is room for {BUDGET[part]}: take something away"


def test_the_formatter_decides_the_layout():
    for path in ROOT.rglob("*.py"):
        assert "# fmt:" not in path.read_text(), path
