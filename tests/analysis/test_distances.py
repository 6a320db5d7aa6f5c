"""Distances are those that one finds by walking up the tree, and by counting places."""

import pytest
import torch

from mlm_lightning.analysis.distances import Distances, tree
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.uniform import UniformSource


def walked(one: int, other: int) -> int:
    """Steps up from two leaves until they meet."""
    steps = 0
    while one != other:
        one, other, steps = one // 2, other // 2, steps + 1
    return steps


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_distance_is_that_of_the_lowest_common_ancestor(depth: int) -> None:
    leaves = range(2**depth)
    assert tree(depth).tolist() == [[walked(one, other) for other in leaves] for one in leaves]


@pytest.mark.parametrize("depth", [1, 4])
def test_a_label_names_the_level_where_the_two_meet(depth: int) -> None:
    distances = Distances.of(TreeSource(depth=depth), 2**depth)
    assert len(distances.labels) == depth + 1 == int(distances.class_LL.max()) + 1
    assert distances.labels[0] == "0\nitself"
    assert distances.labels[-1] == f"{depth}\nroot"
    assert [label.split("\n")[1] for label in distances.labels[1:-1]] == [f"level {depth - d}" for d in range(1, depth)]


def test_beyond_the_filter_level_leaves_know_of_each_other_by_the_root_alone() -> None:
    # depth 3, k = 1: nodes of level 1 are independent given the root, so that leaves of one such node are at most 2 apart
    assert Distances.of(TreeSource(depth=3, filter_level=1), 8).related == 2
    assert Distances.of(TreeSource(depth=3, filter_level=3), 8).related == 0
    assert Distances.of(TreeSource(depth=3, filter_level=0), 8).related is None


@pytest.mark.parametrize("length", [1, 2, 3, 9, 16, 17])
def test_a_label_of_places_has_all_distances_in_its_range_and_no_other(length: int) -> None:
    distances = Distances.of(UniformSource(seq_len=length), length)
    found: dict[int, set[int]] = {}
    for one in range(length):
        for other in range(length):
            found.setdefault(int(distances.class_LL[one, other]), set()).add(abs(one - other))
            assert distances.apart_LL[one, other] == abs(one - other)
    assert set(found) == set(range(len(distances.labels)))
    for number, label in enumerate(distances.labels):
        low, _, high = label.partition("-")
        assert found[number] == set(range(int(low), int(high or low) + 1))
    assert torch.equal(distances.class_LL, distances.class_LL.T)
