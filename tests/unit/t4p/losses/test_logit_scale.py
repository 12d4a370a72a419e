import math

import pytest
import torch

from t4p.losses.logit_scale import clamped_logit_scale

BOUNDS = (1.0, 100.0)


def gradient(log_logit_scale: float, incoming: float) -> tuple[float, float]:
    parameter = torch.tensor(log_logit_scale, dtype=torch.float64, requires_grad=True)
    logit_scale = clamped_logit_scale(parameter, *BOUNDS)
    (logit_scale * incoming).backward()
    return logit_scale.item(), parameter.grad.item()


@pytest.mark.parametrize("incoming", [-2.0, 2.0])
def test_inside_the_bounds_it_is_exp(incoming):
    logit_scale, found = gradient(2.5, incoming)
    assert logit_scale == pytest.approx(math.exp(2.5), rel=1e-15)
    assert found == pytest.approx(incoming * math.exp(2.5), rel=1e-15)


@pytest.mark.parametrize("log_logit_scale", [math.log(100) + 1e-9, math.log(100) + 0.5, 20.0])
def test_at_the_upper_bound_only_a_step_down_passes(log_logit_scale):
    assert gradient(log_logit_scale, 2.0) == (100.0, 200.0)  # a positive gradient lowers the parameter
    assert gradient(log_logit_scale, -2.0) == (100.0, 0.0)


@pytest.mark.parametrize("log_logit_scale", [0.0, -1e-9, -5.0])
def test_at_the_lower_bound_only_a_step_up_passes(log_logit_scale):
    assert gradient(log_logit_scale, -2.0) == (1.0, -2.0)
    assert gradient(log_logit_scale, 2.0) == (1.0, 0.0)


def test_descent_stops_at_a_bound_and_returns_from_it():
    parameter = torch.tensor([4.0], requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.01)

    def descend(sign: float) -> None:
        for _ in range(20):
            optimizer.zero_grad()
            (sign * clamped_logit_scale(parameter, *BOUNDS).sum()).backward()
            optimizer.step()

    descend(-1.0)
    at_bound = parameter.item()
    assert at_bound > math.log(100)
    assert clamped_logit_scale(parameter, *BOUNDS).item() == 100
    descend(-1.0)
    assert parameter.item() == at_bound
    descend(1.0)
    assert parameter.item() < math.log(100)


def test_one_element_keeps_its_shape_and_type():
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    logit_scale = clamped_logit_scale(parameter, *BOUNDS)
    assert logit_scale.shape == (1,)
    assert logit_scale.dtype == torch.float32


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (-1.0, 2.0)])
def test_bad_bounds_are_named(bounds):
    with pytest.raises(ValueError, match=f"got {bounds[0]} and {bounds[1]}"):
        clamped_logit_scale(torch.tensor(0.0), *bounds)
