"""Geometry of hidden states: known answers, other implementations, limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from bertbook.config import BertConfig
from bertbook.inspection import capture
from bertbook.model import BertModel
from bertbook.representations import (
    SENSES,
    anisotropy,
    effective_dimension,
    layer_states,
    neighbour_accuracy,
    neighbour_chance,
    principal_components,
    self_similarity,
    sense_cosines,
    step_cosines,
    word_states,
)
from bertbook.tokenizer import BertTokenizer

TEXTS = ["The bank lends.", "A bat", "We sat on the bank, all day long."]
SEEDS = st.integers(0, 10**6)


def gaussian(seed, *shape):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed)
    )


def rotation(seed, size):
    return torch.linalg.qr(gaussian(seed, size, size))[0]


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer.from_pretrained("all-MiniLM-L6-v2").fast


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
        )
    ).train()


# The states of texts


def test_layer_states_are_those_of_each_text_alone(model, tokenizer):
    together = layer_states(model, tokenizer, TEXTS, batch_size=2)
    assert len(together) == len(TEXTS)
    for text, states in zip(TEXTS, together):
        alone = capture(model, tokenizer, text).hidden_states[:, 0]
        assert states.shape == alone.shape
        torch.testing.assert_close(states, alone, rtol=1e-5, atol=1e-6)


def test_layer_states_leave_the_model_as_it_was(model, tokenizer):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    states = layer_states(model, tokenizer, TEXTS)
    assert model.training and all(m.training for m in model.modules())
    assert not any(one.requires_grad for one in states)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    again = layer_states(model, tokenizer, TEXTS)
    assert all(map(torch.equal, states, again)), "dropout is off"


def test_layer_states_cut_and_take_words(model, tokenizer):
    (cut,) = layer_states(model, tokenizer, [TEXTS[2]], max_length=5)
    assert cut.shape == (4, 5, 24)
    words = [
        "We",
        "sat",
        "on",
        "the",
        "bank",
        ",",
        "all",
        "day",
        "long",
        ".",
    ]
    (split,) = layer_states(model, tokenizer, [words])
    (whole,) = layer_states(model, tokenizer, [TEXTS[2]])
    torch.testing.assert_close(split, whole)


def test_removed_padding_changes_no_state(tokenizer):
    sizes = dict(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    padded = BertModel(BertConfig(**sizes))
    packed = BertModel(BertConfig(**sizes, remove_padding=True))
    packed.load_state_dict(padded.state_dict())
    pairs = zip(
        layer_states(padded, tokenizer, TEXTS),
        layer_states(packed, tokenizer, TEXTS),
    )
    for one, two in pairs:
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_word_states_find_the_word(model, tokenizer):
    texts = [TEXTS[0], TEXTS[2]]
    found = word_states(model, tokenizer, texts, "bank")
    assert found.shape == (4, 2, 24)
    for number, text in enumerate(texts):
        seen = capture(model, tokenizer, text)
        place = seen.tokens[0].index("bank")
        torch.testing.assert_close(
            found[:, number], seen.hidden_states[:, 0, place]
        )


@pytest.mark.parametrize(
    "text", ["No such word.", "bank by bank", "Banks fail.", ""]
)
def test_word_states_want_the_word_once(model, tokenizer, text):
    with pytest.raises(ValueError, match="once is expected"):
        word_states(model, tokenizer, [text], "bank")


# The sentences


def test_senses_are_balanced_and_well_formed(tokenizer):
    assert len(SENSES) >= 4
    everything = []
    for word, senses in SENSES.items():
        assert len(senses) == 2
        for texts in senses.values():
            assert len(texts) == 6
            everything += texts
            for text in texts:
                assert tokenizer.tokenize(text).count(word) == 1
                assert text[0].isupper() and text.endswith(".")
    assert len(set(everything)) == len(everything)


# Anisotropy


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, n=st.integers(2, 40), size=st.integers(1, 20))
def test_anisotropy_is_the_mean_over_all_pairs(seed, n, size):
    vectors = gaussian(seed, n, size)
    cosines = cosine_similarity(vectors.double().numpy())
    expected = cosines[~np.eye(n, dtype=bool)].mean()
    assert anisotropy(vectors).item() == pytest.approx(expected, abs=1e-5)


def test_anisotropy_of_known_clouds():
    cloud = gaussian(0, 5000, 64)
    assert abs(anisotropy(cloud)) < 2e-3
    # Shifted by s in each of d coordinates of variance 1: s² / (1 + s²).
    assert anisotropy(cloud + 1).item() == pytest.approx(0.5, abs=0.01)
    assert anisotropy(cloud + 2).item() == pytest.approx(0.8, abs=0.01)
    assert anisotropy(torch.ones(9, 4)).item() == pytest.approx(1)
    two = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    assert anisotropy(two).item() == pytest.approx(-1)


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_anisotropy_ignores_lengths_order_and_rotation(seed):
    vectors = gaussian(seed, 12, 8) + 0.5
    value = anisotropy(vectors)
    lengths = gaussian(seed + 1, 12, 1).abs() + 0.1
    turned = (lengths * vectors).flip(0) @ rotation(seed + 2, 8)
    torch.testing.assert_close(anisotropy(turned), value, atol=1e-5, rtol=0)


def test_each_layer_is_measured_on_its_own():
    layers = gaussian(0, 3, 10, 6)
    for measure in (anisotropy, effective_dimension):
        each = torch.stack([measure(layer) for layer in layers])
        torch.testing.assert_close(measure(layers), each)
    senses = torch.arange(2).repeat(5)
    within, across = sense_cosines(layers, senses)
    for number, layer in enumerate(layers):
        one, two = sense_cosines(layer, senses)
        torch.testing.assert_close(within[number], one)
        torch.testing.assert_close(across[number], two)


# Effective dimension


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_effective_dimension_is_the_participation_ratio(seed):
    vectors = gaussian(seed, 30, 7) * (gaussian(seed + 1, 7).abs() + 0.1)
    spectrum = PCA().fit(vectors.double().numpy()).explained_variance_
    expected = spectrum.sum() ** 2 / (spectrum**2).sum()
    found = effective_dimension(vectors)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    moved = 3 * vectors @ rotation(seed, 7) + 1
    assert effective_dimension(moved).item() == pytest.approx(
        expected, rel=1e-3
    )


def test_effective_dimension_of_known_shapes():
    cross = torch.cat([torch.eye(5), -torch.eye(5)])
    assert effective_dimension(cross).item() == pytest.approx(5)
    flat = torch.nn.functional.pad(cross, (0, 20))
    assert effective_dimension(flat).item() == pytest.approx(5)
    line = torch.arange(6.0)[:, None] * torch.ones(1, 9)
    assert effective_dimension(line).item() == pytest.approx(1)
    assert effective_dimension(torch.zeros(4, 3)).isnan()


# Steps


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_step_cosines_against_another_implementation(seed):
    states = gaussian(seed, 4, 5, 6)
    steps = step_cosines(states)
    assert steps.shape == (3, 5)
    for layer in range(3):
        pairs = cosine_similarity(states[layer], states[layer + 1])
        np.testing.assert_allclose(
            steps[layer].numpy(), pairs.diagonal(), atol=1e-5
        )


# Principal components


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, n=st.integers(4, 30), size=st.integers(3, 12))
def test_principal_components_against_scikit_learn(seed, n, size):
    vectors = gaussian(seed, n, size) * torch.arange(1, size + 1)
    places, shares = principal_components(vectors, 2)
    theirs = PCA(2).fit(vectors.double().numpy())
    expected = np.abs(theirs.transform(vectors.double().numpy()))
    scale = vectors.norm().item()
    np.testing.assert_allclose(places.abs(), expected, atol=2e-3 * scale)
    np.testing.assert_allclose(
        shares, theirs.explained_variance_ratio_, atol=1e-4
    )


def test_signs_of_components_do_not_depend_on_the_order_of_rows():
    vectors = gaussian(0, 20, 6) * torch.arange(1, 7)
    places, _ = principal_components(vectors)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled, _ = principal_components(vectors[order])
    torch.testing.assert_close(shuffled, places[order], atol=1e-4, rtol=0)
    moved, _ = principal_components(vectors + 10)
    torch.testing.assert_close(moved, places, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_too_many_components_are_refused(shape):
    with pytest.raises(ValueError, match="ask for fewer"):
        principal_components(torch.zeros(shape), 2)


# Neighbours


@settings(deadline=None, max_examples=15)
@given(seed=SEEDS)
def test_neighbours_against_scikit_learn(seed):
    vectors = gaussian(seed, 25, 4)
    labels = torch.randint(
        3, (25,), generator=torch.Generator().manual_seed(seed)
    )
    expected = cross_val_score(
        KNeighborsClassifier(1),
        vectors.numpy(),
        labels.numpy(),
        cv=LeaveOneOut(),
    ).mean()
    found = neighbour_accuracy(vectors, labels)
    assert found == pytest.approx(expected, abs=1e-6)
    turned = 2 * vectors @ rotation(seed, 4) + 1
    assert neighbour_accuracy(turned, labels) == pytest.approx(found)


@settings(deadline=None, max_examples=25)
@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=20))
def test_equal_vectors_give_chance(labels):
    labels = torch.tensor(labels)
    n = len(labels)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    expected = sum(bool(labels[i] == labels[j]) for i, j in pairs)
    chance = neighbour_chance(labels)
    assert chance == pytest.approx(expected / len(pairs), abs=1e-6)
    equal = 1 + torch.arange(5.0).expand(n, 5)
    assert neighbour_accuracy(equal, labels) == pytest.approx(
        chance, abs=1e-6
    )
    # Rounding must not break the tie.
    noisy = equal + 1e-7 * gaussian(0, n, 5)
    assert neighbour_accuracy(noisy, labels) == pytest.approx(
        chance, abs=1e-6
    )


def test_labels_by_lot_give_chance_on_average():
    labels = torch.arange(2).repeat_interleave(6)
    scores = [
        neighbour_accuracy(gaussian(seed, 12, 5), labels)
        for seed in range(400)
    ]
    assert neighbour_chance(labels) == pytest.approx(5 / 11)
    assert sum(scores) / len(scores) == pytest.approx(5 / 11, abs=0.03)


# Senses


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_sense_cosines_add_up_to_the_mean_of_all_pairs(seed):
    vectors = gaussian(seed, 10, 6)
    senses = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    within, across = sense_cosines(vectors, senses)
    same = 4 * 3 + 6 * 5
    mixed = 2 * 4 * 6
    total = (same * within + mixed * across) / (same + mixed)
    torch.testing.assert_close(
        total, anisotropy(vectors), atol=1e-5, rtol=0
    )


def test_self_similarity_is_adjusted_for_the_cone():
    cloud = gaussian(0, 4000, 32) + 1
    assert abs(self_similarity(cloud[:800], cloud)) < 0.02
    same = cloud[:1].expand(5, 32)
    expected = 1 - anisotropy(cloud)
    torch.testing.assert_close(self_similarity(same, cloud), expected)
