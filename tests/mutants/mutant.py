"""A planted fault: a promise, the few lines that break it, and the one test or simulation that must notice.

Each is a file ``planted/<name>.toml``::

    title = "A retired token opens the session for ever"
    breaks = ["A4"]                # rows of the mission, or words for a promise that is in no row
    killer = "tests/tokens/test_chain.py::test_name"    # or "simulate --profile leases --seeds 400"
    raises = ["TokenRejected"]     # optional: what the killer may fail with, besides an assertion
    each = ["memory", "sqlite"]    # optional: the killer must fail for each of these parameters of it

    [[change]]                     # one or more; ``old`` stands exactly once in the file
    file = "tokens/chain.py"       # below src/coatcheck
    old = '''...'''
    new = '''...'''
"""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

import msgspec

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
PACKAGE = ROOT / "src" / "coatcheck"
PLANTED = Path(__file__).parent / "planted"
SIMULATE = "simulate "
ROW = re.compile(r"[A-D]\d{1,2}|N\d{1,2}")


class Stale(Exception):
    """The fault cannot be planted as it is written: the code or the killer has moved on."""


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``old`` becomes ``new`` in ``file``, a path below ``src/coatcheck``."""

    file: str
    old: str
    new: str

    def applied(self, source: str) -> str:
        """The file's text with the fault in it; raises :class:`Stale`."""
        found = source.count(self.old) if self.old else 0
        if found != 1:
            raise Stale(f"the old text stands {found} times in {self.file}, not once:\n{self.old}")
        changed = source.replace(self.old, self.new)
        if changed == source:
            raise Stale(f"the new text of {self.file} is the old one")
        if self.file.endswith(".py"):
            try:
                ast.parse(changed)
            except SyntaxError as error:
                raise Stale(f"{self.file} with the fault in it is no Python: {error}") from error
        return changed


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of ``planted/``."""

    title: str
    breaks: list[str]
    killer: str
    change: list[Change]
    raises: list[str] = []
    each: list[str] = []
    name: str = ""

    def rows(self) -> set[str]:
        return {word for word in self.breaks if ROW.fullmatch(word)}

    def changed_files(self, package: Path = PACKAGE) -> dict[str, str]:
        """The files that differ, with the fault in them; raises :class:`Stale`."""
        texts: dict[str, str] = {}
        for change in self.change:
            path = package / change.file
            if change.file not in texts and not path.is_file():
                raise Stale(f"there is no file {change.file}")
            texts[change.file] = change.applied(texts.get(change.file) or path.read_text())
        return texts

    def check_killer(self) -> None:
        """Raises :class:`Stale` if no such test stands in the file that is named."""
        if self.killer.startswith(SIMULATE):
            return
        file, _, rest = self.killer.partition("::")
        path = ROOT / file
        if not path.is_file():
            raise Stale(f"its killer is in no file: {file}")
        parent, _, test = rest.rpartition("::")
        function = test.partition("[")[0]
        if function not in _names_in(path) and not (function == "runTest" and f"{parent} = " in path.read_text()):
            raise Stale(f"its killer {function!r} is not in {file}")


@functools.cache
def _names_in(path: Path) -> frozenset[str]:
    """Of functions and classes. Most faults share the file of their killer with others."""
    tree = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in tree if isinstance(node, ast.FunctionDef | ast.ClassDef))


@functools.cache
def load(path: Path) -> Mutant:
    """Raises :class:`Stale` for a file that is not of this form."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text()), Mutant)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise Stale(f"{path.name}: {error}") from error
    if not found.breaks or not found.change:
        raise Stale(f"{path.name}: a planted fault breaks a promise and changes a file")
    return msgspec.structs.replace(found, name=path.stem)


def load_all(folder: Path = PLANTED) -> list[Mutant]:
    return [load(path) for path in sorted(folder.glob("*.toml"))]
