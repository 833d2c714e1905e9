"""Capturing, browsing, scoring and switching off heads."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_site import CHROMIUM, QUIET, needs_browser

from bertbook.attention_heads import (
    ablate_heads,
    attention_distance,
    attention_entropy,
    matching_losses,
    mean_vectors,
    measure,
    measure_heads,
    pattern_score,
    pattern_targets,
    uniform_attention,
    value_norms,
)
from bertbook.config import BertConfig
from bertbook.heads import BertForSequenceClassification
from bertbook.inspection import Captured, capture, head_browser
from bertbook.model import BertModel
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import evaluating

CONFIG = BertConfig(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=40,
    max_position_embeddings=32,
)
PATHS = {
    "eager": {"attn_implementation": "eager"},
    "sdpa": {"attn_implementation": "sdpa"},
    "unpadded": {"attn_implementation": "sdpa", "remove_padding": True},
}
TEXTS = ["The cat sat.", "A dog saw the cat and the cat ran away.", "No!"]
TOKENIZER = BertTokenizer.from_pretrained("all-MiniLM-L6-v2")


def make_model(path="sdpa", cls=BertModel, **options):
    """The same model each time but for its options.

    Its weights are ten times the usual, so that its heads have something
    to say.
    """
    torch.manual_seed(0)
    model = cls(replace(CONFIG, **PATHS[path] | options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
    return model.eval()


# Capturing


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("layer_norm", ["post", "pre"])
@pytest.mark.parametrize("path", PATHS)
def test_what_is_captured_is_what_is_used(path, layer_norm, side):
    model = make_model(path, layer_norm=layer_norm)
    batch = TOKENIZER(
        TEXTS, padding=True, padding_side=side, return_tensors="pt"
    )
    seen = capture(model, TOKENIZER, batch)
    with torch.no_grad():
        used = model(**batch, output_hidden_states=True)
        told = make_model("eager", layer_norm=layer_norm)(
            **batch, output_attentions=True
        )
    for ours, theirs in zip(seen.hidden_states, used.hidden_states):
        assert torch.allclose(ours[seen.mask], theirs[seen.mask], atol=1e-5)
    assert torch.allclose(
        seen.attentions, torch.stack(told.attentions), atol=1e-6
    )
    assert seen.attentions.shape == (
        3,
        3,
        4,
        *batch["input_ids"].shape[1:] * 2,
    )
    assert torch.equal(seen.mask, batch["attention_mask"].bool())
    assert [
        TOKENIZER.convert_tokens_to_ids(row) for row in seen.tokens
    ] == (batch["input_ids"].tolist())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cls", [BertModel, BertForSequenceClassification])
def test_capture_leaves_the_model_as_it_was(path, cls):
    model = make_model(path, cls, hidden_dropout_prob=0.5).train()
    bert = getattr(model, "bert", model)
    bert.encoder.layers[1].eval()
    bert.embeddings.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    needs = [each.requires_grad for each in model.parameters()]
    config = model.config
    torch.manual_seed(3)
    first = capture(model, TOKENIZER, TEXTS)
    drawn = torch.rand(())
    second = capture(model, TOKENIZER, TEXTS)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(()))  # no dropout drew a number
    assert torch.equal(first.hidden_states, second.hidden_states)
    assert modes == [module.training for module in model.modules()]
    assert needs == [each.requires_grad for each in model.parameters()]
    assert all(each.grad is None for each in model.parameters())
    assert config is model.config and torch.is_grad_enabled()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not first.attentions.requires_grad
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_capture_that_fails_leaves_the_model_as_it_was():
    model = make_model().train()
    model.pooler.eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError):
        capture(model, TOKENIZER, "cat " * 40)  # 32 positions
    assert modes == [module.training for module in model.modules()]
    assert torch.is_grad_enabled()


def test_capture_takes_a_text_texts_pairs_and_batches():
    model = make_model()
    one = capture(model, TOKENIZER, TEXTS[0])
    assert one.tokens == [["[CLS]", "the", "cat", "sat", ".", "[SEP]"]]
    many = capture(model, TOKENIZER, TEXTS)
    size = len(one.tokens[0])
    cut = many.attentions[:, :1, :, :size, :size]
    assert torch.allclose(cut, one.attentions, atol=1e-6)
    pair = capture(model, TOKENIZER, "The cat.", "It sat.")
    batch = TOKENIZER("The cat.", "It sat.", return_tensors="pt")
    batch = {name: column.view(1, -1) for name, column in batch.items()}
    assert torch.equal(
        capture(model, TOKENIZER, batch).attentions, pair.attentions
    )
    plain = {"input_ids": batch["input_ids"]}
    alone = capture(model, TOKENIZER, plain)
    assert alone.mask.all()
    assert not torch.allclose(alone.attentions, pair.attentions, atol=1e-4)
    with pytest.raises(TypeError, match='return_tensors="pt"'):
        capture(model, TOKENIZER, TOKENIZER(TEXTS))


def test_evaluating_keeps_no_graph_and_nests():
    model = make_model().train()
    with evaluating(model), evaluating(model):
        out = model(torch.tensor([[101, 102]])).last_hidden_state
        assert not out.requires_grad and not model.training
    assert model.training and all(m.training for m in model.modules())


# Measuring: tables with known answers


def tables(*rows):
    """One layer, one text, one head."""
    return torch.tensor(rows, dtype=torch.float32)[None, None, None]


def captured_of(*texts):
    """A capture of hand-written tokens, with uniform attention."""
    ids = [TOKENIZER.convert_tokens_to_ids(text) for text in texts]
    ids = torch.tensor(ids)
    mask = ids != TOKENIZER.pad_token_id
    states = torch.zeros(2, *ids.shape, 4)
    return Captured(
        [list(text) for text in texts],
        ids,
        mask,
        uniform_attention(mask),
        states,
    )


PAIR = captured_of(
    "[CLS] the dog saw the dog [SEP] the end [SEP]".split(),
    "[CLS] a cat [SEP] [PAD] [PAD] [PAD] [PAD] [PAD] [PAD]".split(),
)


def test_entropy_and_distance_of_known_tables():
    mask = torch.ones(1, 3).bool()
    fixed = tables([1, 0, 0], [0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3])
    expected = (
        0 + torch.tensor(2.0).log() / torch.tensor(3.0).log() + 1
    ) / 3
    assert torch.allclose(
        attention_entropy(fixed, mask).squeeze(), expected
    )
    distance = attention_distance(fixed, mask).item()
    assert distance == pytest.approx((0 + 1 + 1) / 3)


@given(length=st.integers(2, 12), padding=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_uniform_attention_has_the_closed_forms(length, padding):
    mask = torch.tensor([[True] * length + [False] * padding])
    for turned in (mask, mask.flip(-1)):  # padded on either side
        even = uniform_attention(turned)
        entropy = attention_entropy(even, turned).item()
        distance = attention_distance(even, turned).item()
        assert entropy == pytest.approx(1, abs=1e-5)
        closed = (length**2 - 1) / (3 * length)
        assert distance == pytest.approx(closed, rel=1e-5)


def test_padding_rows_count_nothing():
    mask = torch.tensor([[True, True, False]])
    given = tables([0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1])
    wild = tables([0.5, 0.5, 0], [0.5, 0.5, 0], [0.9, 0.1, 0])
    for function in (attention_entropy, attention_distance):
        assert torch.equal(function(given, mask), function(wild, mask))


def test_targets_name_what_they_should():
    targets = pattern_targets(PAIR)
    pairs = {
        name: target[0].nonzero().tolist()
        for name, target in targets.items()
    }
    words = [1, 2, 3, 4, 5, 7, 8]
    assert pairs["previous"] == [[2, 1], [3, 2], [4, 3], [5, 4], [8, 7]]
    assert pairs["next"] == [[1, 2], [2, 3], [3, 4], [4, 5], [7, 8]]
    assert pairs["same"] == [
        *([1, 4], [1, 7], [2, 5], [4, 1], [4, 7], [5, 2], [7, 1], [7, 4])
    ]
    assert pairs["[CLS]"] == [[i, 0] for i in words]
    assert pairs["[SEP]"] == [[i, j] for i in words for j in (6, 9)]
    short = {
        name: target[1].nonzero().tolist()
        for name, target in targets.items()
    }
    assert short == {
        "previous": [[2, 1]],
        "next": [[1, 2]],
        "same": [],
        "[CLS]": [[1, 0], [2, 0]],
        "[SEP]": [[1, 3], [2, 3]],
    }


@pytest.mark.parametrize(
    "name", ["previous", "next", "same", "[CLS]", "[SEP]"]
)
def test_a_head_that_is_the_pattern_scores_one(name):
    target = pattern_targets(PAIR)[name]
    weights = target.float() / target.sum(-1, keepdim=True).clamp(min=1)
    heads = torch.stack([weights, torch.zeros_like(weights)], 1)[None]
    scores = pattern_score(heads, target)
    assert scores[0, 0].tolist() == pytest.approx([1, 0])
    if name == "same":
        assert scores[0, 1].isnan().all()  # no word stands there twice
    else:
        assert scores[0, 1].tolist() == pytest.approx([1, 0])


def test_chance_is_the_share_of_the_target():
    found = measure(PAIR)
    assert found["[SEP]"][0, :, 0].tolist() == pytest.approx([0.2, 0.25])
    assert found["previous"][0, :, 0].tolist() == pytest.approx([0.1, 0.25])
    assert found["same"][0, 0, 0] == pytest.approx(8 / 50)


def test_batches_change_no_measure():
    model = make_model()
    texts = [" ".join(["cat dog"] * n) + "." for n in (5, 1, 3, 2, 4)]
    scores, chance = measure_heads(model, TOKENIZER, texts, batch_size=2)
    for i, text in enumerate(texts):
        alone = measure(capture(model, TOKENIZER, text))
        for name, value in alone.items():
            assert torch.allclose(
                scores[name][:, i], value[:, 0], atol=1e-5, equal_nan=True
            ), name
            assert chance[name].shape == (1, 5, 1)


@pytest.mark.parametrize("layer_norm", ["post", "pre"])
def test_values_weighed_and_added_are_the_layers_output(layer_norm):
    """With one key the weight is 1, so the norm is that of the output."""
    model = make_model(layer_norm=layer_norm)
    seen = capture(model, TOKENIZER, {"input_ids": torch.tensor([[2000]])})
    norms = value_norms(model, seen)
    for number, layer in enumerate(model.encoder.layers):
        output, kept = layer.attention.output, []
        hook = output.register_forward_hook(
            lambda module, given, made, kept=kept: kept.append(made)
        )
        for head in range(4):
            others = set(range(4)) - {head}
            with ablate_heads(model, {number: others}):
                capture(model, TOKENIZER, {"input_ids": seen.input_ids})
        hook.remove()
        alone = [(made - output.bias).norm().item() for made in kept]
        assert norms[number, 0, :, 0].tolist() == pytest.approx(
            alone, rel=1e-4
        )


# Switching off


def without_by_hand(model, heads, kind):
    """A copy whose weights of these heads are zero."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer, chosen in heads.items():
            attention = twin.encoder.layers[layer].attention
            for head in chosen:
                here = slice(head * 6, (head + 1) * 6)
                if kind == "output":
                    attention.output.weight[:, here] = 0
                else:
                    fused = attention.query_key_value
                    fused.weight.unflatten(0, (3, 24))[2, here] = 0
                    fused.bias.unflatten(0, (3, 24))[2, here] = 0
    return twin


@pytest.mark.parametrize("kind", ["output", "value"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("heads", [{0: [1]}, {0: [0, 3], 2: range(4)}])
def test_switching_off_equals_zero_weights(path, heads, kind):
    model = make_model(path)
    batch = TOKENIZER(TEXTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        intact = model(**batch).last_hidden_state
        by_hand = without_by_hand(model, heads, kind)(**batch)
        with ablate_heads(model, heads) as same:
            assert same is model
            gated = model(**batch).last_hidden_state
        after = model(**batch).last_hidden_state
    expected = by_hand.last_hidden_state[mask]
    assert torch.allclose(gated[mask], expected, atol=1e-5)
    assert (gated - intact)[mask].abs().max() > 1e-2
    assert torch.equal(after, intact)


def test_switching_off_ends_with_the_block_whatever_happens():
    model = make_model(cls=BertForSequenceClassification)
    outputs = [each.attention.output for each in model.bert.encoder.layers]
    with pytest.raises(KeyboardInterrupt), ablate_heads(model, {1: [0]}):
        assert len(outputs[1]._forward_pre_hooks) == 1
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="no layer 3; the model has 3"):
        with ablate_heads(model, {0: [1], 3: [0]}):
            pass
    with pytest.raises(ValueError, match="no head -1 in layer 0"):
        with ablate_heads(model, {0: [-1]}):
            pass
    assert not any(each._forward_pre_hooks for each in outputs)
    with (
        ablate_heads(model, {1: [0]}),
        ablate_heads(model, {1: [2], 2: []}),
    ):
        assert len(outputs[1]._forward_pre_hooks) == 2
    assert not any(each._forward_pre_hooks for each in outputs)


def test_gradients_flow_through_the_other_heads_only():
    model = make_model()
    batch = TOKENIZER(TEXTS, padding=True, return_tensors="pt")
    with ablate_heads(model, {1: [2]}):
        model(**batch).last_hidden_state.square().sum().backward()
    gradient = model.encoder.layers[1].attention.output.weight.grad
    by_head = gradient.unflatten(1, (4, 6)).abs().sum((0, 2))
    assert by_head[2] == 0 and (by_head[[0, 1, 3]] > 0).all()


# The task


def test_vectors_do_not_depend_on_batches_or_padding():
    model = make_model("unpadded").train()
    vectors = mean_vectors(model, TOKENIZER, TEXTS, batch_size=2)
    assert model.training
    for row, text in zip(vectors, TEXTS):
        states = capture(model, TOKENIZER, text).hidden_states[-1, 0]
        mean = states.mean(0)
        assert torch.allclose(row, mean / mean.norm(), atol=1e-5)


def test_losses_are_cross_entropies():
    torch.manual_seed(0)
    first, second = torch.randn(2, 7, 5)
    expected = torch.nn.functional.cross_entropy(
        3 * first @ second.T, torch.arange(7), reduction="none"
    )
    assert torch.allclose(
        matching_losses(first, second, scale=3.0), expected, atol=1e-5
    )


# The browser


def shown(model, *texts):
    return [head_browser(capture(model, TOKENIZER, text)) for text in texts]


def test_browser_holds_one_text_without_its_padding():
    seen = capture(make_model(), TOKENIZER, TEXTS)
    made = head_browser(seen, 2)
    assert (made.layers, made.heads, made.tokens) == (3, 4, 4)
    assert repr(made) == "HeadBrowser(layers=3, heads=4, tokens=4)"
    assert made._repr_html_() == made.html and "[PAD]" not in made.html
    assert made == head_browser(seen, 2) != head_browser(seen, 0)
    assert not re.search(r"https?:|src=|\bid=", made.html)
    with pytest.raises(IndexError):
        head_browser(seen, 3)


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_browser_works_from_the_keyboard(theme):
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    model = make_model()
    first, second = shown(model, "The cat & <b>the</b> dog.", "No!")
    colours = (
        "#fff; color: #222" if theme == "light" else "#121212; color: #ddd"
    )
    seen = capture(model, TOKENIZER, "No!").attentions[:, 0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=QUIET
        )
        page = browser.new_context(offline=True).new_page()
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.set_content(
            f'<html lang="en"><title>t</title><body style="background:{colours}">'
            f"<main><h1>t</h1>{first.html}{second.html}</main></body></html>"
        )
        roots = page.locator(".head-browser")
        assert roots.count() == 2

        def table(root):
            rows = root.locator("tbody tr").all()
            return [row.locator("td").all_inner_texts() for row in rows]

        def percent(layer, head):
            whole = (seen[layer, head] * 1000).round().int()
            numbers = ((whole + 5) // 10).tolist()
            return [[str(n) if n else "" for n in row] for row in numbers]

        untouched = table(roots.nth(0))
        assert table(roots.nth(1)) == percent(0, 0)
        for _ in range(3):  # first grid, first table, second grid
            page.keyboard.press("Tab")
        moves = {
            "ArrowRight": (0, 1),
            "ArrowDown": (1, 1),
            "ArrowLeft": (1, 0),
            "ArrowUp": (0, 0),
        }
        for key, (layer, head) in moves.items():
            page.keyboard.press(key)
            assert table(roots.nth(1)) == percent(layer, head), key
            chosen = roots.nth(1).locator("[aria-checked=true]")
            assert chosen.count() == 1
            name = f"layer {layer}, head {head}"
            assert chosen.get_attribute("aria-label") == name
            assert (
                roots.nth(1).locator("output").inner_text().startswith(name)
            )
            assert chosen.evaluate(
                "each => each === document.activeElement"
            )
        page.keyboard.press("ArrowUp")  # beyond the first row: stays
        assert table(roots.nth(1)) == percent(0, 0)
        roots.nth(1).get_by_role("radio", name="layer 2, head 3").click()
        assert table(roots.nth(1)) == percent(2, 3)
        assert table(roots.nth(0)) == untouched
        page.keyboard.press("Tab")  # the grid is one stop
        stop = "document.activeElement.className"
        assert page.evaluate(stop) == "hb-scroll"
        assert roots.nth(0).locator("b").count() == 0  # a token is text
        assert "<" in roots.nth(0).locator("thead").inner_text()
        assert Axe().run(page).response["violations"] == []
        assert faults == []
        browser.close()
