import tempfile
from pathlib import Path

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from training.errors import RecipeError
from training.recipe import Recipe, Stage, list_shipped_recipes, load_recipe, read_about, read_recipe_text


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
        ("batch_size = 64.5\n[[stages]]\nphoto_px = 64\nepochs = 1", "batch_size = 64.5: use a whole number"),
        ("flip_probability = nan\n[[stages]]\nphoto_px = 64\nepochs = 1", "flip_probability = nan: use a finite"),
        ("trivial_augment = 1\n[[stages]]\nphoto_px = 64\nepochs = 1", "trivial_augment = 1: use true or false"),
        ("[[stages]]\nphoto_px = 64\nepochs = true", "stages.epochs = True: use a whole number"),
        ("[stages]\nphoto_px = 64\nepochs = 1", r"stages = .*give a table \[\[stages\]\] for each"),
        ("seed = -1\n[[stages]]\nphoto_px = 64\nepochs = 1", "seed = -1: use 0 or more"),
        ("weight_decay = -1\n[[stages]]\nphoto_px = 64\nepochs = 1", "weight_decay = -1"),
        ("not toml", "is not TOML"),
    ],
)
def test_wrong_values_name_field_value_and_way_out(tmp_path, text, said):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_recipe(str(path))


def test_the_machine_that_a_recipe_is_for_is_one_of_two(tmp_path):
    text = read_recipe_text("quick").replace('machine = "cpu"', 'machine = "GPU"')
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(RecipeError, match=r"\[about\]: machine = 'GPU': use one of 'cpu', 'gpu'"):
        read_about(str(tmp_path / "mine.toml"))


def test_an_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(
        RecipeError, match=r"shipped: .*grocery, grocery_gpu, grocery_student, linear_probe, quick, siglip2_base;"
    ):
        load_recipe("groceries")


def test_features_of_the_first_backbone_cannot_follow_its_training():
    stages = (Stage(photo_px=64, epochs=1), Stage(photo_px=64, epochs=1, trains="heads_on_features"))
    with pytest.raises(RecipeError, match="heads_on_features before those that train all"):
        Recipe(stages=stages)


def test_every_shipped_recipe_says_what_it_is_for():
    for name in list_shipped_recipes():
        about = read_about(name)
        assert about.machine in ("cpu", "gpu")
        assert all((about.data, about.time, about.expected))


def test_an_unknown_field_about_a_recipe_is_named(tmp_path):
    (tmp_path / "mine.toml").write_text(read_recipe_text("quick") + 'price = "free"\n')
    with pytest.raises(RecipeError, match=r"\[about\]: .*price"):
        read_about(str(tmp_path / "mine.toml"))
    assert load_recipe(str(tmp_path / "mine.toml")) == load_recipe("quick")


def test_a_field_can_be_set_by_name():
    recipe = load_recipe(
        "grocery", ["batch_size=8", "stages.1.photo_px=160", "brand_head=cosine", "trivial_augment=false"]
    )
    assert (recipe.batch_size, recipe.brand_head, recipe.trivial_augment) == (8, "cosine", False)
    assert [stage.photo_px for stage in recipe.stages] == [128, 160, 160, 192, 224]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.data())
def test_epochs_are_shared_out_over_the_stages(epochs, data):
    total = data.draw(st.integers(len(epochs), 200))
    stages = "".join(f"[[stages]]\nphoto_px = 64\nepochs = {count}\n" for count in epochs)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "r.toml").write_text(stages)
        recipe = load_recipe(f"{folder}/r.toml", [f"epochs={total}"])
    shares = [stage.epochs for stage in recipe.stages]
    assert sum(shares) == total
    assert min(shares) >= 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs=2", "epochs = 2: give a whole number of at least 5"),
        ("stages.9.photo_px=64", "no field 'stages.9.photo_px'; there are stages.0 to stages.4"),
        ("stages.0.size=64", "each with photo_px, epochs, trains"),
        ("lr=3", "--set lr=3: unknown field 'lr'; known"),
        ("batch_size=many", "--set batch_size=many"),
        ("batch_size", "give FIELD=VALUE"),
        ("epochs=true", "epochs = True: give a whole number"),
        ("stages=3", r"stages = 3: give a table \[\[stages\]\] for each"),
        ("trivial_augment=False", "trivial_augment = 'False': use true or false, in lower case"),
        ("trivial_augment=no", "trivial_augment = 'no': use true or false, in lower case"),
        ("trivial_augment=0", "trivial_augment = 0: use true or false"),
        ("seed=abc", "--set seed=abc: seed = 'abc': use a whole number"),
        ("seed=true", "seed = True: use a whole number"),
        ("batch_size=64.5", "batch_size = 64.5: use a whole number"),
        ("stages.0.photo_px=160.5", "stages.photo_px = 160.5: use a whole number"),
        ("backbone=5", "backbone = 5: use a text, in quotes as in TOML"),
        ("head_learning_rate=true", "head_learning_rate = True: use a finite number"),
        ("head_learning_rate=inf", "head_learning_rate = inf: use a finite number"),
        ("head_learning_rate=.5", "head_learning_rate = '.5': use a finite number, such as 0.5"),
        ("schedule=[]", r"schedule = \[\]: use one of 'cosine', 'tanh', 'poly'"),
        ("stages.0.photo_px=2", "--set stages.0.photo_px=2: stages.photo_px = 2: use 32"),
    ],
)
def test_what_cannot_be_set_says_why(text, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe("grocery", [text])


def test_a_whole_number_is_a_float_too():
    assert load_recipe("quick", ["weight_decay=0"]).weight_decay == 0


def test_fields_that_need_one_another_are_set_in_any_order():
    overrides = ["early_stopping_epochs=5", "final_weights=best"]
    assert load_recipe("quick", overrides) == load_recipe("quick", overrides[::-1])


def test_what_overrides_mean_together_is_refused_with_all_of_them():
    with pytest.raises(RecipeError, match=r"^--set early_stopping_epochs=5 --set seed=3: early_stopping_epochs = 5"):
        load_recipe("quick", ["early_stopping_epochs=5", "seed=3"])
