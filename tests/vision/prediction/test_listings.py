import numpy as np

from tests.support.helpers import create_small_taxonomy
from vision.prediction.listings import predict_paths

TAXONOMY = create_small_taxonomy()


def test_paths_end_where_the_leaf_ends():
    paths = predict_paths(np.array([[0, 0, 0, 1.0], [1.0, 0, 0, 0]]), TAXONOMY)
    assert paths.nodes.tolist() == [
        [TAXONOMY.node_index["tools"], -1, -1],
        [TAXONOMY.node_index[i] for i in ("fruit", "apple", "gala")],
    ]
    assert paths.scores[0].tolist() == [1, 0, 0]
