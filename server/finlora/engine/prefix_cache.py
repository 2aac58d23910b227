"""Which pages hold the keys and values of which beginning of which text: a radix tree per owner.

An owner is (cache salt, adapter digest): the same text under another adapter has other keys and
values. Any number of leading tokens can be shared, since a page holds one token. The tree owns the
pages that are published to it; nodes in use are locked, the others go, least recently used first,
when pages are needed.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from finlora.engine.kv_cache import Pages

Owner = tuple[str, str | None]

NO_PAGES: Pages = np.empty(0, np.int64)


@dataclass(slots=True, eq=False)
class Node:
    """An edge of the tree: tokens that follow the parent's, a page for each, what may follow."""

    tokens: list[int]
    pages: Pages
    parent: "Node | None"
    children: dict[int, "Node"] = field(default_factory=dict)
    num_locks: int = 0
    last_used: int = 0

    def path(self) -> Iterator["Node"]:
        """This node and its ancestors, without the root."""
        node: Node | None = self
        while node is not None and node.parent is not None:
            yield node
            node = node.parent


@dataclass(frozen=True, slots=True)
class Published:
    """What became of pages that were published: who owns them now."""

    node: Node  # the end of the text, locked
    known: Pages  # pages that the tree had already for the first of them: use these instead


class PrefixCache:
    """The tree; knows pages by number only and never touches the pool."""

    def __init__(self) -> None:
        self.num_pages = 0
        self.num_evictable_pages = 0
        self._roots: dict[Owner, Node] = {}
        self._clock = 0

    def match(self, owner: Owner, tokens: Sequence[int]) -> Pages:
        """Pages of the longest known beginning of the text."""
        found = [pages for _, pages in self._walk(owner, tokens)]
        return np.concatenate(found) if found else NO_PAGES

    def lock(self, owner: Owner, tokens: Sequence[int]) -> tuple[Node, Pages]:
        """Like `match`, and keep what was found until `unlock`."""
        node = self._end(owner, tokens)
        self._add_locks(node, 1)
        pages = [step.pages for step in node.path()]
        return node, np.concatenate(pages[::-1]) if pages else NO_PAGES

    def unlock(self, node: Node) -> None:
        """Undo one lock."""
        self._add_locks(node, -1)

    def publish(self, owner: Owner, tokens: Sequence[int], pages: Pages) -> Published:
        """Add a text with its pages; those of the part that is not known yet change hands."""
        node = self._end(owner, tokens)
        known = [step.pages for step in node.path()]
        num_known = sum(map(len, known))
        if num_known < len(tokens):
            leaf = Node(
                list(tokens[num_known:]), pages[num_known:].copy(), node, last_used=self._clock
            )
            node.children[leaf.tokens[0]] = leaf
            self.num_pages += len(leaf.pages)
            self.num_evictable_pages += len(leaf.pages)
            node = leaf
        self._add_locks(node, 1)
        return Published(node, np.concatenate(known[::-1]) if known else NO_PAGES)

    def evict(self, num_pages: int) -> Pages:
        """Give up at least that many pages, least recently used first; all that can, if fewer."""
        leaves = [
            (n.last_used, id(n), n) for n in self._nodes() if not n.children and not n.num_locks
        ]
        heapq.heapify(leaves)
        freed: list[Pages] = []
        num_freed = 0
        while num_freed < num_pages and leaves:
            node = heapq.heappop(leaves)[2]
            freed.append(node.pages)
            num_freed += len(node.pages)
            parent = self._remove(node)
            if parent.parent is not None and not parent.children and not parent.num_locks:
                heapq.heappush(leaves, (parent.last_used, id(parent), parent))
        self.num_pages -= num_freed
        self.num_evictable_pages -= num_freed
        self._roots = {owner: root for owner, root in self._roots.items() if root.children}
        return np.concatenate(freed) if freed else NO_PAGES

    def owned_pages(self) -> Pages:
        """Every page of the tree, for the integrity check."""
        pages = [node.pages for node in self._nodes()]
        return np.concatenate(pages) if pages else NO_PAGES

    def check_integrity(self, *, idle: bool = False) -> None:
        """Raise RuntimeError when counts are wrong or, with `idle`, a lock is left."""
        nodes = list(self._nodes())
        if self.num_pages != sum(len(n.pages) for n in nodes):
            raise RuntimeError("prefix cache: the number of pages is wrong")
        if self.num_evictable_pages != sum(len(n.pages) for n in nodes if not n.num_locks):
            raise RuntimeError("prefix cache: the number of evictable pages is wrong")
        if idle and any(n.num_locks for n in nodes):
            raise RuntimeError("prefix cache: a lock is left")

    def _walk(self, owner: Owner, tokens: Sequence[int]) -> Iterator[tuple[Node, Pages]]:
        """The nodes that spell the beginning of the text, and how much of each does."""
        node = self._roots.get(owner)
        position = 0
        while node is not None and position < len(tokens):
            node = node.children.get(tokens[position])
            if node is None:
                return
            num_equal = _num_equal(node.tokens, tokens, position)
            yield node, node.pages[:num_equal]
            if num_equal < len(node.tokens):
                return
            position += num_equal

    def _end(self, owner: Owner, tokens: Sequence[int]) -> Node:
        """The node at which the known beginning of the text ends; split where it ends inside."""
        self._clock += 1
        end = self._roots.setdefault(owner, Node([], NO_PAGES, None))
        for node, pages in list(self._walk(owner, tokens)):
            end = node if len(pages) == len(node.tokens) else self._split(node, len(pages))
            end.last_used = self._clock
        return end

    def _split(self, node: Node, at: int) -> Node:
        assert node.parent is not None
        head = Node(node.tokens[:at], node.pages[:at], node.parent, num_locks=node.num_locks)
        node.parent.children[head.tokens[0]] = head
        node.tokens, node.pages, node.parent = node.tokens[at:], node.pages[at:], head
        head.children[node.tokens[0]] = node
        return head

    def _add_locks(self, end: Node, count: int) -> None:
        for node in end.path():
            was_free = node.num_locks == 0
            node.num_locks += count
            if was_free:
                self.num_evictable_pages -= len(node.pages)
            elif node.num_locks == 0:
                self.num_evictable_pages += len(node.pages)

    def _remove(self, node: Node) -> Node:
        parent = node.parent
        assert parent is not None
        del parent.children[node.tokens[0]]
        return parent

    def _nodes(self) -> Iterator[Node]:
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            stack += node.children.values()
            yield node


def _num_equal(tokens: list[int], text: Sequence[int], start: int) -> int:
    length = min(len(tokens), len(text) - start)
    pairs = zip(tokens, text[start : start + length], strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), length)
