import pytest

RECIPE = """
backbone = "test_efficientnet"
weights = "none"
input_px = 32
batch_size = 16
[[stages]]
photo_px = 32
epochs = 1
"""


@pytest.fixture
def recipe(tmp_path) -> str:
    """Path of a recipe for a tiny network, an epoch long."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return str(tmp_path / "recipe.toml")
