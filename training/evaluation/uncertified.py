"""Why a field is never filled, as a sentence for people."""

from vision.calibration import FieldGuarantee

__all__ = ["explain_uncertified"]


def explain_uncertified(guarantee: FieldGuarantee) -> str:
    """A whole sentence from the typed reason and its numbers."""
    required = guarantee.num_required or 0
    if guarantee.uncertified_code == "NOT_CERTIFIED" and required > guarantee.num_listings:
        missing = f"about {required} listings that it would fill, all right, are needed"
        return f"Not enough verified examples yet: {missing}; {guarantee.num_listings} with a known label are there."
    if guarantee.uncertified_code == "PARENT_NOT_PREFILLED":
        return "The level above is never filled in."
    reason = guarantee.uncertified_reason or "there is no certified threshold"
    return f"{reason[0].upper()}{reason[1:].rstrip('.')}."
