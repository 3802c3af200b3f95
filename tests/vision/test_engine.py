import numpy as np
import pytest

from vision.engine import Logits, OnnxEngine, check_golden
from vision.errors import EngineBroken


def test_the_engine_answers_the_golden_photos(bundle):
    engine = OnnxEngine(bundle)
    answered = engine.infer(bundle.golden.photos_nhwc)
    check_golden(bundle, answered)
    assert answered.embedding.shape == (2, bundle.info.embedding_size)


@pytest.mark.parametrize("num_photos", [1, 2, 7, 64])
def test_a_batch_is_answered_like_its_photos_alone(bundle, num_photos):
    engine = OnnxEngine(bundle)
    photos = np.random.default_rng(num_photos).integers(0, 256, (num_photos, 64, 64, 3), np.uint8)
    together = engine.infer(photos)
    alone = engine.infer(photos[-1:])
    np.testing.assert_allclose(together.category[-1:], alone.category, atol=1e-4)


def test_zeros_and_other_shapes_are_not_taken_for_answers(bundle):
    right = OnnxEngine(bundle).infer(bundle.golden.photos_nhwc)
    with pytest.raises(EngineBroken, match="category_logits differs"):
        check_golden(bundle, Logits(*(np.zeros_like(output) for output in right)))
    with pytest.raises(EngineBroken, match="has shape"):
        check_golden(bundle, Logits(*(output[:1] for output in right)))
    with pytest.raises(EngineBroken, match="differs by nan"):
        check_golden(bundle, Logits(*(np.full_like(output, np.nan) for output in right)))
