import numpy as np

from tests.support.helpers import create_small_taxonomy
from vision.category_tree import build_category_tree

TAXONOMY = create_small_taxonomy()


def test_siblings_are_side_by_side_from_the_roots_down():
    tree = TAXONOMY.tree
    names = [TAXONOMY.categories[node].id for node in tree.nodes]
    assert [names[depth] for depth in tree.depths] == [["fruit", "tools"], ["apple", "lemon"], ["gala", "fuji"]]
    assert tree.parents.tolist() == [0, 0, 1, 1, 3, 3]
    assert tree.sibling_starts.tolist() == [0, 2, 4]
    assert tree.sibling_sets.tolist() == [0, 0, 1, 1, 2, 2]
    assert [names[position] for position in tree.leaf_positions] == list(TAXONOMY.leaf_ids)
    assert tree.nodes[tree.positions].tolist() == list(range(6))


def test_categories_in_any_order():
    # Roots 3 and 1; below 3 the leaves 4 and 0, between them in the file the leaf 2, which is below 1.
    tree = build_category_tree(np.array([[3, 0], [1, 2], [3, 4]]), 5)
    assert tree.nodes.tolist() == [1, 3, 2, 0, 4]
    assert tree.parents.tolist() == [0, 0, 1, 2, 2]
    assert tree.leaf_order.tolist() == [1, 0, 2]
    assert tree.leaf_starts.tolist() == [0, 1]
    assert tree.sum_order.tolist() == [0, 1, 2 + 1, 2 + 0, 2 + 2]
