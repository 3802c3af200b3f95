import numpy as np

from tests.support.helpers import create_small_taxonomy
from vision.calibration import Calibration
from vision.prediction.agreement import find_contradictions
from vision.prediction.listings import predict_paths

TAXONOMY = create_small_taxonomy()
AT = {leaf: i for i, leaf in enumerate(TAXONOMY.leaf_ids)}


def log_shares(**shares: float) -> np.ndarray:
    """Log probabilities of one photo; leaves that are not named share the rest."""
    row = np.full(len(AT), (1 - sum(shares.values())) / (len(AT) - len(shares)))
    for leaf, share in shares.items():
        row[AT[leaf]] = share
    return np.log(row)


def find(photos: list[np.ndarray], *path_leaves: str, groups: list[int], limit: float | None = 0.1) -> list[list[bool]]:
    leaves = np.eye(len(AT))[[AT[leaf] for leaf in path_leaves]]
    paths = predict_paths(leaves, TAXONOMY)
    calibration = Calibration(agreement_limit=limit, certifies={})
    return find_contradictions(np.array(photos), np.array(groups), paths.nodes, calibration, TAXONOMY).tolist()


def test_a_photo_contradicts_the_steps_that_it_gives_a_small_share_of_the_likeliest():
    # Fruit > Apple > {Gala, Fuji}, Fruit > Lemon, Tools.
    gala, fuji = log_shares(gala=0.9, fuji=0.08), log_shares(gala=0.05, fuji=0.9)
    tools, unsure = log_shares(tools=0.96), log_shares(gala=0.2, fuji=0.3, tools=0.3)
    found = find([gala, fuji, tools, unsure], "gala", groups=[0, 0, 0, 0])
    assert found == [[False] * 3, [False, False, True], [True] * 3, [False] * 3]


def test_the_only_photo_of_a_listing_contradicts_nothing():
    assert not np.any(find([log_shares(tools=0.96), log_shares(gala=0.9)], "gala", "fuji", groups=[0, 1]))


def test_without_a_limit_nothing_is_contradicted():
    assert not np.any(find([log_shares(gala=0.9), log_shares(tools=0.96)], "gala", groups=[0, 0], limit=None))


def test_steps_beyond_the_end_of_the_path_are_not_contradicted():
    found = find([log_shares(tools=0.9), log_shares(gala=0.98)], "tools", groups=[0, 0])
    assert found == [[False] * 3, [True, False, False]]


def test_many_photos_are_judged_as_each_listing_alone():
    rng = np.random.default_rng(0)
    photos = [rng.normal(0, 3, len(AT)) for _ in range(900)]
    groups = np.arange(900) // 3
    leaves = [TAXONOMY.leaf_ids[i] for i in rng.integers(0, len(AT), 300)]
    together = find(photos, *leaves, groups=groups.tolist())
    assert 0 < np.mean(together) < 1
    for i in (0, 85, 299):
        assert together[3 * i : 3 * i + 3] == find(photos[3 * i : 3 * i + 3], leaves[i], groups=[0, 0, 0])
