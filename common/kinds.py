"""The kinds of orders that are answered with a vector."""

from typing import Literal, get_args

Answering = Literal["count", "update", "evaluate"]

_KINDS: dict[str, Answering] = {kind: kind for kind in get_args(Answering)}


def answering(kind: str) -> Answering | None:
    """The kind, where its orders are answered with a vector."""
    return _KINDS.get(kind)
