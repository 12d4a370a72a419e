import pytest
import torch
from torch import nn

from t4p.models.decoder2d import Decoder2d


def build(upsample=4, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder2d(in_channels=6, hidden_channels=12, out_channels=5, upsample=upsample)


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("upsample", [1, 2, 8])
def test_resolution_grows_by_the_configured_factor(upsample):
    assert build(upsample)(draw(2, 6, 3, 4)).shape == (2, 5, 3 * upsample, 4 * upsample)


@pytest.mark.parametrize("upsample", [0, 3, -2, 12])
def test_a_factor_that_is_no_power_of_two_is_refused(upsample):
    with pytest.raises(ValueError, match=f"upsample is {upsample}; .* 1, 2, 4, 8"):
        build(upsample)


def test_a_frame_does_not_depend_on_the_frames_beside_it_in_training():
    decoder = build().train()
    frames = draw(3, 6, 4, 5)
    together = decoder(frames)
    torch.testing.assert_close(decoder(frames[1:2]), together[1:2])
    assert not list(decoder.buffers())  # no running statistics


def test_no_frames_still_touch_every_parameter():
    decoder = build()
    decoder(torch.zeros(0, 6, 4, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_norms_stay_in_float32_under_bf16_autocast():
    decoder = build()
    seen = []
    for module in decoder.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    features = draw(1, 6, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = decoder(features)
    assert seen == [torch.float32] * 3
    torch.testing.assert_close(output.float(), decoder(features), rtol=0.1, atol=0.1)


def test_it_learns_detail_finer_than_a_cell():
    # One bit of each cell is drawn as its left or its right half: a decoder that is constant within a cell cannot.
    decoder = build(upsample=2)
    features = torch.sign(draw(8, 6, 4, 4))
    right = (torch.arange(8) % 2).float().expand(8, 8)
    target = torch.where(features[:, 0].repeat_interleave(2, 1).repeat_interleave(2, 2) > 0, right, 1 - right)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        loss = (decoder(features)[:, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0]
    assert losses[-1] < 0.1  # 0.25 is the least a decoder constant within each cell can reach
