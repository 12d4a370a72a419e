import pytest
import torch
from torch import nn
from torch.nn import functional as F

from t4p.models.text_query import TextQuerying


def build(embed_dim=32, num_heads=4, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = TextQuerying(embed_dim, num_heads).double()
        for parameter in module.parameters():  # norms and biases away from 1 and 0
            nn.init.normal_(parameter, std=0.3)
    return module


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_norm_then_torchs_multihead_attention_then_norm_then_mlp():
    module = build()
    attention = nn.MultiheadAttention(32, 4, batch_first=True).double()
    with torch.no_grad():
        projections = (module.to_query, module.to_key, module.to_value)
        attention.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        attention.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        attention.out_proj.load_state_dict(module.to_output.state_dict())
    queries, text = draw(11, 32), draw(5, 32, seed=2)
    normed_queries = F.layer_norm(queries, (32,), module.query_norm.weight, module.query_norm.bias)
    normed_text = F.layer_norm(text, (32,), module.text_norm.weight, module.text_norm.bias)[None]
    attended = attention(normed_queries[None], normed_text, normed_text)[0][0]
    expected = module.mlp(F.layer_norm(attended, (32,), module.output_norm.weight, module.output_norm.bias))
    torch.testing.assert_close(module(queries, text), expected, rtol=1e-12, atol=1e-12)


def test_the_order_of_the_labels_does_not_matter_and_their_number_may_change():
    module = build()
    queries, text = draw(7, 32), draw(6, 32, seed=2)
    torch.testing.assert_close(module(queries, text), module(queries, text.flip(0)), rtol=1e-12, atol=1e-12)
    for num_labels in (1, 3, 40):
        assert module(queries, draw(num_labels, 32)).shape == (7, 32)
    assert not torch.allclose(module(queries, text), module(queries, text[:3]))


def test_each_query_is_answered_alone():
    module = build()
    queries, text = draw(9, 32), draw(4, 32, seed=2)
    torch.testing.assert_close(module(queries, text)[4:6], module(queries[4:6], text), rtol=1e-12, atol=1e-12)


def test_no_residual_lets_the_query_through():
    # With the values off, nothing of the query may reach the output: figure 3 draws no residual inside.
    module = build()
    nn.init.zeros_(module.to_value.weight)
    outputs = module(draw(5, 32), draw(4, 32, seed=2))
    torch.testing.assert_close(outputs, outputs[:1].expand_as(outputs), rtol=1e-12, atol=1e-12)


def test_no_queries_give_no_rows_and_zero_gradients():
    module = build()
    text = draw(4, 32)
    output = module(torch.zeros(0, 32, dtype=torch.float64, requires_grad=True), text)
    assert output.shape == (0, 32)
    output.sum().backward()
    # Every parameter takes part, so that a rank without voxels enters every collective.
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in module.parameters())


def test_norms_stay_in_float32_under_bf16_autocast():
    module = build().float()
    seen = {}
    for name in ("query_norm", "text_norm", "output_norm"):
        getattr(module, name).register_forward_hook(lambda m, i, output, name=name: seen.update({name: output.dtype}))
    queries, text = draw(5, 32).float(), draw(4, 32, seed=2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(queries.bfloat16(), text.bfloat16())
    assert set(seen.values()) == {torch.float32}
    assert len(seen) == 3
    torch.testing.assert_close(output.float(), module(queries, text), rtol=0.1, atol=0.1)


def test_gradients_equal_finite_differences():
    module = build(embed_dim=4, num_heads=2)
    queries, text = draw(3, 4).requires_grad_(), draw(2, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(module, (queries, text))


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="embed_dim 32 is not a multiple of num_heads 5"):
        TextQuerying(32, 5)
    with pytest.raises(ValueError, match="mlp_ratio is 0"):
        TextQuerying(32, 4, mlp_ratio=0)
    with pytest.raises(ValueError, match="at least one label"):
        build()(draw(3, 32), draw(0, 32))
