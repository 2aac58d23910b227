"""The radix tree against a plain dictionary of everything it was told."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finlora.engine.prefix_cache import NO_PAGES, Owner, PrefixCache

TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=8)
OWNERS: st.SearchStrategy[Owner] = st.sampled_from([("", None), ("", "d"), ("salt", "d")])


class Model:
    """What the tree must answer: a page for every (owner, beginning) that was published."""

    def __init__(self) -> None:
        self.tree = PrefixCache()
        self.pages: dict[tuple[Owner, tuple[int, ...]], int] = {}
        self._next_page = 1

    def publish(self, owner: Owner, text: list[int]) -> None:
        pages = np.arange(self._next_page, self._next_page + len(text))
        self._next_page += len(text)
        published = self.tree.publish(owner, text, pages)
        for i, page in enumerate(pages.tolist()):
            self.pages.setdefault((owner, tuple(text[: i + 1])), page)
        num_known = len(published.known)
        assert published.known.tolist() == self.expected(owner, text)[:num_known]
        self.tree.unlock(published.node)

    def expected(self, owner: Owner, text: list[int]) -> list[int]:
        found = []
        for i in range(len(text)):
            page = self.pages.get((owner, tuple(text[: i + 1])))
            if page is None:
                break
            found.append(page)
        return found


@given(st.lists(st.tuples(OWNERS, TEXTS), max_size=12), OWNERS, TEXTS)
def test_the_longest_known_beginning_is_found(
    published: list[tuple[Owner, list[int]]], owner: Owner, text: list[int]
) -> None:
    model = Model()
    for one_owner, one_text in published:
        model.publish(one_owner, one_text)
        model.tree.check_integrity(idle=True)
    assert model.tree.match(owner, text).tolist() == model.expected(owner, text)
    node, pages = model.tree.lock(owner, text)
    assert pages.tolist() == model.expected(owner, text)
    model.tree.check_integrity()
    model.tree.unlock(node)
    assert sorted(model.tree.owned_pages()) == sorted(model.pages.values())


@given(st.lists(TEXTS, min_size=1, max_size=12), TEXTS, st.integers(1, 40))
def test_eviction_spares_what_is_locked_and_frees_what_it_says(
    texts: list[list[int]], kept: list[int], num_pages: int
) -> None:
    model = Model()
    owner: Owner = ("", None)
    for text in texts:
        model.publish(owner, text)
    node, locked = model.tree.lock(owner, kept)
    before = model.tree.num_pages
    evictable = model.tree.num_evictable_pages
    assert evictable == before - len(locked)
    freed = model.tree.evict(num_pages)
    model.tree.check_integrity()
    assert len(freed) >= min(num_pages, evictable)
    assert before - model.tree.num_pages == len(freed)
    assert not set(freed) & set(locked)
    assert model.tree.match(owner, kept).tolist() == locked.tolist()
    model.tree.unlock(node)
    model.tree.evict(10**6)
    assert model.tree.num_pages == 0
    assert model.tree.match(owner, kept).tolist() == NO_PAGES.tolist()


def test_the_least_recently_used_goes_first() -> None:
    model = Model()
    owner: Owner = ("", None)
    for text in ([1, 1], [2, 2], [0, 0]):
        model.publish(owner, text)
    node, _ = model.tree.lock(owner, [1, 1])
    model.tree.unlock(node)
    model.tree.evict(2)
    assert len(model.tree.match(owner, [2, 2])) == 0
    assert len(model.tree.match(owner, [1, 1])) == 2
    assert len(model.tree.match(owner, [0, 0])) == 2
