"""The nodes of a taxonomy as arrays, planned once: what sums of leaf probabilities up the tree need."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["CategoryTree", "build_category_tree"]

Ints = npt.NDArray[np.int64]


class CategoryTree(NamedTuple):
    """V nodes from the roots down, siblings side by side; a node's position is its place in this order.

    C leaves, D depths, S sets of siblings.
    """

    nodes: Ints
    """(V,) index into `Taxonomy.categories` of the node at each position."""
    positions: Ints
    """(V,) position of each category."""
    depths: tuple[slice, ...]
    """The D ranges of positions, one a depth from the roots down."""
    parents: Ints
    """(V,) 1 + position of each node's parent; 0 for the roots."""
    sibling_starts: Ints
    """(S,) position of the first node of each set; the roots are one."""
    sibling_sets: Ints
    """(V,) the set of each node."""
    leaf_order: Ints
    """The leaves below each of the I inner nodes in turn."""
    leaf_starts: Ints
    """(I,) where each inner node's leaves begin in `leaf_order`."""
    sum_order: Ints
    """(V,) of each node, its index among the inner nodes, or I + its index among the leaves."""
    leaf_positions: Ints
    """(C,) position of each leaf."""
    paths: Ints
    """(D, C) index into `Taxonomy.categories` of each leaf's ancestor at each depth, -1 beyond the leaf's own."""


def build_category_tree(leaf_paths: Ints, num_categories: int) -> CategoryTree:
    """Return the tree of (C, D) paths as of `Taxonomy.leaf_paths`; each category is on one."""
    paths = np.ascontiguousarray(leaf_paths.T)
    positions = np.zeros(num_categories, dtype=np.int64)
    nodes, parents, orders, counts = [], [], [], []
    depths: list[slice] = []
    for depth, ancestors in enumerate(paths):
        leaves = np.flatnonzero(ancestors >= 0)
        parents_of_leaves = 1 + positions[paths[depth - 1, leaves]] if depth else np.zeros(len(leaves), np.int64)
        order = np.lexsort((leaves, ancestors[leaves], parents_of_leaves))
        leaves, parents_of_leaves = leaves[order], parents_of_leaves[order]
        firsts = np.flatnonzero(np.diff(ancestors[leaves], prepend=-1))
        nodes.append(ancestors[leaves[firsts]])
        parents.append(parents_of_leaves[firsts])
        orders.append(leaves)
        counts.append(np.diff(firsts, append=len(leaves)))
        begin = depths[-1].stop if depths else 0
        depths.append(slice(begin, begin + len(firsts)))
        positions[nodes[-1]] = np.arange(begin, begin + len(firsts))
    all_parents, all_counts = np.concatenate(parents), np.concatenate(counts)
    is_first = np.diff(all_parents, prepend=-1) != 0
    leaf_positions = positions[leaf_paths[np.arange(len(leaf_paths)), (leaf_paths >= 0).sum(axis=1) - 1]]
    is_inner = np.ones(num_categories, dtype=bool)
    is_inner[leaf_positions] = False
    sum_order = np.cumsum(is_inner) - 1
    sum_order[leaf_positions] = is_inner.sum() + np.arange(len(leaf_paths))
    return CategoryTree(
        nodes=np.concatenate(nodes),
        positions=positions,
        depths=tuple(depths),
        parents=all_parents,
        sibling_starts=np.flatnonzero(is_first),
        sibling_sets=np.cumsum(is_first) - 1,
        leaf_order=np.concatenate(orders)[np.repeat(is_inner, all_counts)],
        leaf_starts=np.cumsum(all_counts[is_inner]) - all_counts[is_inner],
        sum_order=sum_order,
        leaf_positions=leaf_positions,
        paths=paths,
    )
