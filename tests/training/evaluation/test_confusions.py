import numpy as np

from tests.support.helpers import create_small_taxonomy
from training.evaluation.confusions import MAX_EXAMPLES, find_confusions
from training.evaluation.scored_rows import score_rows
from training.inference.predictions import Predictions
from vision.calibration import Calibration
from vision.manifest import Labels

TAXONOMY = create_small_taxonomy()


def view(answers, labels, sureness):
    num = len(answers)
    nodes = np.array([TAXONOMY.node_index[TAXONOMY.leaf_ids[i]] if i >= 0 else -1 for i in labels])
    predictions = Predictions(
        category_logits=(np.eye(4)[answers] * np.array(sureness)[:, None]).astype(np.float32),
        brand_logits=np.zeros((num, 3), np.float32),
        scope_scores=np.ones(num, np.float32),
        labels=Labels(category_nodes=nodes, brands=np.full(num, -1)),
        groups=np.arange(num),
        listing_ids=tuple(map(str, range(num))),
        photo_urls=tuple(f"{i}.jpg" for i in range(num)),
        unusable=(),
    )
    calibration = Calibration(certifies={})
    return score_rows(predictions, predictions.groups, taxonomy=TAXONOMY, calibration=calibration, clusters=None)


def test_the_most_frequent_mistake_is_first_and_its_surest_photos_are_shown():
    #          Gala for Fuji, four times    Fuji right  lemon for tools  Gala right  not labelled
    answers = [0, 0, 0, 0, 1, 3, 0, 2]
    labels_ = [1, 1, 1, 1, 1, 2, 0, -1]
    found = find_confusions(view(answers, labels_, [1, 4, 3, 2, 1, 5, 1, 9]), TAXONOMY)
    assert [(pair["truth"], pair["answer"], pair["num"], pair["num_truth"]) for pair in found] == [
        ("fuji", "gala", 4, 5),
        ("lemon", "tools", 1, 1),
    ]
    first, second = found
    assert first["share"] == 0.8
    assert first["truth_path"] == "Fruit > Apple > Fuji"
    assert first["photos"] == ["1.jpg", "2.jpg", "3.jpg"]
    assert len(first["photos"]) == MAX_EXAMPLES
    assert first["photos_of_answer"] == ["6.jpg"]
    assert second["photos_of_answer"] == []  # no listing of tools is among them


def test_an_answer_that_is_never_right_is_shown_by_its_label():
    (pair, _) = find_confusions(view([0, 1], [1, 0], [1, 1]), TAXONOMY)
    assert (pair["truth"], pair["photos"], pair["photos_of_answer"]) == ("gala", ["1.jpg"], ["0.jpg"])


def test_no_mistake_no_pair():
    assert find_confusions(view([0, 1], [0, 1], [1, 1]), TAXONOMY) == []
