"""Names under which a Triton serves the bundles of one gateway."""

__all__ = ["CANARY_MODEL_NAME", "MODEL_NAME", "SHADOW_MODEL_NAME"]

MODEL_NAME = "listing_vision"
CANARY_MODEL_NAME = f"{MODEL_NAME}_canary"
SHADOW_MODEL_NAME = f"{MODEL_NAME}_shadow"
