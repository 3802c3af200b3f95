from training.reporting.field_titles import format_field_title, join_field_titles


def test_titles():
    names = ("leaf", "brand", "category_path", "category_depth_2", "depth_3")
    titles = ["Leaf category", "Brand", "Category", "Category, depth 2", "Category, depth 3"]
    assert [format_field_title(name) for name in names] == titles


def test_titles_within_a_sentence():
    assert join_field_titles(["brand"]) == "brand"
    assert join_field_titles(["leaf", "brand", "category_path"]) == "leaf category, brand and category"
