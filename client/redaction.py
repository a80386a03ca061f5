"""What may be shown of an error's text: without paths in a log, and to others only words that are Fedward's own."""

import ast
import builtins
import re
from functools import cache
from pathlib import Path

_QUOTED = re.compile(r"'[^']*[/\\.][^']*'|\"[^\"]*[/\\.][^\"]*\"")
_PATH = re.compile(r"\S*[/\\]\S*|\S+\.[A-Za-z][A-Za-z0-9]{0,7}(?![A-Za-z0-9])")
_TOKEN = re.compile(r"\d+(?:[./:-]\d+){2,}|\w+|\s+|.", re.DOTALL)  # the first: dates and object identifiers
_DIGITS = 3  # more in a row may be a year or an identifier


def without_paths(text: str) -> str:
    """The text with everything that looks like a path or a file's name replaced: errors that nobody foresaw quote them,
    and archives name files after patients.
    """
    return _PATH.sub("(path)", _QUOTED.sub("(path)", text))


def redacted(text: str) -> str:
    """The text with every word, number or sign replaced that Fedward does not use in messages of its own.

    Guarantees: what is left is short numbers, punctuation, names of Python's errors, and words that stand in the
    strings of the installed source; a name or identifier from outside is not among them, unless it is such a word.
    """
    shown = [token if _harmless(token) else "…" for token in _TOKEN.findall(without_paths(text))]
    return re.sub(r"…(\s*…)*", "…", "".join(shown))


def _harmless(token: str) -> bool:
    if not token.isascii():
        return False
    if token.isdigit():
        return len(token) <= _DIGITS
    return token in _vocabulary() if token[0].isalnum() or token[0] == "_" else True


@cache
def _vocabulary() -> frozenset[str]:
    """Words of all strings in the installed source but for docstrings, which name people, and of Python's errors."""
    rooms = Path(__file__).parents[1]
    words = {name for name in vars(builtins) if isinstance(getattr(builtins, name), type)}
    for room in ("client", "common"):
        for path in sorted((rooms / room).rglob("*.py")):
            words.update(_words(ast.parse(path.read_text(encoding="utf-8"))))
    return frozenset(words)


def _words(tree: ast.Module) -> set[str]:
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in said
    ]
    classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.endswith("Error")}
    return {word for text in texts for word in re.findall(r"\w+", text)} | classes
