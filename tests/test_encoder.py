"""The encoder against PyTorch's layer and transformers', both ways."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bertbook.config import BertConfig
from bertbook.encoder import ACTIVATIONS, Encoder, EncoderLayer

CONFIG = BertConfig(
    hidden_size=32,
    num_attention_heads=4,
    intermediate_size=48,
    num_hidden_layers=3,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
TO_TORCH = {
    "attention.query_key_value.": "self_attn.in_proj_",
    "attention.output": "self_attn.out_proj",
    "attention_norm": "norm1",
    "feed_forward_norm": "norm2",
    "feed_forward.expand": "linear1",
    "feed_forward.contract": "linear2",
}
TO_PUBLISHED = {
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward_norm": "output.LayerNorm",
    "feed_forward.expand": "intermediate.dense",
    "feed_forward.contract": "output.dense",
}


def relative(ours, theirs):
    """The distance of two tensors over the size of the second."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def shaken(module):
    """Every parameter moved, so that norms and biases are not trivial."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return module


def renamed(state, names):
    for ours, theirs in names.items():
        state = {
            key.replace(ours, theirs)
            if key.startswith(ours)
            else key: value
            for key, value in state.items()
        }
    return state


def gradients(run, module, hidden, upstream):
    """The output, the input's gradient, and each parameter's by name."""
    leaf = hidden.clone().requires_grad_()
    module.zero_grad()
    out = run(leaf)
    (out * upstream).sum().backward()
    named = {n: p.grad.clone() for n, p in module.named_parameters()}
    return out.detach(), leaf.grad, named


def masks(kind):
    if kind == "none":
        return None
    if kind == "left":
        return torch.arange(7) >= torch.tensor([0, 3, 6])[:, None]
    return torch.arange(7) < torch.tensor([7, 4, 1])[:, None]


@pytest.mark.parametrize("layer_norm", ["post", "pre"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_layer_is_torchs(layer_norm, activation, padding, implementation):
    settings = replace(
        CONFIG,
        layer_norm=layer_norm,
        hidden_act=activation,
        attn_implementation=implementation,
    )
    ours = shaken(EncoderLayer(settings))
    theirs = nn.TransformerEncoderLayer(
        32,
        4,
        48,
        dropout=0.0,
        activation=activation,
        layer_norm_eps=settings.layer_norm_eps,
        batch_first=True,
        norm_first=layer_norm == "pre",
    )
    theirs.load_state_dict(renamed(ours.state_dict(), TO_TORCH))
    mask = masks(padding)
    hidden = torch.randn(3, 7, 32)
    upstream = torch.randn(3, 7, 32)
    if mask is not None:  # torch leaves open what padded positions hold
        upstream = upstream * mask[..., None]
    inside = None if mask is None else mask[:, None, None]
    outside = None if mask is None else ~mask
    out, into, named = gradients(
        lambda h: ours(h, inside)[0], ours, hidden, upstream
    )
    expected, expected_into, expected_named = gradients(
        lambda h: theirs(h, src_key_padding_mask=outside),
        theirs,
        hidden,
        upstream,
    )
    kept = slice(None) if mask is None else mask
    assert relative(out[kept], expected[kept]) < 1e-5
    assert relative(into, expected_into) < 1e-5
    found = renamed(named, TO_TORCH)
    assert found.keys() == expected_named.keys()
    for name, grad in expected_named.items():
        assert relative(found[name], grad) < 1e-5, name


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_layer_is_the_reference(activation, padding, implementation):
    from transformers import BertConfig as TheirConfig
    from transformers.models.bert.modeling_bert import BertLayer

    settings = replace(
        CONFIG, hidden_act=activation, attn_implementation=implementation
    )
    ours = shaken(EncoderLayer(settings))
    theirs = BertLayer(
        TheirConfig(
            hidden_size=32,
            num_attention_heads=4,
            intermediate_size=48,
            hidden_act=activation,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
    )

    def published(named):
        named = renamed(named, TO_PUBLISHED)
        for kind in ("weight", "bias"):
            fused = named.pop(f"attention.query_key_value.{kind}")
            for role, part in zip(
                ("query", "key", "value"), fused.chunk(3)
            ):
                named[f"attention.self.{role}.{kind}"] = part
        return named

    theirs.load_state_dict(published(ours.state_dict()))
    mask = masks(padding)
    inside = outside = None
    if mask is not None:
        inside = mask[:, None, None]
        outside = torch.zeros(3, 1, 1, 7).masked_fill(
            ~inside, torch.finfo(torch.float32).min
        )
    hidden, upstream = torch.randn(2, 3, 7, 32)
    out, into, named = gradients(
        lambda h: ours(h, inside)[0], ours, hidden, upstream
    )
    expected, expected_into, expected_named = gradients(
        lambda h: theirs(h, outside), theirs, hidden, upstream
    )
    assert relative(out, expected) < 1e-5
    assert relative(into, expected_into) < 1e-5
    found = published(named)
    assert found.keys() == expected_named.keys()
    for name, grad in expected_named.items():
        if name == "attention.self.key.bias":  # zero, but for rounding
            assert grad.norm() < 1e-3 and found[name].norm() < 1e-3
            continue
        assert relative(found[name], grad) < 1e-5, name


@pytest.mark.parametrize("layer_norm", ["post", "pre"])
def test_hidden_states_are_what_the_layers_gave(layer_norm):
    encoder = shaken(Encoder(replace(CONFIG, layer_norm=layer_norm))).eval()
    hidden, mask = torch.randn(3, 7, 32), masks("right")[:, None, None]
    out = encoder(hidden, mask, output_attentions=True)
    plain = encoder(hidden, mask)
    assert plain.attentions == () and len(out.attentions) == 3
    assert len(out.hidden_states) == 4
    assert torch.equal(out.hidden_states[0], hidden)
    assert torch.equal(out.last_hidden_state, out.hidden_states[-1])
    for one, other in zip(out.hidden_states, plain.hidden_states):
        assert relative(one, other) < 1e-6
    for i, layer in enumerate(encoder.layers):
        after, weights = layer(
            out.hidden_states[i], mask, output_attentions=True
        )
        after = encoder.final_norm(after) if i == 2 else after
        assert torch.equal(out.hidden_states[i + 1], after)
        assert torch.equal(out.attentions[i], weights)
    assert isinstance(encoder.final_norm, nn.LayerNorm) == (
        layer_norm == "pre"
    )


@pytest.mark.parametrize("layer_norm", ["post", "pre"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_is_padded(layer_norm, checkpointing):
    encoder = shaken(
        Encoder(
            replace(
                CONFIG,
                layer_norm=layer_norm,
                gradient_checkpointing=checkpointing,
            )
        )
    )
    hidden, mask = torch.randn(3, 7, 32), masks("right")
    upstream = torch.randn(12, 32)
    padded = gradients(
        lambda h: encoder(h, mask[:, None, None]).last_hidden_state[mask],
        encoder,
        hidden,
        upstream,
    )
    packed = gradients(
        lambda h: encoder(h[mask], lengths=[7, 4, 1]).last_hidden_state,
        encoder,
        hidden,
        upstream,
    )
    assert relative(packed[0], padded[0]) < 1e-5
    assert relative(packed[1], padded[1]) < 1e-5
    for name, grad in padded[2].items():
        assert relative(packed[2][name], grad) < 1e-5, name


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_training_draws_numbers_only_where_something_drops(
    implementation, p
):
    config = replace(
        CONFIG, attn_implementation=implementation, hidden_dropout_prob=p
    )
    encoder = Encoder(config).train()
    before = torch.get_rng_state()
    encoder(torch.ones(2, 5, 32))
    assert torch.equal(torch.get_rng_state(), before) is (p == 0.0)


@pytest.mark.parametrize("layer_norm", ["post", "pre"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("form", ["plain", "mask", "lengths", "weights"])
def test_checkpointing_changes_no_gradient(
    layer_norm, implementation, form
):
    """With dropout on: what is computed again draws the same numbers."""
    encoder = shaken(
        Encoder(
            replace(
                CONFIG,
                layer_norm=layer_norm,
                attn_implementation=implementation,
                hidden_dropout_prob=0.3,
                attention_probs_dropout_prob=0.3,
            )
        )
    ).train()
    options = {
        "plain": {},
        "mask": {"mask": masks("right")[:, None, None]},
        "lengths": {"lengths": [7, 4, 10]},
        "weights": {"output_attentions": True},
    }[form]
    shape = (21, 32) if form == "lengths" else (3, 7, 32)
    hidden, upstream = torch.randn(2, *shape)

    def run(leaf):
        torch.manual_seed(7)
        out = encoder(leaf, **options)
        attended = sum(w.pow(2).sum() for w in out.attentions)
        return out.last_hidden_state + attended

    calls = []
    encoder.layers[1].feed_forward.register_forward_hook(
        lambda *_: calls.append(1)
    )
    plain = gradients(run, encoder, hidden, upstream)
    assert len(calls) == 1
    encoder.gradient_checkpointing = True
    again = gradients(run, encoder, hidden, upstream)
    assert len(calls) == 3  # forward, and once more in the backward pass
    assert torch.equal(plain[0], again[0])
    assert relative(again[1], plain[1]) < 1e-6
    for name, grad in plain[2].items():
        assert relative(again[2][name], grad) < 1e-6, name


def test_checkpointing_is_for_training_only():
    settings = replace(CONFIG, gradient_checkpointing=True)
    encoder, calls = Encoder(settings).eval(), []
    encoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    leaf = torch.randn(1, 5, 32).requires_grad_()
    encoder(leaf).last_hidden_state.sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("layer_norm", ["post", "pre"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bfloat16_stays_close_and_empty_rows_finite(
    layer_norm, implementation
):
    settings = replace(
        CONFIG, layer_norm=layer_norm, attn_implementation=implementation
    )
    encoder = Encoder(settings).eval()
    hidden, mask = torch.randn(3, 7, 32), masks("right")
    mask[2] = False
    exact = encoder(hidden, mask[:, None, None]).last_hidden_state
    half = encoder.to(torch.bfloat16)(
        hidden.to(torch.bfloat16), mask[:, None, None]
    ).last_hidden_state
    assert exact.isfinite().all() and half.isfinite().all()
    assert relative(half.float()[mask], exact[mask]) < 2e-2


def test_activations_are_those_of_the_reference():
    from transformers.activations import ACT2FN

    x = torch.linspace(-8, 8, 1001)
    for name, function in ACTIVATIONS.items():
        assert (function(x) - ACT2FN[name](x)).abs().max() < 1e-6
        assert replace(CONFIG, hidden_act=name).hidden_act == name


def test_layers_do_not_share_weights():
    encoder = Encoder(CONFIG)
    pointers = {p.data_ptr() for p in encoder.parameters()}
    assert len(pointers) == len(list(encoder.parameters())) == 3 * 12
