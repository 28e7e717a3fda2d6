"""The functions that installed libraries document, read from their files with ``ast``; nothing is imported.

A function's public name is its shortest one: where a public package re-exports what a private file defines
(``scipy/signal/_filter_design.py`` -> ``scipy.signal.butter``), the re-export counts; a private name that nobody
re-exports is no function. C functions come from the calls that give them their docstrings (``add_newdoc(...)``,
``add_docstr(...)``).
"""

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import inspect
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
_HIDDEN = {"core", "internals", "impl", "compat"}  # private by custom, although without an underscore


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
    return digest(*(text for file in files(folder) for text in (file.relative_to(folder).as_posix(), file.read_bytes())))


def digest(*parts: object) -> str:
    """A hash that is the same on every machine and in every run (Python's own ``hash`` of a text is not)."""
    joined = b"\0".join(part if isinstance(part, bytes) else str(part).encode() for part in parts)
    return hashlib.sha256(joined).hexdigest()[:16]


def files(folder: Path) -> list[Path]:
    """The Python files below ``folder``, without tests, vendored copies and tools, in an order of their names."""
    dropped = _TESTS | _VENDORED | _TOOLS
    return sorted(f for f in folder.rglob("*.py") if not dropped & {f.stem, *f.relative_to(folder).parts[:-1]})


def scan(library: str, folder: Path, *, seed: int) -> Iterator[list[Function]]:
    """The documented public functions of the library at ``folder``, file by file in an order drawn by ``seed``.

    A file is parsed when its turn comes: stop early and the rest costs nothing. A file that does not parse is passed over.
    """
    prefix = folder.parent if (folder / "__init__.py").exists() else folder  # the standard library is not a package
    paths = {".".join(f.relative_to(prefix).with_suffix("").parts).removesuffix(".__init__"): f for f in files(folder)}
    reexports = _reexports(paths)
    for name in sorted(paths, key=lambda n: digest(seed, library, n)):
        if module := _module(name, paths[name]):
            place = paths[name].relative_to(prefix).as_posix()
            yield [Function(library, place, *found) for found in _functions(module, reexports)]


def _module(name: str, file: Path) -> Module | None:
    collecting = gc.isenabled()
    gc.disable()  # it walks the growing tree again and again: parsing takes three to six times as long with it
    try:
        with warnings.catch_warnings():  # of other people's escape sequences
            warnings.simplefilter("ignore")
            body = list(_unfolded(ast.parse(file.read_bytes()).body))
    except (SyntaxError, ValueError, RecursionError, OSError):
        return None
    finally:
        if collecting:
            gc.enable()
    exports: set[str] | None = None
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name("__all__")], value=value) | ast.AugAssign(ast.Name("__all__"), _, value):
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
    """Who imports what from where, read from the files that gather names: each ``__init__``, ``api`` and whatever one of
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
        if visible and place.count(".") < 3 and not any(p[0] == "_" or p in _HIDDEN for p in place.split(".")):
            found.append(f"{place}.{alias}")
        todo += [(*importer, True) for importer in reexports.named.get((place, alias), ())]
        todo += [(importer, alias, True) for importer in reexports.starred.get(place, ()) if visible]
    return min(found, key=lambda path: (path.count("."), path), default=None)


Found = tuple[str, str, tuple[str, ...] | None, str, str]  # the fields of Function after file


def _functions(module: Module, reexports: Reexports) -> Iterator[Found]:
    seen: set[str] = set()
    for node in module.body:
        for own, node_or_doc in _documented(node):
            top = own.split(".")[0]
            where = module
            if isinstance(node_or_doc, tuple):
                home, node_or_doc = node_or_doc
                where = Module(home or module.name.rpartition(".")[0], module.file, [], None)
            if own in seen or re.search(r"(^|\.)_", own) or (public := _public(where, top, reexports)) is None:
                continue
            seen.add(own)
            if isinstance(node_or_doc, str):
                doc = inspect.cleandoc(node_or_doc)
                if (head := _heading(doc, own.rpartition(".")[2])) is None:
                    continue  # an attribute, a constant, a type
            else:
                doc, head = ast.get_docstring(node_or_doc) or "", _arguments(node_or_doc)
            params, words = head if head else (None, None)
            yield public + own[len(top):], own, params, own if words is None else f"{own}({words})", doc


def _documented(node: ast.stmt) -> Iterator[tuple[str, ast.AST | tuple[str, str]]]:
    """(own name, its node) of functions, classes and their methods; (own name, (module, doc)) of C functions."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() if ast.get_docstring(node):
            yield node.name, node
        case ast.ClassDef():
            if ast.get_docstring(node):
                yield node.name, node
            for method in node.body:
                if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and not method.name.startswith("_"):
                    marks = {ast.unparse(mark).rpartition(".")[2] for mark in method.decorator_list}
                    if ast.get_docstring(method) and not marks & {"property", "cached_property", "overload", "setter"}:
                        yield f"{node.name}.{method.name}", method
        case ast.Expr(ast.Call(ast.Name("add_newdoc"), args=args)):
            *place, last = args
            words = [word for part in place if (word := _text(part))]
            docs = last.elts if isinstance(last, ast.List) else [last]
            for part in docs if len(words) == len(place) and words else ():
                name, doc = (part.elts[0], part.elts[1]) if isinstance(part, ast.Tuple) and len(part.elts) == 2 else (None, part)
                if text := _text(doc):
                    own = ".".join([words[-1], *([_text(name) or "_"] if name else [])])
                    yield own, (words[0] if len(words) > 1 else "", text)
        case ast.Expr(ast.Call(ast.Name("add_docstr"), args=[ast.Attribute() as target, doc, *_])):
            module, _, own = ast.unparse(target).rpartition(".")
            if text := _text(doc):
                yield own, (module, text)


def _text(node: ast.expr) -> str:
    """The text of a literal, of a sum of texts, of ``text.format(...)``, of ``merge(text, ...)``; "" of anything else."""
    match node:
        case ast.Constant(str() as text):
            return text
        case ast.BinOp(left, ast.Add(), right):
            return _text(left) + _text(right)
        case ast.Call(ast.Attribute(text, "format" | "strip")):
            return re.sub(r"\{\w*\}", "", _text(text))
    return ""


def _arguments(node: ast.AST) -> tuple[tuple[str, ...], str] | None:
    """Parameter names and the text of a signature; a class shows its ``__init__``."""
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        return _arguments(inits[0]) if inits else None
    a = node.args  # type: ignore[attr-defined]
    plain = [*a.posonlyargs, *a.args]
    given = [None] * (len(plain) - len(a.defaults)) + a.defaults
    rows = [(arg.arg, default) for arg, default in zip(plain, given, strict=True)]
    if rows and rows[0][0] in ("self", "cls", "mcs"):
        rows = rows[1:]
    rows += [(arg.arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    rows = [(name, default) for name, default in rows if not name.startswith("_")]
    words = [name if default is None else f"{name}={_short(default)}" for name, default in rows]
    words += [f"{star}{arg.arg}" for star, arg in (("*", a.vararg), ("**", a.kwarg)) if arg]
    return tuple(name for name, _ in rows), ", ".join(words[:12] + ["..."] * (len(words) > 12))


def _short(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 20 else "..."


def _heading(doc: str, own: str) -> tuple[tuple[str, ...], str] | None:
    """Of a C function: the signature with which its docstring begins, ``arange([start,] stop[, step,], dtype=None)``."""
    head = re.match(rf"(?:[\w.]+\.)?{re.escape(own)}\((?:\$self,? ?)?(.*?)\)\s*(?:->[^\n]*)?(?:\n|$)", doc, re.S)
    if not head:
        return None
    for text in (head[1], re.sub(r",\s*,", ",", re.sub(r"[\[\]]", "", head[1])).strip(", ")):
        try:
            return _arguments(ast.parse(f"def f({text}): pass").body[0])
        except SyntaxError:
            continue
    return None
