"""Names that operators of an own Triton write into its repository."""

from serving.inference.model_names import CANARY_MODEL_NAME, MODEL_NAME, SHADOW_MODEL_NAME


def test_names_stay_as_the_docs_give_them():
    assert (MODEL_NAME, CANARY_MODEL_NAME, SHADOW_MODEL_NAME) == (
        "listing_vision",
        "listing_vision_canary",
        "listing_vision_shadow",
    )
