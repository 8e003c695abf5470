"""Copies definitions of the package, with everything they need, for a notebook without it.

`Extract().take("files.cache.load_arrays")` is the text of that function and of what it calls, in an
order in which Python can read it; definitions of earlier calls are not repeated. Names that two
files share get the file's name appended; `device.choose_device()` becomes `choose_device()`.
"""

import ast
import re
from dataclasses import dataclass, field

import package

Key = tuple[str, str]  # file as package.py names it, name


@dataclass
class File:
    name: str
    text: str
    # name -> its definition, and what changes it later: `RULES = ...`, `RULES["preset"] = ...`
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    internal: dict[str, Key] = field(default_factory=dict)  # local name -> (file, name or "")
    external: dict[str, str] = field(default_factory=dict)  # local name -> import statement

    @classmethod
    def read(cls, name: str) -> "File":
        file = cls(name, package.source(name))
        for node in package.parsed(file.text).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for inner in node.body:  # annotations are evaluated in a notebook
                    file._add_import(inner)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                file._add_import(node)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                file.definitions[node.name] = [node]
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                for name in names_set(node):
                    file.definitions.setdefault(name, []).append(node)
        return file

    def _add_import(self, node: ast.Import | ast.ImportFrom) -> None:
        inside = package.imported(node)
        self.internal |= inside
        for local, statement in statements(node).items():
            if local not in inside and "__future__" not in statement:
                self.external[local] = statement

    def segment(self, node: ast.stmt) -> tuple[int, int]:
        """First and last line (from 0, last excluded), with the comments right above."""
        lines = self.text.splitlines()
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        while start and lines[start - 1].startswith("#") and "----" not in lines[start - 1]:
            start -= 1
        return start, node.end_lineno


def statements(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """{local name: an import statement of that name alone}."""
    found = {}
    for alias in node.names:
        renamed = f" as {alias.asname}" if alias.asname else ""
        if isinstance(node, ast.Import):
            local = alias.asname or alias.name.split(".")[0]
            found[local] = f"import {alias.name}{renamed}"
        else:
            local = alias.asname or alias.name
            found[local] = f"from {node.module} import {alias.name}{renamed}"
    return found


def names_set(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> list[str]:
    """The names that an assignment sets, or of which it sets a part."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    found = []
    for target in targets:
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        for part in parts:
            while isinstance(part, ast.Subscript | ast.Attribute | ast.Starred):
                part = part.value
            found.append(part.id)
    return found


def _is_field(name: ast.Name, definition: ast.stmt) -> bool:
    """Whether the name is set inside a class or function, not at the top of its file."""
    top = isinstance(definition, ast.Assign | ast.AnnAssign | ast.AugAssign)
    return isinstance(name.ctx, ast.Store) and not top


class Extract:
    """Takes definitions out of the package, each once."""

    def __init__(self, replaced: dict[Key, str] | None = None):
        self.order = package.reading_order()
        self.files = {name: File.read(name) for name in self.order}
        self.replaced = replaced or {}  # other text for definitions that cannot work in a notebook
        self.taken: set[Key] = set()
        self.imports: set[str] = set()
        self.names: dict[str, Key] = {}  # name in the notebook -> whose it is

    def take(self, *roots: str) -> str:
        """The text of the roots ("file.name") and of what they need that was not taken before."""
        wanted: set[Key] = set()
        todo = [tuple(root.rsplit(".", 1)) for root in roots]
        while todo:
            key = self._home(todo.pop())
            if key not in wanted | self.taken:
                wanted.add(key)
                todo += [] if key in self.replaced else self._needs(key)
        self.taken |= wanted
        blocks: dict[tuple, str] = {}
        for key in sorted(wanted):
            self._claim(key)
        for file, name in wanted:
            nodes = self.files[file].definitions[name]
            for node in nodes[:1] if (file, name) in self.replaced else nodes:
                place = self.order.index(file), node.lineno
                text = self.replaced.get((file, name)) or self._text(self.files[file], node)
                blocks[place] = text
        text = previous = ""
        for _, block in sorted(blocks.items()):
            single = "\n" not in previous + block  # two lines of constants stay together
            gap = "\n" if single else "\n\n\n"
            text += gap + block if text else block
            previous = block
        return text

    def _home(self, key: Key) -> Key:
        """Where a name is defined, through files that only pass it on."""
        file, name = key
        if file not in self.files:
            raise LookupError(f"vaekit has no file {file}, of which {name!r} was asked for")
        if name in self.files[file].definitions:
            return key
        if name not in self.files[file].internal:
            raise LookupError(f"vaekit/{package.path_of(file)} does not define {name!r}")
        return self._home(self.files[file].internal[name])

    def _claim(self, key: Key) -> None:
        """Give a definition its name in the notebook: another where that name is taken."""
        file, name = key
        if self.names.get(name, key) != key:
            name = f"{name}_{file.split('.')[-1]}"
        if self.names.get(name, key) != key:
            raise ValueError(f"{name} is the name of two definitions, one of vaekit.{file}")
        self.names[name] = key

    def _called(self, key: Key) -> str:
        """What a definition is called in the notebook."""
        return next((name for name, owner in self.names.items() if owner == key), key[1])

    def _uses(self, file: File, node: ast.AST):
        """(node, key or import statement) for every name in `node` that comes from outside it."""
        internal = dict(file.internal)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                internal |= package.imported(inner)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
                owner, part = internal.get(inner.value.id, ("", "-"))
                if part == "" and owner in self.files:
                    yield inner, self._home((owner, inner.attr))
            elif isinstance(inner, ast.Name) and not _is_field(inner, node):
                if inner.id in file.definitions:
                    yield inner, (file.name, inner.id)
                elif internal.get(inner.id, ("", ""))[1]:
                    yield inner, self._home(internal[inner.id])
                elif inner.id in file.external:
                    yield inner, file.external[inner.id]

    def _needs(self, key: Key) -> list[Key]:
        file = self.files[key[0]]
        nodes = file.definitions[key[1]]
        uses = [use for node in nodes for _, use in self._uses(file, node)]
        if "import vaekit" in uses:
            raise ValueError(f"vaekit.{key[0]}: {key[1]} uses `vaekit` as a whole: import by name")
        self.imports |= {use for use in uses if isinstance(use, str)}
        return [use for use in uses if not isinstance(use, str)]

    def _text(self, file: File, node: ast.stmt) -> str:
        """The definition as written, with names as they are in the notebook."""
        start, end = file.segment(node)
        lines = [line.encode() for line in file.text.splitlines()]  # columns count bytes
        edits = []  # line, first column, last column, new text
        for inner, use in self._uses(file, node):
            if isinstance(use, tuple):
                at, first, last = inner.lineno - 1, inner.col_offset, inner.end_col_offset
                old, new = lines[at][first:last].decode(), self._called(use)
                if old != new:
                    edits.append((inner.lineno, first, last, new))
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            at = len("class " if isinstance(node, ast.ClassDef) else "def ")
            called = self._called((file.name, node.name))
            edits.append((node.lineno, at, at + len(node.name), called))
        for line, first, last, new in sorted(set(edits), reverse=True):
            lines[line - 1] = lines[line - 1][:first] + new.encode() + lines[line - 1][last:]
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom) and package.imported(inner):
                for line in range(inner.lineno - 1, inner.end_lineno):
                    lines[line] = None
        kept = [line.decode() for line in lines[start:end] if line is not None]
        text = "\n".join(re.sub(r"\s+# (fmt: skip|noqa.*)$", "", line) for line in kept)
        return re.sub(r'("""\n)\n+', r"\1", text)


def grouped(statements: set[str]) -> str:
    """Import statements sorted, one line a module; the standard library's first."""
    import sys

    modules: dict[str, set[str]] = {}
    plain = set()
    for statement in statements:
        if statement.startswith("from "):
            module, names = statement.removeprefix("from ").split(" import ")
            modules.setdefault(module, set()).add(names)
        else:
            plain.add(statement)
    lines = [*plain, *(f"from {m} import {', '.join(sorted(n))}" for m, n in modules.items())]

    def place(line: str) -> tuple:
        top = line.split()[1].split(".")[0]
        return top not in sys.stdlib_module_names, line.startswith("from"), line

    lines.sort(key=place)
    cut = sum(not place(line)[0] for line in lines)
    return "\n".join([*lines[:cut], "", *lines[cut:]])
