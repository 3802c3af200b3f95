import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from tests.support.helpers import create_small_taxonomy, create_trainer
from training.errors import RecipeError, RunError
from training.inference.evaluated_model import load_evaluated_model
from training.recipe import load_recipe
from training.run import Run
from training.trainer.distillation import Teacher, compute_distillation_losses
from training.trainer.losses import ListingLoss, NumLabelled
from vision.manifest import Labels
from vision.model import Outputs
from vision.runtime.files import compute_sha256

CPU = torch.device("cpu")


def create_teacher(judged):
    return Teacher(judged, judged.taxonomy, CPU, version="1")


def test_the_loss_is_the_divergence_of_softened_answers_times_the_temperature_squared():
    random = np.random.default_rng(0)
    logits, taught = random.normal(size=(2, 5, 7)) * 3

    def softened(x):
        exp = np.exp(x / 3 - (x / 3).max(axis=1, keepdims=True))
        return exp / exp.sum(axis=1, keepdims=True)

    wanted, answered = softened(taught), softened(logits)
    expected = 9 * (wanted * np.log(wanted / answered)).sum(axis=1)
    found = compute_distillation_losses(torch.tensor(logits), torch.tensor(taught), temperature=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert compute_distillation_losses(torch.tensor(taught), torch.tensor(taught), temperature=3).max() < 1e-6


def test_micro_batches_add_up_to_the_step_and_the_brand_is_weighted():
    taxonomy = create_small_taxonomy()
    labels = Labels(category_nodes=np.array([-1]), brands=np.array([-1]))
    loss = ListingLoss.build(taxonomy, labels, CPU, adjust_logits=False, brand_weight=0.5, label_smoothing=0.0)
    leaves, brands = len(taxonomy.leaf_ids), len(taxonomy.brand_labels)
    generator = torch.Generator().manual_seed(0)
    mine, taught = (
        Outputs(*(torch.randn(4, size, generator=generator) for size in (leaves, brands, 3, 1))) for _ in range(2)
    )
    counted = NumLabelled(0, 0, 4)

    def loss_of(rows):
        parts = (Outputs(*(tensor[rows] for tensor in outputs)) for outputs in (mine, taught))
        return float(loss.distill(*parts, temperature=2.0, num_labelled=counted))

    whole = loss_of(slice(None))
    assert loss_of(slice(0, 1)) + loss_of(slice(1, 4)) == pytest.approx(whole)
    category = compute_distillation_losses(mine.category_logits, taught.category_logits, temperature=2.0).mean()
    brand = compute_distillation_losses(mine.brand_logits, taught.brand_logits, temperature=2.0).mean()
    assert whole == pytest.approx(float(category + 0.5 * brand), rel=1e-5)


def test_a_teacher_takes_photos_of_any_size_and_has_natural_frequencies_in(bundle):
    photos = torch.from_numpy(bundle.golden.photos_nhwc)
    judged = load_evaluated_model(bundle.folder)
    plain = create_teacher(judged).infer(photos)
    np.testing.assert_allclose(plain.category_logits, bundle.golden.category_logits, atol=1e-3)
    smaller = torch.nn.functional.interpolate(photos.permute(0, 3, 1, 2).float(), 48, mode="bilinear")
    answered = create_teacher(judged).infer(smaller.permute(0, 2, 3, 1))
    assert answered.category_logits.shape == plain.category_logits.shape

    prior = tuple(np.linspace(-1, 1, plain.category_logits.shape[1]))
    calibration = dataclasses.replace(judged.calibration, category_log_prior=prior)
    shifted = create_teacher(dataclasses.replace(judged, calibration=calibration)).infer(photos)
    np.testing.assert_allclose(shifted.category_logits - plain.category_logits, np.tile(prior, (2, 1)), atol=1e-5)


def test_a_teacher_of_another_taxonomy_is_refused(bundle):
    with pytest.raises(RunError, match="leaves or brands are not those of small-1"):
        Teacher.load(bundle.folder, create_small_taxonomy(), CPU)


def test_a_run_teaches_like_its_export_unless_its_frequencies_are_not_the_natural_ones(trained_run, bundle, tmp_path):
    photos = torch.from_numpy(bundle.golden.photos_nhwc)
    of_run, of_bundle = (Teacher.load(folder, bundle.taxonomy, CPU) for folder in (trained_run.folder, bundle.folder))
    np.testing.assert_array_equal(*(teacher.infer(photos).category_logits for teacher in (of_run, of_bundle)))
    # The weights of an export have a scope head besides, so that the two are not taken for the same file.
    assert of_run.version == compute_sha256(trained_run.folder / "weights.safetensors")[:12] != of_bundle.version
    assert of_bundle.version == bundle.info.model_version

    shutil.copytree(trained_run.folder, tmp_path / "run")
    asked = json.loads((tmp_path / "run" / "run.json").read_text())
    asked["recipe"]["long_tail"] = "logit_adjustment"
    (tmp_path / "run" / "run.json").write_text(json.dumps(asked))
    with pytest.raises(RunError, match="export it and give the bundle"):
        Teacher.load(tmp_path / "run", bundle.taxonomy, CPU)


@pytest.fixture(scope="module")
def distilled_run(tmp_path_factory, synthetic_dataset, small_recipe, bundle):
    recipe = dataclasses.replace(small_recipe, distillation_weight=1.0, label_smoothing=0.0)
    folder = tmp_path_factory.mktemp("distilled") / "run"
    trainer = create_trainer(folder, synthetic_dataset, recipe, teacher=bundle.folder)
    trainer.run()
    return Run(folder)


def test_a_student_without_labels_of_its_own_learns_to_answer_like_its_teacher(distilled_run, bundle):
    photos = torch.from_numpy(bundle.golden.photos_nhwc)
    taught = Teacher.load(bundle.folder, bundle.taxonomy, CPU).infer(photos)
    with torch.inference_mode():
        answered = distilled_run.load_model()(photos)
    student = compute_distillation_losses(answered.category_logits, taught.category_logits, temperature=1.0).mean()
    nothing_learned = torch.zeros_like(taught.category_logits)
    assert student < 0.5 * compute_distillation_losses(nothing_learned, taught.category_logits, temperature=1.0).mean()
    records = distilled_run.metrics()
    assert records[-1]["loss"] < records[0]["loss"]


def test_a_run_says_who_taught_it_and_goes_on_with_nobody_else(distilled_run, synthetic_dataset, bundle):
    assert distilled_run.read_settings()["teacher"] == bundle.info.model_version
    trainer = create_trainer(
        distilled_run.folder, synthetic_dataset, distilled_run.recipe, teacher=distilled_run.folder
    )
    with pytest.raises(RunError, match=f'teacher: "{bundle.info.model_version}" there, "[0-9a-f]+" asked'):
        trainer.run()


def test_a_teacher_and_a_weight_for_it_go_together(tmp_path, synthetic_dataset, small_recipe, bundle):
    with pytest.raises(RecipeError, match="distillation_weight = 0, and a teacher"):
        create_trainer(tmp_path / "a", synthetic_dataset, small_recipe, teacher=bundle.folder)
    weighted = dataclasses.replace(small_recipe, distillation_weight=0.5)
    with pytest.raises(RecipeError, match=r"distillation_weight = 0.5, and no teacher"):
        create_trainer(tmp_path / "b", synthetic_dataset, weighted)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("distillation_weight = 1.5", "distillation_weight = 1.5: use a share in 0..1"),
        ("distillation_temperature = 0.5", "distillation_temperature = 0.5: use 1 or more"),
        (
            "distillation_weight = 0.5\n[[stages]]\nphoto_px = 64\nepochs = 1\ntrains = 'heads_on_features'",
            "has none of",
        ),
    ],
)
def test_wrong_values_are_refused(tmp_path, line, said):
    path = tmp_path / "recipe.toml"
    path.write_text(f"{line}\n[[stages]]\nphoto_px = 64\nepochs = 1\n")
    with pytest.raises(RecipeError, match=said):
        load_recipe(str(path))
