from training.evaluation.confusion_blocks import MAX_MATRIX, build_confusion_blocks, choose_sample_errors


def create_category(category, parent, *, num=10, recall=0.5, errors=("x",)):
    path = f"{parent} > {category}" if parent else category
    return {"category": category, "path": path, "parent": parent, "num": num, "recall": recall, "errors": errors}


PART = {
    "categories": [create_category("gala", "Fruit"), create_category("fuji", "Fruit"), create_category("saw", "Tools")],
    "confusion_matrix": [
        {"truth": "gala", "answer": "gala", "num": 7},
        {"truth": "gala", "answer": "fuji", "num": 2},
        {"truth": "fuji", "answer": "saw", "num": 5},
    ],
}


def test_the_worst_block_is_the_parent_within_which_most_mistakes_stay():
    blocks = build_confusion_blocks(PART)
    assert blocks["worst"] == {
        "title": "Fruit",
        "names": ["gala", "fuji"],
        "rows": [("gala", [7, 2]), ("fuji", [0, 0])],
    }
    assert blocks["whole"]["rows"][1] == ("fuji", [0, 0, 5])
    assert blocks["mistakes"][0] == {"name": "Fruit > fuji → Tools > saw", "num": 5}


def test_a_matrix_too_large_for_a_page_is_listed_by_its_cells():
    many = [create_category(str(number), "") for number in range(MAX_MATRIX + 1)]
    blocks = build_confusion_blocks({"categories": many, "confusion_matrix": []})
    assert (blocks["worst"], blocks["whole"], blocks["mistakes"]) == (None, None, [])


def test_the_categories_with_most_mistakes_come_first():
    few, many = create_category("few", "", recall=0.9), create_category("many", "", recall=0.2)
    without = create_category("without", "", recall=1.0, errors=())
    assert choose_sample_errors([few, without, many]) == [many, few]
