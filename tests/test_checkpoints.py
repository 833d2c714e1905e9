"""Checkpoints: both ways between two libraries, and every way to break one."""

import json
import logging
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from bertbook import heads
from bertbook.checkpoint_files import (
    check_vocabulary,
    find_checkpoint,
    read_weights,
    saving,
    shards,
    write_weights,
)
from bertbook.checkpoints import PreTrainedModel, draw
from bertbook.config import BertConfig
from bertbook.loading_report import CheckpointError
from bertbook.model import BertModel
from bertbook.published_names import (
    MODULES,
    from_published,
    modern_name,
    our_name,
    published_names,
    read_names,
    to_published,
)
from bertbook.tokenizer import BertTokenizer

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

SIZES = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
}
CONFIG = BertConfig(**SIZES)
KINDS = {"BertModel": BertModel} | {
    name: getattr(heads, name)
    for name in heads.__all__
    if name.startswith("BertFor")
}


def reference(name, **changes):
    """A model of `transformers` in which no parameter is constant."""
    torch.manual_seed(1)
    config = transformers.BertConfig(**SIZES | changes)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ours(name="BertModel", **changes):
    torch.manual_seed(2)
    model = KINDS[name](replace(CONFIG, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def results(model):
    """All floating tensors that a forward pass returns."""
    torch.manual_seed(3)
    ids = torch.randint(0, SIZES["vocab_size"], (3, 7))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    with torch.no_grad():
        answer = model(ids, attention_mask=mask)
    found = answer.values() if hasattr(answer, "values") else answer
    return [each for each in found if isinstance(each, torch.Tensor)]


def assert_same_numbers(one, two):
    one, two = results(one), results(two)
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def assert_same_tensors(one, two):
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype, name
        assert torch.equal(tensor, two[name]), name


def tensors_in(folder):
    found = {}
    for path in Path(folder).glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.fixture
def folder(tmp_path):
    ours().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def masked(tmp_path):
    """A checkpoint with a decoder, and its tensors."""
    ours("BertForMaskedLM").save_pretrained(tmp_path / "masked")
    path = tmp_path / "masked" / "model.safetensors"
    return path, load_file(path)


# Names


@pytest.mark.parametrize("name", KINDS)
def test_every_name_of_the_reference_has_one_place(name):
    tensors = reference(name).state_dict()
    read = read_names(tensors)
    assert not (read.renamed or read.buffers or read.unknown)
    copies = [n for n in tensors if ".decoder." in n]
    assert sorted(read.tied) == sorted(copies)
    back = to_published(from_published(tensors))
    rest = {
        n.removeprefix("bert."): t
        for n, t in tensors.items()
        if n not in copies
    }
    assert_same_tensors(back, rest)


@pytest.mark.parametrize("name", KINDS)
def test_every_name_of_ours_is_published(name):
    mine = set(ours(name).state_dict())
    theirs = set(reference(name).state_dict())
    published = [each for n in mine for each in published_names(n)]
    assert len(published) == len(set(published))
    assert {n for n in theirs if ".decoder." not in n} == set(published)


PUBLISHED = st.builds(
    lambda module, layer, kind: f"{module}.{kind}".replace(
        ".N.", f".{layer}."
    ),
    st.sampled_from(sorted(MODULES)),
    st.integers(0, 1000),
    st.sampled_from(["weight", "bias"]),
)
WRAPPED = st.sampled_from(["", "bert.", "module.", "module.module.bert."])


@given(PUBLISHED, WRAPPED, st.booleans())
def test_a_name_comes_back_from_any_wrapping(name, wrapping, old):
    found = name
    if old and "LayerNorm" in name:
        found = name.replace("weight", "gamma").replace("bias", "beta")
    assert modern_name(wrapping + found) == name
    assert name in published_names(our_name(wrapping + found))
    prefixed = published_names(f"bert.{our_name(name)}")
    assert f"bert.{name}" in prefixed


@given(
    st.sets(
        st.one_of(
            PUBLISHED,
            st.text(st.sampled_from("abN.0 weightbias"), max_size=30),
            st.sampled_from(
                [
                    "embeddings.position_ids",
                    "bert.embeddings.token_type_ids",
                    "cls.predictions.decoder.weight",
                    "cls.predictions.decoder.bias",
                    "encoder.layer.01.output.dense.weight",
                    "encoder.layer.N.output.dense.weight",
                    "encoder.layer.0.output.dense.kernel",
                ]
            ),
        ),
        max_size=20,
    )
)
def test_each_name_has_exactly_one_place(names):
    if len({modern_name(name) for name in names}) < len(names):
        with pytest.raises(ValueError, match="two names of one"):
            read_names(names)
        return
    read = read_names(names)
    places = [name for at in read.parts.values() for name in at]
    places += [*read.buffers, *read.tied, *read.unknown]
    assert sorted(places) == sorted(names)
    assert set(read.renamed) <= set(places)
    for mine, at in read.parts.items():
        assert len(at) == len(published_names(mine))


@given(st.data())
def test_tensors_come_back_bit_for_bit(data):
    modules = data.draw(st.sets(st.sampled_from(sorted(MODULES.values()))))
    mine = {}
    for module in sorted(modules):
        name = f"{module}.weight".replace(".N.", ".3.")
        stacked = "query_key_value" in module
        size = data.draw(st.integers(1, 4)) * (3 if stacked else 1)
        bits = data.draw(st.binary(min_size=8 * size, max_size=8 * size))
        rows = torch.frombuffer(bytearray(bits), dtype=torch.float32)
        mine[name] = rows.view(size, 2)
    back = from_published(to_published(mine))
    assert back.keys() == mine.keys()
    for name, tensor in mine.items():  # NaNs have bits too
        bits = back[name].view(torch.int32)
        assert torch.equal(bits, tensor.view(torch.int32))


def test_one_parameter_under_two_names_is_refused(masked):
    path, tensors = masked
    twice = {"bert.pooler.dense.bias": torch.ones(8)}
    twice |= {"pooler.dense.bias": torch.zeros(8)}
    save_file(tensors | twice, path)
    with pytest.raises(ValueError, match="two names of one parameter"):
        BertModel.from_pretrained(path.parent)


# Both ways


@pytest.mark.parametrize("theirs_shards", [None, "1KB"])
@pytest.mark.parametrize("our_shards", [None, 1000])
@pytest.mark.parametrize("name", KINDS)
def test_theirs_to_ours_to_theirs(
    name, theirs_shards, our_shards, tmp_path
):
    theirs = reference(name)
    options = {"max_shard_size": theirs_shards} if theirs_shards else {}
    theirs.save_pretrained(tmp_path / "theirs", **options)
    mine = KINDS[name].from_pretrained(tmp_path / "theirs", strict=True)
    assert not mine.training
    assert all(parameter.requires_grad for parameter in mine.parameters())
    assert_same_numbers(mine, theirs)
    mine.save_pretrained(tmp_path / "mine", max_shard_size=our_shards)
    index = tmp_path / "mine" / "model.safetensors.index.json"
    assert index.exists() == bool(our_shards)
    a, b = (tensors_in(tmp_path / side) for side in ("theirs", "mine"))
    assert_same_tensors(a, b)
    again, info = getattr(transformers, name).from_pretrained(
        tmp_path / "mine", output_loading_info=True
    )
    assert not any(info.values())
    for one, two in zip(
        results(theirs), results(again.eval()), strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", KINDS)
def test_ours_loads_in_the_automatic_classes(name, tmp_path):
    mine = ours(name)
    mine.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    theirs = getattr(transformers, config["architectures"][0])
    theirs = theirs.from_pretrained(tmp_path).eval()
    assert_same_numbers(mine, theirs)
    encoder = transformers.AutoModel.from_pretrained(tmp_path)
    words = encoder.embeddings.word_embeddings.weight
    inner = getattr(mine, "bert", mine)
    assert torch.equal(words, inner.embeddings.tokens.weight)


@pytest.mark.parametrize("layer_norm", ["post", "pre"])
@pytest.mark.parametrize("size", [None, "1KB"])
@pytest.mark.parametrize("name", KINDS)
def test_our_own_format_holds_everything(name, size, layer_norm, tmp_path):
    mine = ours(name, layer_norm=layer_norm, remove_padding=True)
    mine.save_pretrained(tmp_path, format="bertbook", max_shard_size=size)
    back = KINDS[name].from_pretrained(tmp_path, strict=True)
    assert back.config == mine.config
    assert_same_tensors(back.state_dict(), mine.state_dict())
    for kind in transformers.AutoModel, getattr(transformers, name):
        with pytest.raises((ValueError, OSError)):
            kind.from_pretrained(tmp_path)


def test_the_published_format_refuses_what_it_cannot_say(tmp_path):
    with pytest.raises(ValueError, match="format='bertbook'"):
        ours(layer_norm="pre").save_pretrained(tmp_path / "pre")
    odd = ours()
    odd.adapter = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="adapter.weight has no name"):
        odd.save_pretrained(tmp_path / "odd")
    with pytest.raises(ValueError, match="format='onnx' is not known"):
        ours().save_pretrained(tmp_path / "onnx", format="onnx")
    assert not list(tmp_path.iterdir())


def test_an_encoder_goes_into_a_head_and_out_of_one(tmp_path):
    encoder = ours()
    encoder.save_pretrained(tmp_path / "encoder")
    for format in "published", "bertbook":
        source = tmp_path / "encoder"
        head = heads.BertForSequenceClassification.from_pretrained(source)
        assert head.loading_report.missing == (
            "classifier.weight",
            "classifier.bias",
        )
        assert head.classifier.weight.abs().max() <= 0.04
        assert head.classifier.bias.eq(0).all()
        head.save_pretrained(tmp_path / format, format=format)
        back = BertModel.from_pretrained(tmp_path / format)
        assert len(back.loading_report.left_out) == 2
        assert_same_tensors(back.state_dict(), encoder.state_dict())


def test_labels_come_with_the_file(tmp_path):
    names = {0: "bad", 1: "fair", 2: "good"}
    theirs = reference("BertForSequenceClassification", id2label=names)
    theirs.save_pretrained(tmp_path)
    kind = heads.BertForSequenceClassification
    mine = kind.from_pretrained(tmp_path, strict=True)
    assert mine.config.num_labels == 3 and mine.config.id2label == names
    # another number of labels is another classifier, and it is said
    five = kind.from_pretrained(tmp_path, num_labels=5)
    assert five.classifier.weight.shape == (5, 8)
    problems = five.loading_report.problems
    assert len(problems["missing"]) == len(problems["left_out"]) == 2
    with pytest.raises(CheckpointError):
        kind.from_pretrained(tmp_path, num_labels=5, strict=True)
    words = ("a", "b", "c")
    named = kind.from_pretrained(tmp_path, labels=words, strict=True)
    assert named.config.id2label[0] == "a"


def test_bytes_are_the_same_each_time(tmp_path):
    for name in "one", "two":
        ours().save_pretrained(tmp_path / name)
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir()}
        for n in ("one", "two")
    )
    assert one == two


# Drawing


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
def test_weights_are_drawn_from_the_cut_normal_distribution(dtype):
    """By its moments, and by the share inside each of ten parts."""
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(4000, 256, padding_idx=7, dtype=dtype)
    draw(embedding, "weight", 0.02)
    assert embedding.weight[7].eq(0).all()
    drawn = embedding.weight[8:].detach().double().flatten() / 0.02
    assert drawn.abs().max() <= 2.01  # 2, as the type can write it
    assert abs(drawn.mean()) < 0.004
    edges = torch.linspace(-2, 2, 11, dtype=torch.float64)
    shares = torch.distributions.Normal(0.0, 1.0).cdf(edges).diff()
    found = torch.histogram(drawn.clamp(-2, 2), edges).hist / len(drawn)
    assert (found - shares / shares.sum()).abs().max() < 0.003


# Loading


def test_loading_draws_nothing(folder):
    state = torch.get_rng_state()
    BertModel.from_pretrained(folder)
    assert torch.equal(state, torch.get_rng_state())


def test_a_loaded_model_does_not_look_into_its_file(folder):
    model = BertModel.from_pretrained(folder)
    before = results(model)
    path = folder / "model.safetensors"
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    for one, two in zip(before, results(model), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("asked", [None, torch.bfloat16, torch.float64])
def test_types(stored, asked, tmp_path):
    ours().to(stored).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == (
        str(stored).removeprefix("torch.")
    )
    kind = heads.BertForMaskedLM
    model = kind.from_pretrained(tmp_path, dtype=asked)
    types = {parameter.dtype for parameter in model.parameters()}
    assert types == {asked or stored}  # of the fresh head too


def test_mixed_types_become_the_widest(masked):
    path, tensors = masked
    name = "bert.embeddings.word_embeddings.weight"
    save_file(tensors | {name: tensors[name].half()}, path)
    model = heads.BertForMaskedLM.from_pretrained(path.parent)
    types = {parameter.dtype for parameter in model.parameters()}
    assert types == {torch.float32}


def test_options(folder):
    model = BertModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation="eager"
    )
    assert model.pooler is None
    assert model.config.attn_implementation == "eager"
    assert len(model.loading_report.left_out) == 2
    with pytest.raises(TypeError, match="give num_labels="):
        BertModel.from_pretrained(folder, num_label=3)
    with pytest.raises(TypeError, match="give dtype="):
        BertModel.from_pretrained(folder, torch_dtype=torch.half)
    with pytest.raises(TypeError, match="no floating point type"):
        BertModel.from_pretrained(folder, dtype="auto")
    with pytest.raises(ValueError, match="attn_implementation='flash'"):
        BertModel.from_pretrained(folder, attn_implementation="flash")


def test_a_buffer_that_no_file_holds_is_named(folder):
    class WithTable(PreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.embeddings = BertModel(config).embeddings
            self.register_buffer("table", torch.ones(3), persistent=False)

    with pytest.raises(ValueError, match="table is a buffer"):
        WithTable.from_pretrained(folder)


# The report


def test_a_sound_file_says_nothing(folder, caplog):
    model = BertModel.from_pretrained(folder, strict=True)
    assert not model.loading_report.problems and not caplog.records
    assert BertModel(CONFIG).loading_report is None


def test_what_is_lost_or_made_up_is_logged_and_strict_raises(
    folder, caplog
):
    kind = heads.BertForMaskedLM
    with caplog.at_level(logging.WARNING):
        model = kind.from_pretrained(folder)
    assert str(model.loading_report) in caplog.text
    assert "mlm_head.dense.weight" in caplog.text
    assert "pooler.dense.weight" in caplog.text
    with pytest.raises(CheckpointError) as error:
        kind.from_pretrained(folder, strict=True)
    assert error.value.report == model.loading_report
    assert "leave strict=True out" in str(error.value)


def test_old_names_copies_and_buffers_are_no_problem(masked):
    path, tensors = masked
    old = {
        "module."
        + name.replace("Norm.weight", "Norm.gamma").replace(
            "Norm.bias", "Norm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    old["module.bert.embeddings.position_ids"] = torch.arange(10)[None]
    table = tensors["bert.embeddings.word_embeddings.weight"]
    old["module.cls.predictions.decoder.weight"] = table.clone()
    bias = tensors["cls.predictions.bias"]
    old["module.cls.predictions.decoder.bias"] = bias.clone()
    save_file(old, path)
    model = heads.BertForMaskedLM.from_pretrained(path.parent, strict=True)
    assert_same_tensors(to_published(model.state_dict()), tensors)
    report = model.loading_report
    assert len(report.renamed) == len(tensors)
    assert len(report.tied) == 2 and len(report.buffers) == 1
    theirs = reference("BertForMaskedLM")
    assert len(results(model)) == len(results(theirs))


@pytest.mark.parametrize("kept", ["weight", "bias"])
def test_a_copy_alone_stands_for_its_original(masked, kept):
    path, tensors = masked
    original = {
        "weight": "bert.embeddings.word_embeddings.weight",
        "bias": "cls.predictions.bias",
    }[kept]
    alone = dict(tensors)
    alone[f"cls.predictions.decoder.{kept}"] = alone.pop(original)
    save_file(alone, path)
    model = heads.BertForMaskedLM.from_pretrained(path.parent, strict=True)
    assert_same_tensors(to_published(model.state_dict()), tensors)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_an_untied_decoder_is_refused(masked, name):
    path, tensors = masked
    shape = (40, 8) if name == "weight" else (40,)
    untied = {f"cls.predictions.decoder.{name}": torch.randn(shape)}
    save_file(tensors | untied, path)
    with pytest.raises(CheckpointError, match="BertModel") as error:
        heads.BertForMaskedLM.from_pretrained(path.parent)
    assert len(error.value.report.untied) == 1
    model = BertModel.from_pretrained(path.parent, add_pooling_layer=False)
    assert (
        f"cls.predictions.decoder.{name}" in model.loading_report.left_out
    )


@pytest.mark.parametrize(
    "name, wrong, sentence",
    [
        ("word_embeddings.weight", (41, 8), r"\(41, 8\), and \(40, 8\)"),
        ("word_embeddings.weight", (41, 8), "vocab_size=40"),
        ("attention.self.key.bias", (9,), r"\(9,\), and \(8,\)"),
        ("attention.self.query.weight", (24, 8), r"and \(8, 8\)"),
        ("pooler.dense.bias", (), r"\(\), and \(8,\)"),
    ],
)
def test_a_wrong_shape_is_refused_with_both(name, wrong, sentence, folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    (found,) = (n for n in tensors if n.endswith(name) and ".1." not in n)
    save_file(tensors | {found: torch.zeros(wrong)}, path)
    with pytest.raises(CheckpointError, match=sentence) as error:
        BertModel.from_pretrained(folder)
    assert error.value.report.mismatched[0].startswith(found)


def test_quantised_numbers_are_refused(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.layer.0.output.dense.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, path)
    with pytest.raises(CheckpointError, match=f"{name} holds int8"):
        BertModel.from_pretrained(folder)


def test_a_query_without_its_key_is_not_used(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.layer.1.attention.self.key.weight"]
    save_file(tensors, path)
    report = BertModel.from_pretrained(folder).loading_report
    (missing,) = report.missing
    assert missing == "encoder.layers.1.attention.query_key_value.weight"
    assert len(report.unexpected) == 2


def test_a_file_of_another_model_is_refused_without_strict(folder):
    save_file({"epoch": torch.ones(1)}, folder / "model.safetensors")
    for strict in False, True:
        with pytest.raises(CheckpointError, match="of BERT$") as error:
            BertModel.from_pretrained(folder, strict=strict)
        assert "strict" not in str(error.value)
        assert error.value.report.unexpected == ("epoch",)


def test_a_vocabulary_that_does_not_fit(folder):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab += [f"p{n}" for n in range(36)]
    for count, field in (41, "vocabulary"), (39, "spare_rows"), (40, None):
        lines = "\n".join(vocab[:count]) + "\n"
        (folder / "vocab.txt").write_text(lines)
        report = BertModel.from_pretrained(folder).loading_report
        assert bool(report.vocabulary) == (field == "vocabulary")
        assert bool(report.spare_rows) == (field == "spare_rows")
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    report = BertModel.from_pretrained(folder).loading_report
    assert "BPE" in report.vocabulary[0]
    for broken in "[]", '{"model": 3}', "{":
        (folder / "tokenizer.json").write_text(broken)
        with pytest.raises(ValueError, match="tokenizer.json"):
            check_vocabulary(folder, 40)


def test_a_key_without_a_meaning_is_named(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"rope_theta": 10000}
    path.write_text(json.dumps(config))
    report = BertModel.from_pretrained(folder, strict=True).loading_report
    assert report.unused_keys == ("rope_theta",)
    marked = b"\xef\xbb\xbf" + path.read_bytes()  # as some editors save it
    path.write_bytes(marked)
    again = BertModel.from_pretrained(folder).loading_report
    assert again.unused_keys == ("rope_theta",)
    path.write_text(json.dumps(config | {"is_decoder": True}))
    with pytest.raises(ValueError, match="is_decoder"):
        BertModel.from_pretrained(folder)
    path.write_text(json.dumps(config | {"model_type": "roberta"}))
    with pytest.raises(ValueError, match="model_type='roberta'"):
        BertModel.from_pretrained(folder)


# Damaged files


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "x.ckpt"]
)
@pytest.mark.parametrize("protocol", [0, 2, "torch"])
def test_nothing_is_unpickled(name, protocol, folder, tmp_path):
    trap = Trap(tmp_path / "sprung")
    weights = folder / "model.safetensors"
    weights.unlink()

    def write(path):
        if protocol == "torch":
            torch.save({"a": trap}, path)
        else:
            path.write_bytes(pickle.dumps(trap, protocol))

    write(folder / name)
    with pytest.raises(ValueError, match=f"{name}, a pickle"):
        BertModel.from_pretrained(folder)
    write(weights)  # under the name of a harmless file
    with pytest.raises(ValueError, match="pickle|damaged"):
        BertModel.from_pretrained(folder)
    index = {"weight_map": {"pooler.dense.bias": name}}
    weights.unlink()
    index_path = folder / "model.safetensors.index.json"
    index_path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="pickle|damaged"):
        BertModel.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


def test_every_cut_is_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in {0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            BertModel.from_pretrained(folder)


@given(st.data())
def test_every_flipped_bit_is_noticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped")
    write_weights(folder, {"a": torch.randn(5), "b": torch.ones(2, 2)})
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    before, _ = read_weights(folder)
    before = {name: tensor.clone() for name, tensor in before.items()}
    path.unlink()
    path.write_bytes(whole)
    try:
        after, _ = read_weights(folder)
    except ValueError:
        pass  # a header's blank may change without harm; numbers may not
    else:
        assert_same_tensors(before, after)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "damage, kind, sentence",
    [
        (lambda f: (f / "config.json").unlink(), OSError, "no config.json"),
        (
            lambda f: (f / "config.json").write_text("{"),
            ValueError,
            "config.json",
        ),
        (
            lambda f: (f / "model.safetensors").unlink(),
            OSError,
            "holds neither",
        ),
        (
            lambda f: (f / "model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
            ),
            ValueError,
            "git lfs pull",
        ),
        (
            lambda f: (f / "model.safetensors").write_text(
                "<!DOCTYPE html>"
            ),
            ValueError,
            "damaged|cut short",
        ),
    ],
)
def test_damage_has_its_sentence(damage, kind, sentence, folder):
    damage(folder)
    with pytest.raises(kind, match=sentence) as error:
        BertModel.from_pretrained(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    "fault", ["gone", "emptied", "cut", "junk", "away"]
)
def test_faulty_shards_are_refused(fault, tmp_path):
    ours().save_pretrained(tmp_path, max_shard_size="1KB")
    first = sorted(tmp_path.glob("model-*"))[0]
    index = tmp_path / "model.safetensors.index.json"
    sentence = first.name
    if fault == "gone":
        first.unlink()
    elif fault == "emptied":
        save_file({"other": torch.ones(1)}, first)
    elif fault == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    else:
        places = json.loads(index.read_text())["weight_map"]
        if fault == "away":
            places = {name: f"../{at}" for name, at in places.items()}
        content = {"weight_map": places if fault == "away" else [1]}
        index.write_text(json.dumps(content))
        sentence = "is no index"
    with pytest.raises((ValueError, OSError), match=sentence):
        BertModel.from_pretrained(tmp_path)


def test_sizes_of_shards(tmp_path):
    tensors = {str(n): torch.zeros(n) for n in (1, 5, 2, 9, 1)}
    for size in range(1, 100):
        parts = shards(tensors, size)
        assert [n for part in parts for n in part] == list(tensors)
        for part in parts:
            total = sum(tensor.nbytes for tensor in part.values())
            assert total <= size or len(part) == 1
    for wrong in 0, -1, "1 TB", "GB", 1.5:
        with pytest.raises(ValueError, match="max_shard_size="):
            write_weights(tmp_path, tensors, max_shard_size=wrong)


# Saving


def test_only_files_of_the_checkpoint_are_replaced(tmp_path):
    notes = ["README.md", "model_best.safetensors", "optimizer.safetensors"]
    for name in notes:
        (tmp_path / name).write_text("mine")
    ours().save_pretrained(tmp_path, max_shard_size="1KB")
    ours().save_pretrained(tmp_path, format="bertbook")
    ours().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["config.json", "model.safetensors", *notes]
    )
    assert all((tmp_path / name).read_text() == "mine" for name in notes)


def test_a_tokenizer_comes_along_if_it_fits(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    tokenizer = BertTokenizer({p: i for i, p in enumerate(pieces)})
    ours().save_pretrained(tmp_path / "fits", tokenizer=tokenizer)
    back = BertTokenizer.from_pretrained(tmp_path / "fits")
    assert back.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(ValueError, match="5 rows"):
        ours(vocab_size=5).save_pretrained(
            tmp_path / "not", tokenizer=tokenizer
        )
    assert not (tmp_path / "not").exists()


def test_a_full_disk_leaves_the_old_checkpoint(folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError):
            ours(num_hidden_layers=3).save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


EVENTS = {
    "open",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
}


def killed_at(step, action):
    """Whether a child that runs `action` was killed at its operation
    `step` on files, by a signal that it cannot catch."""
    child = os.fork()
    if not child:
        left = [step]

        def hook(event, _):
            if event in EVENTS:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), "the save itself failed"
    return status == signal.SIGKILL


@pytest.mark.parametrize(
    "first, second",
    [
        ({}, {}),
        ({}, {"max_shard_size": 2000}),
        ({"max_shard_size": 2000}, {}),
        ({"max_shard_size": 2000}, {"max_shard_size": 1000}),
        ({}, {"format": "bertbook"}),
        ({"format": "bertbook"}, {}),
    ],
)
def test_a_kill_leaves_the_old_or_the_new(first, second, tmp_path):
    """The two differ in size, so that any mixture of them is noticed."""
    old, new = ours(), ours(num_hidden_layers=1, intermediate_size=9)
    seen, killed = [], True
    while killed:
        folder = tmp_path / str(len(seen))
        old.save_pretrained(folder, **first)
        save = partial(new.save_pretrained, folder, **second)
        killed = killed_at(len(seen) + 1, save)
        found = BertModel.from_pretrained(folder, strict=True)
        is_new = found.config == new.config
        expected = (new if is_new else old).state_dict()
        assert_same_tensors(found.state_dict(), expected)
        seen.append(is_new)
        old.save_pretrained(folder)  # and nothing is left of it all
        files = {path.name for path in folder.iterdir()}
        assert files == {"config.json", "model.safetensors"}
    assert seen == sorted(seen) and not seen[0] and seen[-1]


def test_model_and_tokenizer_are_of_the_same_save(monkeypatch, tmp_path):
    """Whichever renaming or linking is the last one before an error."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    old, new = (
        (ours(num_hidden_layers=layers), BertTokenizer(vocab))
        for layers, vocab in (
            (2, {p: i for i, p in enumerate(pieces)}),
            (1, {p: i for i, p in enumerate(pieces + ["c"])}),
        )
    )

    def save(folder, model, tokenizer, fail_at=0):
        done = []

        def failing(function):
            def call(*arguments):
                done.append(function)
                if len(done) == fail_at:
                    raise KeyboardInterrupt
                return function(*arguments)

            return call

        with monkeypatch.context() as patch:
            for name in "replace", "link":
                patch.setattr(os, name, failing(getattr(os, name)))
            model.save_pretrained(folder, tokenizer=tokenizer)

    seen, failed = [], True
    while failed:
        folder = tmp_path / str(len(seen))
        save(folder, *old)
        try:
            save(folder, *new, fail_at=len(seen) + 1)
            failed = False
        except KeyboardInterrupt:
            pass
        model = BertModel.from_pretrained(folder, strict=True)
        vocab = BertTokenizer.from_pretrained(folder).get_vocab()
        kept = new if model.config == new[0].config else old
        assert_same_tensors(model.state_dict(), kept[0].state_dict())
        assert vocab == kept[1].get_vocab()
        seen.append(kept is new)
    assert seen == sorted(seen) and not seen[0] and seen.count(True) > 2


def test_a_first_save_that_is_killed_is_no_checkpoint(tmp_path):
    folder = tmp_path / "new"
    assert killed_at(6, lambda: ours().save_pretrained(folder))
    with pytest.raises(FileNotFoundError):
        BertModel.from_pretrained(folder)
    ours().save_pretrained(folder)
    BertModel.from_pretrained(folder, strict=True)


def test_saving_without_links(monkeypatch, tmp_path):
    def no_links(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", no_links)
    for value in 1, 2:
        with saving(tmp_path) as new:
            write_weights(new, {"a": torch.tensor([value])})
    assert read_weights(find_checkpoint(tmp_path))[0]["a"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


# Names of models


def test_a_name_without_a_hub_fails_at_once(monkeypatch):
    monkeypatch.setattr("bertbook.tokenizer.hub_answers", lambda: False)
    with pytest.raises(ConnectionError, match="all-MiniLM-L6-v2"):
        BertModel.from_pretrained("nobody/no-such-model")
    with pytest.raises(ValueError, match="is a file"):
        BertModel.from_pretrained(__file__)


def test_the_embedded_checkpoint_by_its_names():
    for name in (
        "all-MiniLM-L6-v2",
        "sentence-transformers/all-MiniLM-L6-v2",
    ):
        model = BertModel.from_pretrained(name, strict=True)
        assert model.loading_report.buffers == ("embeddings.position_ids",)
        assert model.config.num_hidden_layers == 6


HUB = r"""
import hashlib, json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

folder, asked, commit = Path(sys.argv[1]), [], "a" * 40

class Hub(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_HEAD(self): self.do_GET()
    def do_GET(self):
        path = self.path.partition("?")[0]
        asked.append(path)
        body, headers, status = b"", {}, 200
        if path.startswith("/api/models/some/bert/"):
            files = sorted(p.name for p in folder.iterdir())
            if "/tree/" in path:
                body = [{"type": "file", "path": n, "oid": "0" * 40,
                         "size": (folder / n).stat().st_size} for n in files]
            else:
                body = {"_id": "0", "id": "some/bert", "sha": commit,
                        "private": False, "downloads": 0, "likes": 0,
                        "tags": [],
                        "siblings": [{"rfilename": n} for n in files]}
            body = json.dumps(body).encode()
        elif path.startswith("/some/bert/resolve/"):
            body = (folder / path.rpartition("/")[2]).read_bytes()
            headers = {"ETag": '"%s"' % hashlib.sha1(body).hexdigest(),
                       "X-Repo-Commit": commit}
        elif path != "/":
            status = 404
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()

import os
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
import torch
from bertbook.model import BertModel
from bertbook.tokenizer import BertTokenizer

local = BertModel.from_pretrained(folder).state_dict()
BertTokenizer.from_pretrained("some/bert")  # its files only
first = BertModel.from_pretrained("some/bert", strict=True)
assert not [path for path in asked if path.endswith(".bin")], asked
server.shutdown()
server.server_close()
again = BertModel.from_pretrained("some/bert", strict=True)
for model in first, again:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, local[name])
try:
    BertModel.from_pretrained("some/other")
except ConnectionError as error:
    assert "all-MiniLM-L6-v2" in str(error)
else:
    raise AssertionError
"""


@pytest.mark.parametrize("size", [None, 1000])
def test_a_hub_name_is_fetched_and_kept(size, tmp_path):
    """From a small hub of our own, then from the copy without it."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    tokenizer = BertTokenizer({p: i for i, p in enumerate(pieces)})
    folder = tmp_path / "hub"
    ours().save_pretrained(folder, tokenizer=tokenizer, max_shard_size=size)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(0))
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING")) and "proxy" not in name
    }
    done = subprocess.run(
        [sys.executable, "-c", HUB, str(folder)],
        env=environment | {"HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kept = [path.name for path in (tmp_path / "home").rglob("*.bin")]
    assert not kept
