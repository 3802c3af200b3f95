import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.synthetic import create_synthetic_calibration, create_synthetic_predictions
from training.evaluation.categories import MAX_ERRORS, count_confusions, evaluate_categories
from training.evaluation.scored_rows import score_rows

TAXONOMY = create_small_taxonomy()
CALIBRATION = create_synthetic_calibration()


@pytest.fixture(scope="module")
def view():
    predictions = create_synthetic_predictions(num_listings=150)
    return score_rows(predictions, predictions.groups, taxonomy=TAXONOMY, calibration=CALIBRATION, clusters=None)


@pytest.fixture(scope="module")
def categories(view):
    return {one["category"]: one for one in evaluate_categories(view, TAXONOMY, CALIBRATION)}


def test_figures_of_a_category_by_hand(view, categories):
    gala = TAXONOMY.leaf_ids.index("gala")
    labelled, predicted = view.truth.leaves == gala, view.leaves.argmax(axis=1) == gala
    known = view.truth.leaves >= 0
    found = categories["gala"]
    assert found["path"] == "Fruit > Apple > Gala"
    assert found["parent"] == "Fruit > Apple"
    assert found["num"] == labelled.sum()
    assert found["recall"] == pytest.approx((labelled & predicted).sum() / labelled.sum())
    assert found["precision"] == pytest.approx((labelled & predicted).sum() / (known & predicted).sum())
    assert found["num_filled"] == (labelled & view.filled[:, 0]).sum()
    assert found["threshold"] is None  # the third depth carries no guarantee
    assert categories["lemon"]["threshold"] == 0.8


def test_errors_are_the_most_confident_mistakes(categories):
    errors = categories["gala"]["errors"]
    assert 0 < len(errors) <= MAX_ERRORS
    confidences = [error["confidence"] for error in errors]
    assert confidences == sorted(confidences, reverse=True)
    assert all(error["answer_path"] != "Fruit > Apple > Gala" for error in errors)


def test_the_matrix_counts_every_row_with_a_known_leaf(view, categories):
    cells = count_confusions(view, TAXONOMY)
    assert sum(cell["num"] for cell in cells) == (view.truth.leaves >= 0).sum()
    assert sum(cell["num"] for cell in cells if cell["truth"] == "gala") == categories["gala"]["num"]
