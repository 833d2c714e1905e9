"""Copies in fewer bits and in another format: what stays, what is refused."""

import copy
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook.config import BertConfig
from bertbook.explanations import logits_of
from bertbook.heads import (
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bertbook.smaller import (
    OnnxClassifier,
    agreement,
    export_onnx,
    in_bfloat16,
    in_int8,
    weight_bytes,
)
from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import count_parameters

CONFIG = BertConfig(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
    num_labels=3,
)


def make_model(kind=BertForSequenceClassification, **changes):
    torch.manual_seed(0)
    return kind(replace(CONFIG, **changes)).eval()


def ragged(rows, seq, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, seq + 1, (rows,), generator=generator)
    lengths[0] = seq
    mask = (torch.arange(seq) < lengths[:, None]).long()
    ids = torch.randint(1, 97, (rows, seq), generator=generator) * mask
    types = torch.randint(2, (rows, seq), generator=generator) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
    }


@torch.no_grad()
def scores(model, batch):
    return model(**batch).logits


# What each copy is


@pytest.mark.parametrize("make", [in_bfloat16, in_int8])
def test_it_is_a_copy(make):
    model = make_model().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = make(model)
    assert not any(module.training for module in small.modules())
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == torch.float32


@pytest.mark.parametrize("make", [in_bfloat16, in_int8])
@pytest.mark.parametrize("layer_norm", ["post", "pre"])
@pytest.mark.parametrize("remove_padding", [False, True])
@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_scores_stay_close(make, layer_norm, remove_padding, pooling):
    model = make_model(
        layer_norm=layer_norm,
        remove_padding=remove_padding,
        classifier_pooling=pooling,
    )
    batch = ragged(5, 17)
    wanted, found = scores(model, batch), scores(make(model), batch).float()
    assert not torch.equal(found, wanted)
    # The scores of a random model are small.
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max() + 0.02


def test_conversion_warns_of_nothing():
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # not in the first test alone
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            small = in_int8(make_model())
            scores(small, ragged(2, 5))
    finally:
        torch.set_warn_always(always)


def test_sizes():
    model = make_model()
    total = count_parameters(model)
    assert weight_bytes(model) == 4 * total
    assert weight_bytes(in_bfloat16(model)) == 2 * total
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(each.weight.numel() for each in linear)
    rows = sum(each.out_features for each in linear)
    small = weight_bytes(in_int8(model))
    assert small == 4 * (total - weights) + weights + 8 * rows


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 8))
@settings(deadline=None, max_examples=40)
def test_eight_bits_keep_to_their_bound(seed, inputs, outputs):
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=True))
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(torch.randn(each.shape, generator=generator))
    x = 3 * torch.randn(4, inputs, generator=generator)
    with torch.no_grad():
        wanted, found = model(x), in_int8(model)(x)
    weight = model[0].weight.detach()
    # The library has seven bits for an input, or eight.
    step = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 127
    width = weight.abs().amax(1) / 127
    shifted = x.abs().sum(1, keepdim=True) + inputs * step / 2
    bound = step / 2 * weight.abs().sum(1) + width / 2 * shifted
    assert ((found - wanted).abs() <= bound * 1.01 + 1e-4).all()


def test_an_outlier_spoils_its_own_row_alone():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 2))
    with torch.no_grad():
        model[0].weight[1, 0] = 100.0
    x = torch.rand(8, 64)
    with torch.no_grad():
        error = (model(x) - in_int8(model)(x)).abs().max(0).values
    assert error[0] < 0.1 < error[1]


# Agreement


def test_agreement():
    reference = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert agreement(reference, reference) == (1.0, 0.0)
    assert agreement(reference + 5, reference).furthest < 1e-6
    other = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    found = agreement(other, reference)
    assert found.same == 0.5
    p = torch.tensor(1.0).sigmoid().item()
    assert abs(found.furthest - (2 * p - 1)) < 1e-6


# ONNX


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    made = {}

    def export(**changes):
        key = tuple(sorted((k, str(v)) for k, v in changes.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("onnx")
            model = make_model(**changes)
            export_onnx(model, folder / "model.onnx")
            made[key] = model, OnnxClassifier(folder / "model.onnx", 1)
        return made[key]

    return export


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_norm": "pre"},
        {"attn_implementation": "eager"},
        {"remove_padding": True},
        {"hidden_act": "gelu_new"},
        {"kind": BertForTokenClassification},
        {"classifier_pooling": "mean"},
    ],
    ids=str,
)
def test_onnx_gives_the_same(exported, changes):
    model, onnx = exported(**changes)
    for rows, seq in [(1, 1), (1, 9), (5, 17), (2, 8), (3, 40)]:
        batch = ragged(rows, seq, seed=rows + seq)
        wanted, found = scores(model, batch), scores(onnx, batch)
        assert found.dtype == torch.float32 and found.shape == wanted.shape
        real = batch["attention_mask"].bool()
        if found.ndim == 3:  # what stands on padding is of no interest
            wanted, found = wanted[real], found[real]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_onnx_fills_in_what_is_left_out(exported):
    model, onnx = exported()
    ids = ragged(3, 6)["input_ids"].clamp(min=1)
    given = {"input_ids": ids}
    torch.testing.assert_close(
        scores(onnx, given), scores(model, given), rtol=1e-4, atol=1e-4
    )


def test_exporting_changes_nothing(tmp_path):
    model = make_model(remove_padding=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export_onnx(model, tmp_path / "model.onnx")
    assert model.training and model.bert.config.remove_padding
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_the_file_has_free_axes_and_no_paths(tmp_path):
    import onnx

    path = tmp_path / "model.onnx"
    export_onnx(make_model(), path)
    graph = onnx.load(path).graph

    def names_of(value):
        return [a.dim_param for a in value.type.tensor_type.shape.dim]

    assert all(
        names_of(each)[0] == "batch"
        for each in [*graph.input, *graph.output]
    )
    assert [each.name for each in graph.output] == ["logits"]
    assert {a for each in graph.input for a in names_of(each)} == {
        "batch",
        "seq",
    }
    assert b'.py", line' not in path.read_bytes()


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError):
        export_onnx(make_model(), path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_wrong_files_are_named(tmp_path, exported):
    with pytest.raises(FileNotFoundError, match="absent.onnx is no file"):
        OnnxClassifier(tmp_path / "absent.onnx")
    for name, data in {
        "empty.onnx": b"",
        "text.onnx": b"not a model",
        "pickle.onnx": pickle.dumps({"a": 1}),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} is no ONNX file"):
            OnnxClassifier(tmp_path / name)


def test_a_cut_file_is_named(tmp_path):
    path = tmp_path / "model.onnx"
    export_onnx(make_model(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="model.onnx is no ONNX file"):
        OnnxClassifier(path)


def test_exporting_says_nothing(tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export_onnx(make_model(), tmp_path / "model.onnx")
        scores(OnnxClassifier(tmp_path / "model.onnx", 1), ragged(2, 5))
    assert capfd.readouterr() == ("", "")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("bertbook.smaller.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install onnx"):
        export_onnx(make_model(), tmp_path / "model.onnx")


def test_every_version_reads_texts():
    tokenizer = BertTokenizer.from_pretrained("all-MiniLM-L6-v2")
    model = make_model(vocab_size=30522)
    texts = ["a film", "", "not for a moment dull"]
    wanted = logits_of(model, tokenizer, texts, max_length=40)
    for make in (copy.deepcopy, in_bfloat16, in_int8):
        found = logits_of(make(model), tokenizer, texts, max_length=40)
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() < 0.1
