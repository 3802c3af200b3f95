"""Words for counted things, in every message."""

__all__ = ["format_count"]

_IRREGULAR = {"is": "are", "was": "were", "has": "have"}


def format_count(num: int, noun: str, verb: str = "") -> str:
    """A number of things, in the plural but for one: `1 category`, `2 categories`, `1 row has`, `2 rows have`.

    Args:
        num: shown as it is.
        noun: in the singular; its last word takes the plural.
        verb: in the singular, such as `has`; left as it is where both are alike.
    """
    if num != 1:
        noun, verb = _pluralize(noun), _IRREGULAR.get(verb, verb)
    return f"{num} {noun} {verb}".rstrip()


def _pluralize(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeou":
        return f"{noun[:-1]}ies"
    hisses = noun.endswith(("s", "x", "ch", "sh")) and not noun.endswith("epoch")
    return f"{noun}es" if hisses else f"{noun}s"
