"""The configuration: what it refuses, and its file beside transformers'."""

import dataclasses
import json
import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bertbook.config import (
    PRESETS,
    BertConfig,
    parameter_counts,
    unused_keys,
)
from bertbook.encoder import ACTIVATIONS

SIZES = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "num_labels",
]
WRONG = [
    (
        dict(hidden_size=100),
        "hidden_size=100 cannot be shared equally by num_attention_heads=12; give hidden_size=96 or 108, or num_attention_heads=10",
    ),
    (
        dict(hidden_size=5),
        "hidden_size=5 cannot be shared equally by num_attention_heads=12; give hidden_size=12, or num_attention_heads=5",
    ),
    (
        dict(hidden_size=97, num_attention_heads=4),
        "hidden_size=97 cannot be shared equally by num_attention_heads=4; give hidden_size=96 or 100, or num_attention_heads=1",
    ),
    (
        dict(hidden_act="swish"),
        "hidden_act='swish' is not known here; give 'gelu' or 'gelu_new' or 'gelu_pytorch_tanh' or 'relu'",
    ),
    (
        dict(hidden_dropout_prob=1),
        "hidden_dropout_prob=1, and a dropout probability is at least 0 and below 1; give 0.1, or 0.0 for no dropout",
    ),
    (
        dict(hidden_dropout_prob=-0.1),
        "hidden_dropout_prob=-0.1, and a dropout probability is at least 0 and below 1; give 0.1, or 0.0 for no dropout",
    ),
    (
        dict(attention_probs_dropout_prob=10.0),
        "attention_probs_dropout_prob=10.0, and a dropout probability is at least 0 and below 1; give 0.1, or 0.0 for no dropout",
    ),
    (
        dict(classifier_dropout=math.nan),
        "classifier_dropout=nan, and a dropout probability is at least 0 and below 1; give 0.1, or 0.0 for no dropout",
    ),
    (
        dict(layer_norm_eps=0.0),
        "layer_norm_eps=0.0, and it must be positive and finite; give a small number such as 1e-12",
    ),
    (
        dict(initializer_range=math.inf),
        "initializer_range=inf, and it must be positive and finite; give a small number such as 0.02",
    ),
    (
        dict(pad_token_id=-1),
        "pad_token_id=-1 is outside the vocabulary, whose ids are 0 to 30521; give the id of [PAD], or None",
    ),
    (
        dict(pad_token_id=10, vocab_size=10),
        "pad_token_id=10 is outside the vocabulary, whose ids are 0 to 9; give the id of [PAD], or None",
    ),
    (
        dict(labels=("a", "b", "c")),
        "labels=('a', 'b', 'c') has 3 names, and num_labels=2; give as many names as labels",
    ),
    (
        dict(labels=()),
        "labels=() has 0 names, and num_labels=2; give as many names as labels",
    ),
    (
        dict(labels=("a", "a")),
        "labels=('a', 'a') names 'a' twice, and a name stands for one label; rename one of the two",
    ),
    (
        dict(problem_type="guess"),
        "problem_type='guess' is not known here; give None or 'regression' or 'single_label_classification' or 'multi_label_classification'",
    ),
    (
        dict(problem_type="single_label_classification", num_labels=1),
        "problem_type='single_label_classification' with num_labels=1 leaves nothing to choose; give num_labels=2, or problem_type='regression'",
    ),
    (
        dict(layer_norm="both"),
        "layer_norm='both' is not known here; give 'post' or 'pre'",
    ),
    (
        dict(attn_implementation="flash"),
        "attn_implementation='flash' is not known here; give 'sdpa' or 'eager'",
    ),
    (
        dict(classifier_pooling="max"),
        "classifier_pooling='max' is not known here; give 'pooler' or 'mean'",
    ),
]
WRONG_TYPES = [
    (
        dict(hidden_act=None),
        "hidden_act=None is of type NoneType; give 'gelu' or 'gelu_new' or 'gelu_pytorch_tanh' or 'relu'",
    ),
    (
        dict(hidden_dropout_prob=True),
        "hidden_dropout_prob=True is of type bool; give a number such as 0.1",
    ),
    (
        dict(hidden_dropout_prob=None),
        "hidden_dropout_prob=None is of type NoneType; give a number such as 0.1",
    ),
    (
        dict(classifier_dropout="0.1"),
        "classifier_dropout='0.1' is of type str; give a number such as 0.1",
    ),
    (
        dict(layer_norm_eps=1),
        "layer_norm_eps=1 is of type int; give a float such as 1e-12",
    ),
    (
        dict(initializer_range="0.02"),
        "initializer_range='0.02' is of type str; give a float such as 0.02",
    ),
    (
        dict(pad_token_id=0.0),
        "pad_token_id=0.0 is of type float; give an id such as 0, or None",
    ),
    (
        dict(pad_token_id=False),
        "pad_token_id=False is of type bool; give an id such as 0, or None",
    ),
    (
        dict(labels=["a", "b"]),
        "labels=['a', 'b'] is of type list; give a tuple of names, or None",
    ),
    (
        dict(labels="ab"),
        "labels='ab' is of type str; give a tuple of names, or None",
    ),
    (
        dict(labels=("a", 1)),
        "a label=1 is of type int; give its name, in quotes",
    ),
    (
        dict(problem_type=1),
        "problem_type=1 is of type int; give None or 'regression' or 'single_label_classification' or 'multi_label_classification'",
    ),
    (
        dict(layer_norm=None),
        "layer_norm=None is of type NoneType; give 'post' or 'pre'",
    ),
    (
        dict(classifier_pooling=None),
        "classifier_pooling=None is of type NoneType; give 'pooler' or 'mean'",
    ),
    (
        dict(attn_implementation=True),
        "attn_implementation=True is of type bool; give 'sdpa' or 'eager'",
    ),
    (
        dict(remove_padding=1),
        "remove_padding=1 is of type int; give False or True",
    ),
    (
        dict(gradient_checkpointing="yes"),
        "gradient_checkpointing='yes' is of type str; give False or True",
    ),
]
REFUSED = [
    (
        {"model_type": "roberta"},
        "model_type='roberta' is another architecture than 'bert', the one this book builds; choose a BERT checkpoint, or load this one with transformers.AutoModel",
    ),
    (
        {"position_embedding_type": "relative_key"},
        "position_embedding_type='relative_key' cannot be built here, where position_embedding_type is always 'absolute' for model_type='bert'; load this checkpoint with transformers, or choose another",
    ),
    ({"is_decoder": True}, "is_decoder=True cannot be built here"),
    (
        {"add_cross_attention": True},
        "add_cross_attention=True cannot be built here",
    ),
    (
        {"is_encoder_decoder": True},
        "is_encoder_decoder=True cannot be built here",
    ),
    (
        {"tie_word_embeddings": False},
        "tie_word_embeddings=False cannot be built here",
    ),
    (
        {"pruned_heads": {"0": [1]}},
        "pruned_heads={'0': [1]} cannot be built here",
    ),
    (
        {"quantization_config": {"bits": 8}},
        "quantization_config={'bits': 8} cannot be built here",
    ),
    ({"layer_norm": "pre"}, "layer_norm='pre' cannot be built here"),
    (
        {"classifier_pooling": "mean"},
        "classifier_pooling='mean' cannot be built here, where classifier_pooling is always 'pooler' for model_type='bert'",
    ),
    ({"hidden_act": "silu"}, "hidden_act='silu' is not known here"),
    (
        {"id2label": {"0": "a", "2": "b"}},
        "id2label numbers its labels 0, 2, and they are 0, 1, 2 and so on without a gap; number them again",
    ),
    (
        {"id2label": {}},
        "num_labels=0, and it is from 1 to 1,048,576 in every BERT; give a whole number such as 2",
    ),
    (
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}},
        "label2id={'a': 1, 'b': 0} contradicts id2label={'a': 0, 'b': 1} read backwards; make one the inverse of the other",
    ),
    (
        {"id2label": {"0": "a", "1": "b"}, "num_labels": 3},
        "labels=('a', 'b') has 2 names, and num_labels=3",
    ),
    (
        {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "num_labels": 3},
        "labels=('LABEL_0', 'LABEL_1') has 2 names, and num_labels=3",
    ),
]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_positive_whole_numbers(name):
    usual = getattr(BertConfig(), name)
    most = {"num_hidden_layers": 1000}.get(name, 2**20)
    span = f"and it is from 1 to {most:,} in every BERT; give a whole number such as {usual}"
    sentences = {
        0: f"{name}=0, {span}",
        -3: f"{name}=-3, {span}",
        most + 1: f"{name}={most + 1}, {span}",
        10**30: f"{name}={10**30}, {span}",
        True: f"{name}=True is of type bool; give a whole number such as {usual}",
        1.5: f"{name}=1.5 is of type float; give a whole number such as {usual}",
        "12": f"{name}='12' is of type str; give a whole number such as {usual}",
        None: f"{name}=None is of type NoneType; give a whole number such as {usual}",
    }
    for value, sentence in sentences.items():
        wanted = ValueError if type(value) is int else TypeError
        with pytest.raises(wanted) as caught:
            BertConfig(**{name: value})
        assert str(caught.value) == sentence


@pytest.mark.parametrize("given, sentence", WRONG)
def test_wrong_values_get_their_sentence(given, sentence):
    with pytest.raises(ValueError) as caught:
        BertConfig(**given)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("given, sentence", WRONG_TYPES)
def test_wrong_types_get_their_sentence(given, sentence):
    with pytest.raises(TypeError) as caught:
        BertConfig(**given)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(BertConfig)]
)
@pytest.mark.parametrize(
    "value",
    [object(), [], {}, 1j, b"gelu"],
    ids=lambda value: type(value).__name__,
)
def test_no_field_takes_just_anything(name, value):
    with pytest.raises(TypeError, match=name):
        BertConfig(**{name: value})


@given(st.integers(1, 200), st.integers(1, 40))
def test_the_sizes_named_for_heads_would_do(size, heads):
    try:
        BertConfig(hidden_size=size, num_attention_heads=heads)
    except ValueError as error:
        advice = str(error).partition("; give ")[2]
        sizes, _, near = advice.partition(", or num_attention_heads=")
        BertConfig(hidden_size=size, num_attention_heads=int(near))
        for fits in sizes.removeprefix("hidden_size=").split(" or "):
            assert abs(int(fits) - size) < heads
            BertConfig(hidden_size=int(fits), num_attention_heads=heads)
    else:
        assert size % heads == 0


def test_a_changed_copy_is_checked_and_the_original_stays():
    config = BertConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 12
    with pytest.raises(ValueError, match="767 cannot be shared"):
        dataclasses.replace(config, hidden_size=767)
    assert dataclasses.replace(config, remove_padding=True) != config
    assert hash(config) == hash(BertConfig())


def test_known_activations_are_those_of_the_encoder():
    for name in ACTIVATIONS:
        BertConfig(hidden_act=name)
    with pytest.raises(ValueError) as caught:
        BertConfig(hidden_act="")
    named = str(caught.value).partition("give ")[2].split(" or ")
    assert {name.strip("'") for name in named} == set(ACTIVATIONS)


@pytest.mark.parametrize("given, sentence", REFUSED)
def test_what_cannot_be_held_is_refused(given, sentence):
    data = transformers.BertConfig().to_dict()
    for key in "id2label", "label2id":
        del data[key]
    with pytest.raises(ValueError) as caught:
        BertConfig.from_dict(data | given)
    assert str(caught.value).startswith(sentence)


def test_nothing_is_refused_for_being_null_or_usual():
    data = {
        "model_type": None,
        "is_decoder": None,
        "pruned_heads": {},
        "quantization_config": None,
        "tie_word_embeddings": True,
        "id2label": None,
        "label2id": None,
        "classifier_dropout": None,
        "hidden_dropout_prob": 0,
    }
    assert BertConfig.from_dict(data) == BertConfig(hidden_dropout_prob=0.0)
    assert BertConfig.from_dict({}) == BertConfig()


@pytest.mark.parametrize("data", [[], "bert", None, 3], ids=repr)
def test_only_a_dict_is_a_configuration(data):
    with pytest.raises(TypeError, match="give a dict"):
        BertConfig.from_dict(data)
    with pytest.raises(TypeError, match="label2id=.* give a JSON object"):
        BertConfig.from_dict({"label2id": [1]})


def test_labels_from_either_dictionary():
    wanted = BertConfig(num_labels=3, labels=("x", "y", "z"))
    named = {"0": "x", "2": "z", "1": "y"}
    numbered = {"z": 2, "x": 0, "y": 1}
    unnamed = {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    for data in (
        {"id2label": named},
        {"label2id": numbered},
        {"id2label": named, "label2id": numbered, "num_labels": 3},
        # Somebody named the labels and left the other dictionary alone.
        {"id2label": named, "label2id": unnamed},
    ):
        assert BertConfig.from_dict(data) == wanted
    assert BertConfig.from_dict({"label2id": unnamed}).labels is None
    assert BertConfig.from_dict({"num_labels": 3}).num_labels == 3
    assert wanted.id2label == {0: "x", 1: "y", 2: "z"}
    assert BertConfig().id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_unused_keys():
    data = transformers.BertConfig(rope_theta=1e4).to_dict()
    assert unused_keys(data) == ["rope_theta"]
    assert unused_keys({"attn_implementation": "eager", "labels": []}) == [
        "attn_implementation",
        "labels",
    ]
    own = BertConfig(layer_norm="pre").to_dict(published=False)
    assert unused_keys(own) == []


RATES = st.floats(0, 1, exclude_max=True)
SMALL = st.floats(1e-15, 1, exclude_max=True)
NAMES = st.text(min_size=1, max_size=8)


@st.composite
def configs(draw):
    """Fields that both libraries hold."""
    heads = draw(st.integers(1, 6))
    vocab_size = draw(st.integers(1, 1000))
    given = dict(
        vocab_size=vocab_size,
        hidden_size=heads * draw(st.integers(1, 16)),
        num_hidden_layers=draw(st.integers(1, 4)),
        num_attention_heads=heads,
        intermediate_size=draw(st.integers(1, 100)),
        hidden_act=draw(st.sampled_from(sorted(ACTIVATIONS))),
        hidden_dropout_prob=draw(RATES),
        attention_probs_dropout_prob=draw(RATES),
        max_position_embeddings=draw(st.integers(1, 100)),
        type_vocab_size=draw(st.integers(1, 4)),
        initializer_range=draw(SMALL),
        layer_norm_eps=draw(SMALL),
        pad_token_id=draw(st.none() | st.integers(0, vocab_size - 1)),
        classifier_dropout=draw(st.none() | RATES),
        problem_type=draw(
            st.sampled_from(
                [None, "regression", "multi_label_classification"]
            )
        ),
    )
    names = draw(
        st.none() | st.lists(NAMES, min_size=1, max_size=5, unique=True)
    )
    return given, names


@settings(deadline=None)
@given(configs())
def test_both_libraries_read_each_other(drawn):
    given, names = drawn
    if names is None:
        ours, theirs = BertConfig(**given), transformers.BertConfig(**given)
    else:
        ours = BertConfig(
            **given, labels=tuple(names), num_labels=len(names)
        )
        theirs = transformers.BertConfig(
            **given,
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )
    for data in ours.to_dict(), json.loads(json.dumps(ours.to_dict())):
        assert transformers.BertConfig(**data) == theirs
        assert BertConfig.from_dict(data) == ours
        assert unused_keys(data) == []
    for data in theirs.to_dict(), json.loads(theirs.to_json_string()):
        assert BertConfig.from_dict(data) == ours
        assert unused_keys(data) == []


@settings(deadline=None)
@given(
    configs(),
    st.sampled_from(["post", "pre"]),
    st.sampled_from(["pooler", "mean"]),
    st.sampled_from(["sdpa", "eager"]),
    st.booleans(),
    st.booleans(),
)
def test_our_own_format_holds_every_field(
    drawn, norm, pooling, path, remove, recompute
):
    config = BertConfig(
        **drawn[0],
        layer_norm=norm,
        classifier_pooling=pooling,
        attn_implementation=path,
        remove_padding=remove,
        gradient_checkpointing=recompute,
    )
    data = json.loads(json.dumps(config.to_dict(published=False)))
    assert BertConfig.from_dict(data) == config
    papers = dict(layer_norm="post", classifier_pooling="pooler")
    published = dataclasses.replace(config, **papers)
    assert published.is_published
    assert config.is_published == (norm == "post" and pooling == "pooler")
    assert BertConfig.from_dict(published.to_dict()) == BertConfig(
        **drawn[0]
    )


@pytest.mark.parametrize(
    "name, value, only",
    [
        ("layer_norm", "pre", "post"),
        ("classifier_pooling", "mean", "pooler"),
    ],
)
def test_what_the_published_format_cannot_hold_is_not_written(
    tmp_path, name, value, only
):
    config = BertConfig(**{name: value})
    path = tmp_path / "config.json"
    for write in config.to_dict, lambda: config.to_json_file(path):
        with pytest.raises(
            ValueError,
            match=f"^{name}='{value}' has no place in the published format, where it would be read as '{only}'; write this book's own",
        ):
            write()
    assert not path.exists()


@pytest.mark.parametrize(
    "changes", [{"layer_norm": "pre"}, {"classifier_pooling": "mean"}]
)
def test_transformers_refuses_our_own_format(tmp_path, changes):
    config = BertConfig(**changes)
    config.to_json_file(tmp_path / "config.json", published=False)
    with pytest.raises(ValueError, match="model type `bertbook`"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    assert BertConfig.from_json_file(tmp_path / "config.json") == config


def test_files_both_ways(tmp_path):
    config = BertConfig(num_labels=3, labels=("ne", "možda", "да"))
    config.to_json_file(tmp_path / "config.json")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.id2label == config.id2label
    theirs.save_pretrained(tmp_path)
    assert BertConfig.from_json_file(tmp_path / "config.json") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "text, sentence",
    [
        (
            b"",
            "is not JSON (Expecting value: line 1 column 1 (char 0)); mend it, or get it again",
        ),
        (b'{"hidden_size": 384,', "is not JSON"),
        (b'{"hidden_size": "\xff"}', "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"hidden_size": 100}', ": hidden_size=100 cannot be shared"),
        (b'{"hidden_size": "32"}', ": hidden_size='32' is of type str"),
        (b'{"hidden_size": NaN}', ": hidden_size=nan is of type float"),
        (b'{"hidden_size": 1000000000001}', ": hidden_size=1000000000001"),
        (b'{"num_hidden_layers": 100000000}', "from 1 to 1,000 in every"),
        (b'{"id2label": ["a", "b"]}', ": id2label=['a', 'b'] is of type"),
        (b'{"id2label": {"0": ["a"], "1": 1}}', ": a label=['a'] is of"),
        (b"[1]", " holds a list, and a JSON object is expected"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, sentence):
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(ValueError) as caught:
        BertConfig.from_json_file(path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    BertConfig().to_json_file(path)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        BertConfig(num_labels=3).to_json_file(path)
    assert BertConfig.from_json_file(path) == BertConfig()
    assert len(list(tmp_path.iterdir())) == 1


def count(module):
    return sum(weight.numel() for weight in module.parameters())


ODD = BertConfig(
    vocab_size=77,
    hidden_size=30,
    num_hidden_layers=3,
    num_attention_heads=5,
    intermediate_size=41,
    max_position_embeddings=13,
    type_vocab_size=3,
)


@pytest.mark.parametrize(
    "config", [*PRESETS.values(), ODD], ids=[*PRESETS, "odd"]
)
def test_parameter_counts_against_transformers(config):
    with torch.device("meta"):
        theirs = transformers.BertForPreTraining(
            transformers.BertConfig(**config.to_dict())
        )
    counts = parameter_counts(config)
    embeddings = theirs.bert.embeddings
    layers = theirs.bert.encoder.layer
    norms = [
        m
        for m in theirs.bert.modules()
        if isinstance(m, torch.nn.LayerNorm)
    ]
    assert counts == {
        "tokens": count(embeddings.word_embeddings),
        "positions": count(embeddings.position_embeddings),
        "segments": count(embeddings.token_type_embeddings),
        "attention": sum(
            count(x.attention.self) + count(x.attention.output.dense)
            for x in layers
        ),
        "feed_forward": sum(
            count(x.intermediate) + count(x.output.dense) for x in layers
        ),
        "norms": sum(map(count, norms)),
        "pooler": count(theirs.bert.pooler),
        "mlm_head": count(theirs.cls.predictions)
        - count(embeddings.word_embeddings),
        "nsp_head": count(theirs.cls.seq_relationship),
    }
    assert sum(counts.values()) == count(theirs)


def test_pre_layer_norm_has_one_norm_more():
    post, pre = (
        parameter_counts(dataclasses.replace(ODD, layer_norm=norm))
        for norm in ("post", "pre")
    )
    assert pre["norms"] - post["norms"] == 2 * ODD.hidden_size
    assert sum(pre.values()) - sum(post.values()) == 2 * ODD.hidden_size


def test_presets_are_the_papers():
    sizes = {
        name: (c.num_hidden_layers, c.hidden_size, c.num_attention_heads)
        for name, c in PRESETS.items()
    }
    assert sizes == {
        "tiny": (2, 128, 2),
        "mini": (4, 256, 4),
        "small": (4, 512, 8),
        "medium": (8, 512, 8),
        "base": (12, 768, 12),
        "large": (24, 1024, 16),
    }
    assert PRESETS["base"] == BertConfig()
    theirs = transformers.BertConfig()
    for field in dataclasses.fields(BertConfig):
        if hasattr(theirs, field.name):
            assert getattr(theirs, field.name) == field.default
