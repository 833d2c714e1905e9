"""The size of a model

Holds every number that fixes a BERT, refuses with a sentence those that
cannot work, and reads and writes the published config.json.

The page: https://bertbook.github.io/bertbook/book/config.html
"""

# Tangled from book/config.md (8d5e8eeb): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "BertConfig",
    "PRESETS",
    "parameter_counts",
    "unused_keys",
]


# %% book/config.md#the-numbers 540237a4
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

from bertbook.reproducibility import write_atomically
from bertbook.tokenizer_files import read_object


@dataclass(frozen=True)
class _Published:
    """The fields that the published format holds."""

    vocab_size: int = 30522
    hidden_size: int = 768  # H
    num_hidden_layers: int = 12  # L
    num_attention_heads: int = 12  # A
    intermediate_size: int = 3072  # 4H in the paper
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    num_labels: int = 2
    labels: tuple[str, ...] | None = None  # None: LABEL_0, LABEL_1, ...
    problem_type: str | None = None  # None: guessed from the labels


# %% book/config.md#numbers-that-cannot-work 8480c8a7
def _check_type(name, value, types, wanted) -> None:
    kind = type(value)  # exactly: to isinstance, True is an int
    if kind not in types:
        raise TypeError(
            f"{name}={value!r} is of type {kind.__name__}; give {wanted}"
        )


# %% book/config.md#numbers-that-cannot-work 96c95694
def _check_sizes(config: _Published) -> None:
    """Sizes are whole numbers in bounds, and each head gets its share."""
    sizes = [field for field in fields(config) if field.type is int]
    for name, usual in ((size.name, size.default) for size in sizes):
        value = getattr(config, name)
        _check_type(name, value, (int,), f"a whole number such as {usual}")
        most = 1000 if name == "num_hidden_layers" else 2**20
        if not 1 <= value <= most:
            raise ValueError(
                f"{name}={value}, and it is from 1 to {most:,} in every "
                f"BERT; give a whole number such as {usual}"
            )
    size, heads = config.hidden_size, config.num_attention_heads
    if size % heads:
        below = size // heads * heads
        fits = [n for n in range(1, size + 1) if size % n == 0]
        near = min(fits, key=lambda n: abs(n - heads))
        sizes = f"{below} or {below + heads}" if below else f"{heads}"
        raise ValueError(
            f"hidden_size={size} cannot be shared equally by "
            f"num_attention_heads={heads}; give hidden_size={sizes}, or "
            f"num_attention_heads={near}"
        )


# %% book/config.md#numbers-that-cannot-work d36d261a
def _check_rates(config: _Published) -> None:
    """Probabilities lie in [0, 1); the other two are small and positive."""
    names = ["hidden_dropout_prob", "attention_probs_dropout_prob"]
    if config.classifier_dropout is not None:
        names.append("classifier_dropout")
    for name in names:
        value = getattr(config, name)
        _check_type(name, value, (int, float), "a number such as 0.1")
        if not 0 <= value < 1:
            raise ValueError(
                f"{name}={value}, and a dropout probability is at least 0 "
                "and below 1; give 0.1, or 0.0 for no dropout"
            )
    for name in "initializer_range", "layer_norm_eps":
        value, usual = getattr(config, name), getattr(_Published, name)
        _check_type(name, value, (float,), f"a float such as {usual}")
        if not 0 < value < math.inf:
            raise ValueError(
                f"{name}={value}, and it must be positive and finite; give "
                f"a small number such as {usual}"
            )


# %% book/config.md#numbers-that-cannot-work f3cb9693
_KINDS = [f"{n}_label_classification" for n in ("single", "multi")]
_CHOICES = {
    "hidden_act": ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu"),
    "problem_type": (None, "regression", *_KINDS),
    "layer_norm": ("post", "pre"),
    "classifier_pooling": ("pooler", "mean"),
    "attn_implementation": ("sdpa", "eager"),
    "remove_padding": (False, True),
    "gradient_checkpointing": (False, True),
}


def _check_choices(config: _Published) -> None:
    for name, known in _CHOICES.items():
        value = getattr(config, name)
        names = " or ".join(map(repr, known))
        _check_type(name, value, map(type, known), names)
        if value not in known:
            raise ValueError(
                f"{name}={value!r} is not known here; give {names}"
            )


# %% book/config.md#numbers-that-cannot-work a160413b
def _check_ids(config: _Published) -> None:  # and the labels
    pad, size = config.pad_token_id, config.vocab_size
    if pad is not None:
        _check_type("pad_token_id", pad, (int,), "an id such as 0, or None")
        if not 0 <= pad < size:
            raise ValueError(
                f"pad_token_id={pad} is outside the vocabulary, whose ids "
                f"are 0 to {size - 1}; give the id of [PAD], or None"
            )
    labels, count = config.labels, config.num_labels
    if labels is not None:
        _check_labels(labels, count)
    single = config.problem_type == "single_label_classification"
    if single and count == 1:
        raise ValueError(
            "problem_type='single_label_classification' with num_labels=1 "
            "leaves nothing to choose; give num_labels=2, or "
            "problem_type='regression'"
        )


def _default_labels(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{index}" for index in range(count))


def _check_labels(labels, count: int) -> None:
    _check_type("labels", labels, (tuple,), "a tuple of names, or None")
    for label in labels:
        _check_type("a label", label, (str,), "its name, in quotes")
    if len(labels) != count:
        raise ValueError(
            f"labels={labels!r} has {len(labels)} names, and num_labels="
            f"{count}; give as many names as labels"
        )
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ValueError(
            f"labels={labels!r} names {twice[0]!r} twice, and a name "
            "stands for one label; rename one of the two"
        )


# %% book/config.md#the-configuration 5c7adce3
@dataclass(frozen=True)
class BertConfig(_Published):
    """Everything that fixes a BERT but its weights (BERT, section 3).

    Raises ValueError or TypeError where a value is wrong, alone or beside
    another one. `dataclasses.replace` gives a changed copy.
    """

    layer_norm: str = "post"  # or "pre"
    classifier_pooling: str = "pooler"  # or "mean", without parameters
    attn_implementation: str = "sdpa"  # or "eager", the explicit formula
    remove_padding: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self):
        for check in _check_sizes, _check_rates, _check_choices, _check_ids:
            check(self)

    @property
    def id2label(self) -> dict[int, str]:
        """The name of each label."""
        names = self.labels or _default_labels(self.num_labels)
        return dict(enumerate(names))

    @property
    def is_published(self) -> bool:
        """Whether the published format can hold it."""
        return all(getattr(self, k) == v for k, v in _PAPER.items())

    @classmethod
    def from_dict(cls, data: dict) -> "BertConfig":
        """From the published format or from this book's. ValueError names
        the key and the value that this book cannot hold."""
        return cls(**_from_dict(data))

    def to_dict(self, published: bool = True) -> dict:
        """In the published format, which raises ValueError where it is not
        `is_published`, or in this book's, which holds every field."""
        return _to_dict(self, published)

    @classmethod
    def from_json_file(cls, path: str | Path) -> "BertConfig":
        """As `from_dict`, from a `config.json`; ValueError names it."""
        return _from_json_file(cls, path)

    def to_json_file(self, path: str | Path, published: bool = True):
        """As `to_dict`, to a `config.json`, whole or not at all."""
        text = json.dumps(self.to_dict(published), indent=2)
        write_atomically(path, text + "\n")


# %% book/config.md#the-published-format 2329a6c2
# What the paper's BERT has, and the published format takes for granted.
_PAPER = {"layer_norm": "post", "classifier_pooling": "pooler"}


def _to_dict(config, published: bool) -> dict:
    for name, only in _PAPER.items() if published else ():
        value = getattr(config, name)
        if value != only:
            raise ValueError(
                f"{name}={value!r} has no place in the published format, "
                f"where it would be read as {only!r}; write this book's "
                "own, by to_dict(published=False) or "
                "save_pretrained(format='bertbook')"
            )
    data = {
        "model_type": "bert" if published else "bertbook",
        "position_embedding_type": "absolute",
        "id2label": config.id2label,
        "label2id": {name: i for i, name in config.id2label.items()},
    }
    for field in fields(_Published if published else config):
        if field.name not in ("num_labels", "labels"):
            data[field.name] = getattr(config, field.name)
    return data


def _from_json_file(cls, path):
    data = read_object(path)
    try:
        return cls.from_dict(data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


# %% book/config.md#the-published-format 942ee3af
_FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_word_embeddings": True,
    "pruned_heads": {},
    "quantization_config": {},
}


def _refuse_what_we_cannot_hold(data: dict) -> None:
    kind = data.get("model_type") or "bert"
    if kind not in ("bert", "bertbook"):
        raise ValueError(
            f"model_type={kind!r} is another architecture than 'bert', the "
            "one this book builds; choose a BERT checkpoint, or load this "
            "one with transformers.AutoModel"
        )
    fixed = _FIXED | (_PAPER if kind == "bert" else {})
    for key, only in fixed.items():
        value = data.get(key)
        if value is not None and value != only:
            raise ValueError(
                f"{key}={value!r} cannot be built here, where {key} is "
                f"always {only!r} for model_type={kind!r}; load this "
                "checkpoint with transformers, or choose another"
            )


# %% book/config.md#the-published-format 98f0d1ef
def _read_labels(data: dict) -> dict:
    """`num_labels` and `labels` from the published id2label, label2id."""
    named, numbered = data.get("id2label"), data.get("label2id")
    for key, value in ("id2label", named), ("label2id", numbered):
        if value is not None:
            _check_type(key, value, (dict,), "a JSON object")
    if named is None and numbered:
        named = {index: name for name, index in numbered.items()}
    if named is None:
        return {"num_labels": data.get("num_labels", 2), "labels": None}
    # JSON makes the numbers strings.
    named = {str(index): name for index, name in named.items()}
    if set(named) != {str(index) for index in range(len(named))}:
        raise ValueError(
            f"id2label numbers its labels {', '.join(named)}, and they are "
            "0, 1, 2 and so on without a gap; number them again"
        )
    labels = tuple(named[str(index)] for index in range(len(named)))
    _check_labels(labels, len(labels))
    usual = _default_labels(len(labels))
    inverse = {name: index for index, name in enumerate(labels)}
    if numbered and numbered != inverse and set(numbered) != set(usual):
        raise ValueError(
            f"label2id={numbered!r} contradicts id2label={inverse!r} read "
            "backwards; make one the inverse of the other"
        )
    count = data.get("num_labels", len(labels))
    unnamed = labels == usual and count == len(labels)
    return {"num_labels": count, "labels": None if unnamed else labels}


# %% book/config.md#the-published-format 4fb7499a
_BOOKKEEPING = """_name_or_path architectures bos_token_id
chunk_size_feed_forward dtype eos_token_id gradient_checkpointing id2label
label2id model_type output_attentions output_hidden_states return_dict
torch_dtype torchscript transformers_version use_cache""".split()


def _fields_of(data: dict) -> set[str]:
    """The fields that `data` may give; only our own format has all."""
    ours = data.get("model_type") == "bertbook"
    held = fields(BertConfig if ours else _Published)
    return {field.name for field in held} - {"labels"}


def unused_keys(data: dict) -> list[str]:
    """The keys of a configuration that say nothing to this book."""
    known = _fields_of(data).union(_BOOKKEEPING, _FIXED)
    return [key for key in data if key not in known]


def _from_dict(data: dict) -> dict:
    _check_type("a configuration", data, (dict,), "a dict")
    _refuse_what_we_cannot_hold(data)
    values = {key: data[key] for key in _fields_of(data) if key in data}
    return values | _read_labels(data)


# %% book/config.md#the-papers-sizes 9104b44e
def _size(layers: int, hidden: int) -> BertConfig:
    return BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )


# Turc et al. (2019), table 1; base and large: BERT, section 3.
PRESETS = {
    "tiny": _size(2, 128),
    "mini": _size(4, 256),
    "small": _size(4, 512),
    "medium": _size(8, 512),
    "base": _size(12, 768),
    "large": _size(24, 1024),
}


# %% book/config.md#counting-parameters 8419a605
def parameter_counts(config: BertConfig) -> dict[str, int]:
    """How many parameters each component of a BERT holds.

    Heads come on top where a model has them; the matrix of the MLM head is
    that of the tokens and is not counted again.
    """
    size, layers = config.hidden_size, config.num_hidden_layers
    inner, norm, linear = config.intermediate_size, 2 * size, size**2 + size
    norms = 1 + 2 * layers + (config.layer_norm == "pre")  # one more
    return {
        "tokens": config.vocab_size * size,
        "positions": config.max_position_embeddings * size,
        "segments": config.type_vocab_size * size,
        "attention": layers * 4 * linear,
        "feed_forward": layers * (2 * size * inner + inner + size),
        "norms": norms * norm,
        "pooler": linear * (config.classifier_pooling == "pooler"),
        "mlm_head": linear + norm + config.vocab_size,
        "nsp_head": 2 * size + 2,
    }
