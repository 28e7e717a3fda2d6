"""The functions that installed libraries document, read from their files with ``ast``; nothing is imported.

A function's public name is its shortest one: where a public package re-exports what a private file defines
(``scipy/signal/_filter_design.py`` -> ``scipy.signal.butter``), the re-export counts; a private name that nobody
re-exports is no function. C functions come from the calls that give them their docstrings (``add_newdoc(...)``,
``add_docstr(...)``).
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import platform
import re
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LIBRARIES = {  # the label: the name to import; whatever the install lacks is skipped
    "datasets": "datasets", "fsspec": "fsspec", "networkx": "networkx", "numpy": "numpy", "pandas": "pandas",
    "pyarrow": "pyarrow", "scikit-learn": "sklearn", "scipy": "scipy", "sympy": "sympy", "torch": "torch",
    "transformers": "transformers",
}  # fmt: skip
PYTHON = "python"
_VENDORED = {"externals", "external", "extern", "third_party", "vendor", "vendored", "packages"}
_TESTS = {"test", "tests", "testing", "conftest", "benchmarks", "examples", "setup"}
_TOOLS = {"site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "ensurepip", "distutils", "encodings"}
_PRIVATE = re.compile(r"_.*|core|internals?|impl|.*compat")  # the latter by custom, although without an underscore


class Function(NamedTuple):
    """One documented function, class or method."""

    library: str
    file: str  # posix path below the library's parent folder, "scipy/signal/_filter_design.py"
    name: str  # public and dotted, "scipy.signal.butter", "pandas.DataFrame.merge"
    own: str  # the part that the module holds, "butter", "DataFrame.merge"
    params: tuple[str, ...] | None  # without self, cls, *args and **kwargs; None: unknown
    signature: str  # "butter(N, Wn, btype='low')"; the bare own name where the parameters are unknown
    doc: str


class Module(NamedTuple):
    name: str
    file: Path
    body: list[ast.stmt]  # top level, with the bodies of if and try unfolded
    exports: frozenset[str] | None  # a literal __all__; None: not declared, or computed


def installed() -> dict[str, Path]:
    """The libraries of this install and their folders, Python's own standard library included."""
    specs = {label: importlib.util.find_spec(name) for label, name in LIBRARIES.items()}
    found = {label: Path(spec.origin).parent for label, spec in specs.items() if spec and spec.origin}
    return found | {PYTHON: Path(sysconfig.get_path("stdlib"))}


def version(library: str, folder: Path) -> str:
    """Of the installed distribution, or of Python; of any other folder a digest of its Python files."""
    if library == PYTHON and folder == Path(sysconfig.get_path("stdlib")):
        return platform.python_version()
    if installed().get(library) == folder:
        return importlib.metadata.version(library)
    return digest(*(part for f in files(folder) for part in (f.relative_to(folder).as_posix(), f.read_bytes())))


def digest(*parts: object) -> str:
    """A hash that is the same on every machine and in every run (Python's own ``hash`` of a text is not)."""
    joined = b"\0".join(part if isinstance(part, bytes) else str(part).encode() for part in parts)
    return hashlib.sha256(joined).hexdigest()[:16]


def files(folder: Path) -> list[Path]:
    """The Python files below ``folder``, without tests, vendored copies and tools, in an order of their names."""
    dropped = _TESTS | _VENDORED | _TOOLS | {"__pycache__"}
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = set(folders) - dropped
        found += [Path(place, name) for name in names if name.endswith(".py") and name[:-3] not in dropped]
    return sorted(found)


def scan(library: str, folder: Path, *, seed: int) -> Iterator[list[Function]]:
    """The documented public functions of the library at ``folder``, file by file in an order drawn by ``seed``.

    A file is parsed when its turn comes: stop early and the rest costs nothing. One that does not parse is passed over.
    """
    prefix = folder.parent if (folder / "__init__.py").exists() else folder  # the standard library is not a package
    paths = {".".join(f.relative_to(prefix).with_suffix("").parts).removesuffix(".__init__"): f for f in files(folder)}
    reexports = _reexports(paths)
    imported = {module for module, _ in reexports.named} | set(reexports.starred)
    for name in sorted(paths, key=lambda n: digest(seed, library, n)):
        worth = name in imported or not _hidden(name) or re.search(rb"^add_\w+\(", paths[name].read_bytes(), re.M)
        if worth and (module := _module(name, paths[name])):
            yield list(_functions(module, library, paths[name].relative_to(prefix).as_posix(), reexports))


def _module(name: str, file: Path) -> Module | None:
    try:
        with warnings.catch_warnings():  # of other people's escape sequences
            warnings.simplefilter("ignore")
            body = list(_unfolded(ast.parse(file.read_bytes()).body))
    except (SyntaxError, ValueError, RecursionError, OSError):
        return None
    exports: set[str] | None = None
    for node in body:
        match node:
            case ast.Assign([ast.Name("__all__")], value) | ast.AugAssign(ast.Name("__all__"), _, value):
                exports = None if (more := _strings(value)) is None else (exports or set()) | more
            case ast.Expr(ast.Call(ast.Attribute(ast.Name("__all__")))):  # __all__.extend(other.__all__)
                exports = None
    return Module(name, file, body, None if exports is None else frozenset(exports))


def _unfolded(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _unfolded(node.body)
            yield from _unfolded(node.orelse)


def _strings(node: ast.expr) -> set[str] | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return set(value) if isinstance(value, (list, tuple)) else None


class Reexports(NamedTuple):
    named: dict[tuple[str, str], set[tuple[str, str]]]  # (module, name) -> {(importer, alias)}
    starred: dict[str, set[str]]  # module -> importers


def _reexports(paths: dict[str, Path]) -> Reexports:
    """Who imports what from where, in the files that gather names: each ``__init__`` and ``api``, and whatever one of
    them imports ``*`` from, where that gathers in turn."""
    known = Reexports(defaultdict(set), defaultdict(set))
    todo = [name for name, file in paths.items() if file.stem in ("__init__", "api")]
    done: set[str] = set()
    while todo:
        if (name := todo.pop()) in done or (module := _module(name, paths[name])) is None:
            continue
        done.add(name)
        package = module.file.stem == "__init__"
        for node in module.body:
            if not isinstance(node, ast.ImportFrom):
                continue
            up = name.split(".")[: len(name.split(".")) - node.level + package] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                if alias.name == "*":
                    known.starred[source].add(name)
                    if source in paths and re.search(rb"^\s*from \S+ import \*", paths[source].read_bytes(), re.M):
                        todo.append(source)
                elif (alias.asname or alias.name) in (module.exports or ()) or package and module.exports is None:
                    known.named[source, alias.name].add((name, alias.asname or alias.name))
    return known


def _hidden(module: str) -> bool:
    """Private, or too deep to be meant for users."""
    return module.count(".") > 2 or any(map(_PRIVATE.fullmatch, module.split(".")))


def _public(module: Module, name: str, reexports: Reexports) -> str | None:
    """The shortest public name of what ``module`` defines as ``name``."""
    open_ = module.name.count(".") < 2 or module.file.stem == "__init__"
    visible = name in module.exports if module.exports is not None else open_ and not name.startswith("_")
    found, seen, todo = [], set(), [(module.name, name, visible)]
    while todo:
        place, alias, visible = todo.pop()
        if (place, alias) in seen or alias.startswith("_"):
            continue
        seen.add((place, alias))
        if visible and not _hidden(place):
            found.append(f"{place}.{alias}")
        todo += [(*importer, True) for importer in reexports.named.get((place, alias), ())]
        todo += [(importer, alias, True) for importer in reexports.starred.get(place, ()) if visible]
    return min(found, key=lambda path: (path.count("."), path), default=None)


Head = tuple[tuple[str, ...], str]  # parameter names, and the words between the brackets of the signature


def _functions(module: Module, library: str, file: str, reexports: Reexports) -> Iterator[Function]:
    seen: set[str] = set()
    for node in module.body:
        for own, home, doc, head in _documented(node):
            top, _, rest = own.partition(".")
            package = module.name.rpartition(".")[0]
            place = module if home is None else Module(home or package, module.file, [], None)
            if own in seen or re.search(r"(^|\.)_", own) or not (public := _public(place, top, reexports)):
                continue
            seen.add(own)
            params, words = head or (None, None)
            name = f"{public}.{rest}" if rest else public
            yield Function(library, file, name, own, params, own if words is None else f"{own}({words})", doc)


def _documented(node: ast.stmt) -> Iterator[tuple[str, str | None, str, Head | None]]:
    """(own name, home, docstring, head) of what a statement documents: functions, classes, methods, C functions.

    The home is the module where a C function lives ("": the package of this file), None for what this file defines.
    """
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            if doc := ast.get_docstring(node):
                yield node.name, None, doc, _arguments(node)
        case ast.ClassDef():
            methods = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
            if doc := ast.get_docstring(node):
                yield node.name, None, doc, next((_arguments(n) for n in methods if n.name == "__init__"), None)
            for method in methods:
                marks = {ast.unparse(mark).rpartition(".")[2] for mark in method.decorator_list}
                doc = ast.get_docstring(method)
                if doc and not marks & {"property", "cached_property", "overload", "setter"}:
                    yield f"{node.name}.{method.name}", None, doc, _arguments(method)
        case ast.Expr(ast.Call(ast.Name("add_newdoc"), args=[*where, docs])):
            words = [_text(word) for word in where]  # [module,] name, then a text, (method, text) or a list of those
            for part in docs.elts if isinstance(docs, ast.List) else [docs]:
                member, text = part.elts if isinstance(part, ast.Tuple) and len(part.elts) == 2 else (None, part)
                if all(words) and words:
                    own = words[-1] if member is None else f"{words[-1]}.{_text(member)}"
                    yield from _attached(own, words[0] if len(words) > 1 else "", _text(text))
        case ast.Expr(ast.Call(ast.Name("add_docstr"), args=[ast.Attribute(module, own), text, *_])):
            yield from _attached(own, ast.unparse(module), _text(text))


def _attached(own: str, home: str, text: str) -> Iterator[tuple[str, str, str, Head]]:
    """Nothing without a signature: that is an attribute, a constant, a type."""
    doc = inspect.cleandoc(text)
    if head := _heading(doc, own.rpartition(".")[2]):
        yield own, home, doc, head


def _text(node: ast.expr) -> str:
    """The text of a literal, of a sum of texts, of ``text.format(...)``; "" of anything else."""
    match node:
        case ast.Constant(str() as text):
            return text
        case ast.BinOp(left, ast.Add(), right):
            return _text(left) + _text(right)
        case ast.Call(ast.Attribute(text, "format" | "strip")):
            return re.sub(r"\{\w*\}", "", _text(text))
    return ""


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Head:
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    given = [*a.defaults, *a.kw_defaults]
    names = [arg.arg for arg in [*plain, *a.kwonlyargs]]
    pairs = list(zip(names, [None] * (len(names) - len(given)) + given, strict=True))
    if pairs and pairs[0][0] in ("self", "cls", "mcs"):
        pairs = pairs[1:]
    pairs = [(name, default) for name, default in pairs if not name.startswith("_")]
    words = [name if default is None else f"{name}={_short(default)}" for name, default in pairs]
    words += [f"{star}{arg.arg}" for star, arg in (("*", a.vararg), ("**", a.kwarg)) if arg]
    return tuple(name for name, _ in pairs), ", ".join(words[:12] + ["..."] * (len(words) > 12))


def _short(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 20 else "..."


def _heading(doc: str, own: str) -> Head | None:
    """Of a C function: the signature with which its docstring begins, ``arange([start,] stop[, step], dtype=None)``."""
    begin = rf"(?:[\w.]+\.)?{re.escape(own)}\((?:\$self(?:, /)?(?:, )?)?(.*?)\)\s*(?:->[^\n]*)?(?:\n|$)"
    if not (head := re.match(begin, doc, re.S)):
        return None
    bare = re.sub(r",\s*,", ",", re.sub(r"[\[\]]", "", head[1])).strip(", ")  # without the brackets of what is optional
    for text in (head[1], bare):
        try:
            node = ast.parse(f"def f({text}): pass").body[0]
        except SyntaxError:
            continue
        return _arguments(node) if isinstance(node, ast.FunctionDef) else None
    return None
