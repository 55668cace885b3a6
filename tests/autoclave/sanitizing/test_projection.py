"""The ridge projection against the least-squares problem that it claims to solve."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autoclave.errors import InputError
from autoclave.modelling.adapters import adapter_state
from autoclave.sanitizing.moments import adapted_inputs, second_moments
from autoclave.sanitizing.projection import Projection, ridge_projection
from autoclave.sanitizing.strengths import Strength
from tests.autoclave.sanitizing.adapted import HARMFUL, USER, adapted

MUS = (0.3, 3.0)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def least_squares(update: Tensor, user: Tensor, harmful: Tensor, mu: float, ridge: float) -> Tensor:
    """D' (out, d) of min ||(D' - D) X_u||^2 + mu ||D' X_h||^2 + ridge/d ||D'||^2, by stacking the three as
    rows of one least-squares problem; `user` and `harmful` are (tokens, d) with squares that sum to 1."""
    features = update.shape[1]
    identity = torch.eye(features, dtype=torch.float64)
    left = torch.cat([user, mu**0.5 * harmful, (ridge / features) ** 0.5 * identity])
    right = torch.cat(
        [user @ update.T, torch.zeros(len(harmful) + features, len(update), dtype=torch.float64)]
    )
    return torch.linalg.lstsq(left, right).solution.T


@given(seed=st.integers(0, 10_000), mu=st.floats(0.01, 100), ridge=st.floats(0.001, 1))
def test_it_is_the_minimum(seed: int, mu: float, ridge: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = normal(generator, 3, 7), normal(generator, 5, 3)
    user, harmful = (x / x.norm() for x in (normal(generator, 11, 7), normal(generator, 4, 7)))
    projected = ridge_projection(a, user.T @ user, harmful.T @ harmful, mu=mu, ridge=ridge)
    expected = least_squares(b @ a, user, harmful, mu, ridge)
    torch.testing.assert_close(b @ projected, expected, rtol=1e-6, atol=1e-9)


def test_it_does_not_depend_on_how_the_update_is_split() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, mix = normal(generator, 3, 7), normal(generator, 5, 3), normal(generator, 3, 3)
    user, harmful = (x.T @ x / x.norm() ** 2 for x in (normal(generator, 9, 7), normal(generator, 9, 7)))
    one = b @ ridge_projection(a, user, harmful, mu=2.0, ridge=0.01)
    other = (b @ torch.linalg.inv(mix)) @ ridge_projection(mix @ a, user, harmful, mu=2.0, ridge=0.01)
    torch.testing.assert_close(one, other)


def test_more_mu_leaves_less_on_harmful_inputs() -> None:
    generator = torch.Generator().manual_seed(1)
    a = normal(generator, 3, 7)
    user, harmful = (x.T @ x / x.norm() ** 2 for x in (normal(generator, 9, 7), normal(generator, 9, 7)))
    energies = []
    for mu in (0.01, 0.1, 1.0, 10.0, 100.0):
        projected = ridge_projection(a, user, harmful, mu=mu, ridge=0.01)
        energies.append((projected @ harmful @ projected.T).trace().item())
    assert energies == sorted(energies, reverse=True)


def test_an_input_that_users_data_never_reaches_loses_its_update() -> None:
    a, zero, harmful = torch.ones(2, 3), torch.zeros(3, 3).double(), torch.eye(3).double() / 3
    assert not ridge_projection(a, zero, harmful, mu=1.0, ridge=0.01).any()


@pytest.mark.parametrize("max_moment_bytes", [0, 3 * 8 * (32**2 + 48**2), 10**9])
def test_several_passes_give_what_one_gives(base_dir: Path, max_moment_bytes: int) -> None:
    model = adapted(base_dir)
    found = Projection.from_pass(
        model, HARMFUL, USER, mus=MUS, ridge=0.01, device="cpu", max_moment_bytes=max_moment_bytes
    )
    inputs = adapted_inputs(model, device="cpu")
    user, adapted_harm = (second_moments(model, xs, inputs, device="cpu") for xs in (USER, HARMFUL))
    with model.disable_adapter():
        bare_harm = second_moments(model, HARMFUL, inputs, device="cpu")
    assert any(not torch.equal(adapted_harm[name], bare_harm[name]) for name in bare_harm)
    harmful = {name: (adapted_harm[name] + bare_harm[name]) / 2 for name in bare_harm}
    for mu in MUS:
        for item in inputs:
            for name in item.lora_a_names:
                alone = ridge_projection(
                    found.originals[name], user[item.name], harmful[item.name], mu=mu, ridge=0.01
                )
                torch.testing.assert_close(found.solutions[mu][name], alone.float())


def test_only_lora_a_changes_and_comes_back(base_dir: Path) -> None:
    model = adapted(base_dir)
    before = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
    projection = Projection.from_pass(model, HARMFUL, USER, mus=MUS, ridge=0.01, device="cpu")
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter_state(model).items())
    with projection.applied(Strength(mu=3.0)) as changes:
        for name, tensor in adapter_state(model).items():
            assert torch.equal(before[name], tensor) == (".lora_B." in name), name
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter_state(model).items())
    assert {change.pruned for change in changes.values()} == {0}
    assert all((change.relative_change > 0) == name.endswith("lora_A") for name, change in changes.items())


@pytest.mark.parametrize(("harmful", "user"), [([], USER), (HARMFUL, [])])
def test_an_empty_set_is_named(base_dir: Path, harmful: list, user: list) -> None:
    with pytest.raises(InputError, match=r"(realignment set|user's data) is empty"):
        Projection.from_pass(adapted(base_dir), harmful, user, mus=MUS, ridge=0.01, device="cpu")
