"""Strengths and their order."""

import math

import pytest

from autoclave.errors import InputError
from autoclave.sanitizing.strengths import Strength, ladders
from autoclave.spec import SanitizeSpec


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_an_alpha_that_is_no_fraction_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match="above 0 and below 1"):
        Strength(alpha)


@pytest.mark.parametrize("mu", [0.0, -1.0, math.inf, math.nan])
def test_a_mu_that_is_no_weight_is_refused(mu: float) -> None:
    with pytest.raises(InputError, match="must be above 0"):
        Strength(mu=mu)


def test_ladders_of_each_method() -> None:
    values = {"alphas": (0.1, 0.2), "mus": (1.0, 3.0, 9.0)}
    assert ladders(SanitizeSpec(method="antidote", **values)) == [[Strength(0.1), Strength(0.2)]]
    assert ladders(SanitizeSpec(method="antidote-protected", **values)) == [[Strength(0.1), Strength(0.2)]]
    assert ladders(SanitizeSpec(method="projection", **values)) == [[Strength(mu=mu) for mu in (1, 3, 9)]]
    assert ladders(SanitizeSpec(method="pipeline", **values)) == [
        [Strength(alpha, mu) for mu in (1, 3, 9)] for alpha in (0.1, 0.2)
    ]


def test_in_words() -> None:
    assert str(Strength(0.001, 2.0)) == "alpha 0.001, mu 2"
    assert str(Strength(mu=0.5)) == "mu 0.5"
    assert str(Strength()) == "nothing"


def test_defaults_follow_the_method() -> None:
    assert SanitizeSpec().rule == "matrix"
    assert SanitizeSpec(method="antidote").rule == "row"
    assert SanitizeSpec(method="antidote").alphas[0] == 0.01
    assert SanitizeSpec(method="antidote-protected", rule="global").rule == "global"
