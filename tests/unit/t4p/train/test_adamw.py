"""Our AdamW is torch's, to the last bit."""

from __future__ import annotations

from typing import Any

import torch

from t4p.train.adamw import AdamW


def train(kind: type[torch.optim.AdamW], saved: dict[str, Any] | None = None) -> tuple[torch.Tensor, dict[str, Any]]:
    weight, bias = torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = kind(groups, lr=0.1)
    if saved is not None:
        optimizer.load_state_dict(saved)
    for step in range(3):
        optimizer.zero_grad()
        ((weight.sum(1) + bias) ** 2 * (step + 1)).sum().backward()
        optimizer.step()
    return torch.cat([weight.flatten(), bias]).detach(), optimizer.state_dict()


def test_three_steps_and_the_state_are_those_of_torch() -> None:
    (ours, our_state), (theirs, their_state) = train(AdamW), train(torch.optim.AdamW)
    assert torch.equal(ours, theirs)
    assert our_state["param_groups"] == their_state["param_groups"]
    for index, state in their_state["state"].items():
        assert all(torch.equal(our_state["state"][index][name], value) for name, value in state.items())


def test_each_goes_on_from_the_state_of_the_other() -> None:
    _, our_state = train(AdamW)
    _, their_state = train(torch.optim.AdamW)
    assert torch.equal(train(AdamW, their_state)[0], train(torch.optim.AdamW, our_state)[0])


def test_a_step_leaves_no_graph_and_torch_its_own_optimizer() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    assert parameter.is_leaf
    assert torch.is_grad_enabled()
    assert torch.optim.AdamW.step is not AdamW.step
