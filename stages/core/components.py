"""Disjoint sets, and the components of rows that must stay together: those that share a cluster or a group, directly or through others."""

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from stages.core.records import Row

T = TypeVar("T", bound=Hashable)


class Union(Generic[T]):
    """Disjoint sets of names, each known by its smallest member; a name that nobody joined is its own set."""

    def __init__(self) -> None:
        """Starts without members."""
        self._parent: dict[T, T] = {}

    def find(self, name: T) -> T:
        """The smallest member of a name's set."""
        root = name
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while name != root:
            self._parent[name], name = root, self._parent.get(name, name)
        return root

    def join(self, one: T, other: T) -> None:
        """Makes two names' sets one."""
        ends: list[Any] = [self.find(one), self.find(other)]
        first, second = sorted(ends)
        self._parent[second] = first


def components(rows: list[Row]) -> list[str]:
    """The component of each row, named by its smallest cluster.

    Args:
        rows: a row without a cluster is one of its own; a row without a group is of none.

    Returns:
        One name a row; equal names must share a fold, and a side of the split.
    """
    union: Union[tuple[str, str]] = Union()
    names = [("cluster", row.cluster or row.id) for row in rows]
    for row, name in zip(rows, names, strict=True):
        if row.group is not None:
            union.join(name, ("group", row.group))
    return [union.find(name)[1] for name in names]
