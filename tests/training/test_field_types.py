from dataclasses import dataclass
from typing import Literal

import pytest

from training.field_types import find_wrong_type


@dataclass
class _Settings:
    name: str = "a"
    count: int | None = None
    rate: float = 0.5
    mode: Literal["fast", "slow"] = "fast"


@pytest.mark.parametrize("given", [{}, {"count": 3}, {"count": None}, {"rate": 1}, {"mode": "slow"}])
def test_values_of_the_declared_types_pass(given):
    assert find_wrong_type(_Settings(**given)) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": 5}, "text"),
        ({"count": "3"}, "whole number"),
        ({"count": 3.0}, "whole number"),
        ({"rate": 10**400}, "finite number"),
        ({"rate": float("nan")}, "finite number"),
        ({"mode": "Fast"}, "'fast', 'slow'"),
    ],
)
def test_the_first_wrong_type_is_named_with_what_to_give(given, said):
    name, way_out = find_wrong_type(_Settings(**given))
    assert name in given
    assert said in way_out


def test_a_kind_of_field_that_has_no_check_is_not_passed_over():
    @dataclass
    class Unchecked:
        raw: bytes = b""

    with pytest.raises(TypeError, match="no check for fields of the type <class 'bytes'>"):
        find_wrong_type(Unchecked())
