"""The terms of the reports, each with one meaning in all of them."""

__all__ = ["GLOSSARY", "choose_terms"]

GLOSSARY = {
    "filled in": "The form shows the suggestion as chosen. Share: of all listings, labelled or not, per listing only.",
    "right when filled in": "Of the filled listings whose label decides it, the share that is right; for the "
    "category, the deepest filled level is the true category or one above it.",
    "guarantee": "With the stated probability over the draw of the calibration listings, at least this share of what "
    "is filled in is right, on listings like those.",
    "threshold": "Confidence from which a field is filled in; certified when a guarantee was proven for it.",
    "95 % interval": "Values that these listings do not rule out. Wilson's for shares, where photos of one listing "
    "count for less; a bootstrap over listings for the rest.",
    "top-1, top-5": "The share whose label is the likeliest prediction, or among the five likeliest.",
    "macro": "The mean over the categories, so that a rare one counts as much as a frequent one.",
    "precision": "Of what was predicted as this category, the share that is right.",
    "recall": "Of the listings of this category, the share that was predicted as it.",
    "coverage": "The share of all listings that is filled in from a threshold.",
    "ECE": "Expected calibration error: the mean gap between confidence and the share that is right.",
    "temperature": "The number that the model's scores are divided by, so that a confidence of 90 % is right in nine "
    "of ten cases.",
    "hierarchical precision, recall and F1": "The same of a category together with all above it, so that a mistake "
    "within the family counts less; F1 is their harmonic mean.",
    "tune listings": "Those that temperatures and candidate thresholds come from; no guarantee is tested on them.",
    "lost, won": "Lost: A is right and B is wrong. Won: A is wrong and B is right.",
    "p (McNemar)": "The probability that two equally good models would differ at least this much on these listings.",
    "p (Holm)": "The same, corrected for how many categories are compared.",
    "accepted": "The share of the outcomes in which the seller chose the suggestion or something below it. Sellers "
    "keep wrong values that they see, so it is too high.",
    "accepted unseen": "The same where nothing was shown to the seller: the only unbiased figure.",
    "always valid interval": "It holds at 95 % however often the report is read, so that the experiment may be stopped "
    "at any time.",
    "shadow": "A release that is asked about the same listings but whose suggestions nobody sees.",
    "drift": "How far the last days are from earlier ones, by the population stability index: 0.1 is moderate, 0.25 is "
    "large, and what is below the chance level is none.",
    "chance level": "The index that as many listings exceed once in a hundred times without any drift.",
    "suspected label": "A label that another one fits better, by a prediction learned from the other listings.",
}


def choose_terms(*names: str) -> list[tuple[str, str]]:
    """The terms with their meanings, in the order that was asked for.

    Raises:
        KeyError: a term that the glossary lacks.
    """
    return [(name, GLOSSARY[name]) for name in names]
