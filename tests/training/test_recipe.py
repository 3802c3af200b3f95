import pytest
import timm

from tests.conftest import ROOT
from training.errors import RecipeError
from training.recipe import Recipe, Stage, load_recipe


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "training" / "recipes").glob("*.toml")))
def test_shipped_recipes_load(name):
    recipe = load_recipe(name)
    assert recipe.num_epochs > 0
    assert timm.is_model(recipe.backbone)


def test_epochs_follow_the_stages():
    recipe = Recipe(stages=(Stage(photo_px=64, epochs=2), Stage(photo_px=96, epochs=1)))
    assert [recipe.stage_of_epoch(e).photo_px for e in range(3)] == [64, 64, 96]
    assert recipe.num_epochs == 3


def test_dict_round_trip():
    recipe = load_recipe("grocery")
    assert Recipe.from_dict(recipe.to_dict(), source="x") == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages = []", "stages = .*give at least one"),
        ("batch_size = 1\n[[stages]]\nphoto_px = 64\nepochs = 1", "batch_size = 1: batch norm needs at least 2"),
        ("lr = 1\n[[stages]]\nphoto_px = 64\nepochs = 1", "unknown field 'lr'; known: .*head_learning_rate"),
        ("[[stages]]\nphoto_px = 8\nepochs = 1", "stages.photo_px = 8: use 32..1024"),
        ("[[stages]]\nphoto_px = 64", "epochs"),
        ('brand_head = "cos"\n[[stages]]\nphoto_px = 64\nepochs = 1', "brand_head = 'cos': use one of .*cosine"),
        ("weight_decay = -1\n[[stages]]\nphoto_px = 64\nepochs = 1", "weight_decay = -1"),
        ("not toml", "is not TOML"),
    ],
)
def test_wrong_values_name_field_value_and_way_out(tmp_path, text, said):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(RecipeError, match=r"shipped: .*grocery, grocery_gpu, grocery_student, linear_probe, quick;"):
        load_recipe("groceries")


def test_features_of_the_first_backbone_cannot_follow_its_training():
    stages = (Stage(photo_px=64, epochs=1), Stage(photo_px=64, epochs=1, trains="heads_on_features"))
    with pytest.raises(RecipeError, match="heads_on_features before those that train all"):
        Recipe(stages=stages)
