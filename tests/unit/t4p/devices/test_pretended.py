"""The device that is not there counts what a real one would do, and computes as one does. It stays in its process."""

import pytest
import torch
import torch.utils.checkpoint
from own_process import in_a_fork

from t4p.devices.pretended import pretended_device


@in_a_fork
def test_kernels_waits_copies_and_mixed_devices_are_counted():
    with pretended_device() as (device, counts):
        numbers = torch.arange(6.0).to(device)
        assert counts.copies.total() == 1
        twice = (numbers + numbers).view(2, 3)[0]
        assert (counts.kernels["add"], counts.kernels["view"], counts.waits.total()) == (1, 0, 0)
        assert twice.device == device
        assert twice.tolist() == [0.0, 2.0, 4.0]
        assert counts.waits.total() == 1
        assert float(numbers[5]) == 5
        assert len(numbers[numbers > 2]) == len(numbers.nonzero()) - 2
        assert counts.waits.total() == 4
        assert not counts.mixed
        torch.cat([numbers, torch.zeros(1)])
        assert counts.mixed.total() == 1
        numbers += 1
        numbers[0] = 7
        assert numbers.cpu().tolist() == [7, 2, 3, 4, 5, 6]
        torch.ones(2, device=device)
        assert counts.copies.total() == 1


@in_a_fork
def test_its_arithmetic_is_that_of_an_accelerator():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    third = torch.full((), 0.3)
    with pretended_device() as (device, _):
        there, third_there = values.to(device), third.to(device)
        fused = torch.addcmul(there, there, there).cpu()
        by_number, by_tensor = (there / 0.3).cpu(), (there / third_there).cpu()
    exact = values.double() + values.double() * values.double()
    assert torch.equal(fused, exact.float())
    assert torch.equal(by_tensor, values / third)
    assert not torch.equal(by_number, values / third)
    torch.testing.assert_close(by_number, values / third)


@in_a_fork
def test_a_tensor_of_it_is_not_used_elsewhere():
    with pretended_device() as (device, _):
        there = torch.ones(2).to(device)
    with pytest.raises(RuntimeError, match="outside of its context"):
        there + 1


@in_a_fork
def test_what_comes_after_it_knows_nothing_of_it():
    """Checkpointed activations ask for an accelerator, and take over its settings."""
    with pretended_device() as (device, _):
        assert torch.get_device_module(device).is_available()
    assert not torch.get_device_module(device).is_available()
    weight = torch.ones(3, requires_grad=True)
    torch.utils.checkpoint.checkpoint(lambda x: (x * x).sum(), weight, use_reentrant=False).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]


def test_whoever_goes_on_knows_nothing_of_it():
    assert torch._C._get_privateuse1_backend_name() == "privateuseone", (
        "a test took the place in a process that goes on"
    )
