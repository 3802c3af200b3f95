import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.support.helpers import create_small_taxonomy
from vision.calibration import Calibration
from vision.prediction.fusion import (
    compute_leaf_probabilities,
    compute_node_probabilities,
    fuse_brand_logits,
    fuse_logits,
    softmax,
)
from vision.taxonomy import Category, Taxonomy

TAXONOMY = create_small_taxonomy()

some_logits = st.integers(1, 6).flatmap(
    lambda p: hnp.arrays(np.float32, (p, len(TAXONOMY.leaf_ids)), elements=st.floats(-30, 30, width=32))
)


@given(some_logits)
def test_probabilities_up_the_tree_never_exceed_one_nor_fall_below_their_children(logits):
    leaves = softmax(logits)
    nodes = compute_node_probabilities(leaves, TAXONOMY)
    assert (nodes <= 1).all()
    for category in TAXONOMY.categories:
        if category.parent_id is not None:
            parent, child = TAXONOMY.node_index[category.parent_id], TAXONOMY.node_index[category.id]
            assert (nodes[:, parent] >= nodes[:, child] - 1e-12).all()
    roots = [TAXONOMY.node_index[c.id] for c in TAXONOMY.categories if c.parent_id is None]
    np.testing.assert_allclose(nodes[:, roots].sum(axis=1), 1)


def create_ragged_taxonomy() -> Taxonomy:
    """Nodes in any order of the file, leaves at depths 1 to 4, 12 siblings in a set."""
    tree = [("r0", None), ("r1", None), *((f"a{i}", "r0") for i in range(12)), *((f"b{i}", "a3") for i in range(3))]
    tree += [*((f"c{i}", "a7") for i in range(5)), ("d", "b1"), ("e", "b1")]
    order = np.random.default_rng(1).permutation(len(tree)).tolist()
    categories = (Category(id=tree[i][0], names={"en": tree[i][0]}, parent_id=tree[i][1]) for i in order)
    return Taxonomy(version="ragged", categories=tuple(categories), brands=())


def compute_leaves_plainly(logits: np.ndarray, calibration: Calibration, taxonomy: Taxonomy) -> dict[str, float]:
    """Leaf probabilities of one photo by the formulas alone, node by node; sums as NumPy adds up a segment."""

    def add(values: list[float]) -> float:
        return np.add.reduceat(np.array(values), [0])[0]

    def add_below(id_: str) -> float:
        lineages = {leaf: [one.id for one in taxonomy.get_lineage(leaf)] for leaf in taxonomy.leaf_ids}
        return add([leaves[leaf] for leaf, lineage in lineages.items() if id_ in lineage])

    def descend(parent: str | None, above: float, mass: float, depth: int) -> None:
        children = [one.id for one in taxonomy.categories if one.parent_id == parent]
        sums = {child: add_below(child) for child in children}
        power = 1 / calibration.category_depth_temperatures[depth]
        shares = {child: (np.array([sums[child]]) / mass)[0:1] ** power for child in children}
        total = add([shares[child][0] for child in children])
        for child in children:
            here = above * shares[child][0] / total
            if child in leaves:
                found[child] = here
            else:
                descend(child, here, sums[child], depth + 1)

    scaled = (logits.astype(np.float64) + calibration.category_log_prior) / calibration.category_temperature
    shifted = np.exp(scaled - scaled.max())
    leaves = dict(zip(taxonomy.leaf_ids, shifted / shifted.sum(), strict=True))
    found: dict[str, float] = {}
    descend(None, 1.0, np.array(list(leaves.values())).sum(), 0)
    return found


@pytest.mark.parametrize("taxonomy", [TAXONOMY, create_ragged_taxonomy()], ids=["small", "ragged"])
def test_leaves_are_bit_for_bit_those_of_the_plain_formulas(taxonomy):
    rng = np.random.default_rng(0)
    calibration = Calibration(
        category_temperature=1.3,
        category_depth_temperatures=(0.8, 1.1, 1.7, 0.6)[: taxonomy.max_depth],
        category_log_prior=tuple(rng.normal(size=len(taxonomy.leaf_ids)).tolist()),
        certifies={},
    )
    logits = rng.normal(0, 4, (50, len(taxonomy.leaf_ids))).astype(np.float32)
    together = compute_leaf_probabilities(logits, None, calibration, taxonomy)
    for photo, row in zip(logits, together, strict=True):
        plain = compute_leaves_plainly(photo, calibration, taxonomy)
        assert row.tolist() == [plain[leaf] for leaf in taxonomy.leaf_ids]
        one_listing = compute_leaf_probabilities(photo[None], np.zeros(1, int), calibration, taxonomy)
        assert one_listing[0].tolist() == row.tolist()


def test_temperatures_by_depth_by_hand():
    # Fruit > Apple > {Gala, Fuji}, Fruit > Lemon, Tools.
    at = {leaf: i for i, leaf in enumerate(TAXONOMY.leaf_ids)}
    plain = np.empty(4)
    for leaf, probability in (("gala", 0.24), ("fuji", 0.06), ("lemon", 0.3), ("tools", 0.4)):
        plain[at[leaf]] = probability
    certified = Calibration(category_depth_temperatures=(0.5, 1.0, 0.5), certifies={})
    refined = compute_leaf_probabilities(np.log(plain)[None], np.array([0]), certified, TAXONOMY)[0]
    fruit = 0.6**2 / (0.6**2 + 0.4**2)
    gala = 0.8**2 / (0.8**2 + 0.2**2)
    assert refined[at["tools"]] == pytest.approx(1 - fruit)
    assert refined[at["lemon"]] == pytest.approx(fruit * 0.5)
    assert refined[at["gala"]] == pytest.approx(fruit * 0.5 * gala)
    assert refined[at["fuji"]] == pytest.approx(fruit * 0.5 * (1 - gala))


def test_fusing_against_plain_loops():
    rng = np.random.default_rng(0)
    logits, groups = rng.normal(size=(7, 4)), np.array([0, 1, 0, 2, 2, 2, 1])
    for how, reduce in (("mean", np.mean), ("max", np.max)):
        wanted = [reduce(logits[groups == g], axis=0) for g in range(3)]
        np.testing.assert_allclose(fuse_logits(logits, groups, how=how), wanted)


def test_temperatures_soften_without_reordering():
    logits, groups = np.array([[3.0, 1.0, 0.0, -1.0]]), np.array([0])
    sharp = compute_leaf_probabilities(logits, groups, Calibration(certifies={}), TAXONOMY)
    soft = compute_leaf_probabilities(logits, groups, Calibration(category_temperature=2, certifies={}), TAXONOMY)
    assert soft[0, 0] < sharp[0, 0]
    assert (np.argsort(soft) == np.argsort(sharp)).all()
    np.testing.assert_allclose(soft, softmax(logits / 2))


def test_a_logo_in_one_photo_wins_under_max():
    logits, groups = np.array([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 5.0, 0.0]]), np.zeros(3, int)
    by_mean = softmax(fuse_brand_logits(logits, groups, Calibration(certifies={})))
    by_max = softmax(fuse_brand_logits(logits, groups, Calibration(brand_fusion="max", certifies={})))
    assert by_max[0, 1] > by_mean[0, 1]
    assert by_max[0].argmax() == 1
