"""The options of a run

Turns the words of a command line into the settings of a pretraining run:
each option is a field, and its default is the field's.

The page: https://bertbook.github.io/bertbook/book/run_options.html
"""

# Tangled from book/run_options.md (17308dfb): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "PRESET",
    "add_fields",
    "add_pretrain_arguments",
    "chosen_settings",
    "default_settings",
    "field_of",
    "given_fields",
    "set_field",
    "settings_from",
]


# %% book/run_options.md#an-option-is-a-field 33870aeb
import json
from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
)

_OPTIONS = {
    "the model": (
        (
            "--layer-norm",
            "model.layer_norm",
            "where it stands: post or pre",
        ),
        ("--initial", "initial", "folder of a trained model to go on from"),
    ),
    "the task": (
        ("--objective", "objective", "mlm, mlm+nsp or mlm+sop"),
        ("--seq-length", "seq_length", "pieces in a row"),
        (
            "--masking",
            "masking.unit",
            "hidden together: piece, word or span",
        ),
    ),
}


# %% book/run_options.md#an-option-is-a-field b9643ff7
_OPTIONS |= {
    "a step": (
        (
            "--batch-size",
            "batch_size",
            "rows in a step, over all processes",
        ),
        (
            "--accumulation",
            "accumulation",
            "parts in which a batch is computed",
        ),
        (
            "--optimizer",
            "optimization.optimizer",
            "muon, adamw or bert_adam",
        ),
        (
            "--learning-rate",
            "optimization.learning_rate",
            "AdamW's highest",
        ),
        (
            "--muon-learning-rate",
            "optimization.muon_learning_rate",
            "Muon's highest",
        ),
        (
            "--warmup",
            "optimization.warmup",
            "share of the run in which rates rise",
        ),
        ("--dtype", "dtype", "matrix products: bfloat16 or float32"),
        ("--compile", "compiled", "compile the model by torch.compile"),
    ),
    "the run": (
        ("--seed", "seed", "decides weights, order and masks"),
        ("--evaluate-every", "evaluate_every", "steps between evaluations"),
        (
            "--patience",
            "patience",
            "end after N evaluations without progress",
        ),
    ),
}
_FIELDS = {field for rows in _OPTIONS.values() for _, field, _ in rows}


# %% book/run_options.md#an-option-is-a-field b508621e
def field_of(data: dict, name: str):
    """The value of a field in nested dicts: "optimization.warmup"."""
    for part in name.split("."):
        data = data[part]
    return data


def set_field(data: dict, name: str, value) -> None:
    """Change one field in nested dicts."""
    *path, last = name.split(".")
    for part in path:
        data = data[part]
    if last not in data:
        raise KeyError(name)
    data[last] = value


# %% book/run_options.md#an-option-is-a-field c3049e0d
PRESET = "mini"


def default_settings() -> dict:
    """The settings of a run, as `run.json` holds them, without a length."""
    from bertbook.objectives import Pretraining
    from bertbook.optimization import Length
    from bertbook.run_folder import settings_of, small_budget

    model = small_budget(PRESET, vocab_size=1)  # the text will tell
    settings = settings_of(Pretraining(model, Length(steps=1)))
    return settings | {"length": {}}


# %% book/run_options.md#an-option-is-a-field e7be141e
def settings_from(data: dict):
    """The `Pretraining` that `settings_of` made `data` of."""
    from bertbook.config import BertConfig
    from bertbook.masking import Masking
    from bertbook.objectives import Pretraining
    from bertbook.optimization import Length, Optimization

    kinds = {"model": BertConfig, "length": Length}
    kinds |= {"masking": Masking, "optimization": Optimization}
    parts = {
        part: kind(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in data[part].items()
            }
        )
        for part, kind in kinds.items()
    }
    return Pretraining(**data | parts)


# %% book/run_options.md#an-option-is-a-field a9eaf768
def add_fields(parser: ArgumentParser, group: str, defaults: dict):
    """Add a group of options that set fields, and return the group."""
    part = parser.add_argument_group(group)
    for flag, field, text in _OPTIONS[group]:
        value = field_of(defaults, field)
        how = {"dest": field, "default": SUPPRESS}
        if isinstance(value, bool):
            part.add_argument(flag, action="store_true", help=text, **how)
            continue
        how["type"] = int if value is None else type(value)
        how["metavar"] = {int: "N", float: "X", str: "NAME"}[how["type"]]
        if value not in (None, ""):
            text += f" (default: {value})"
        part.add_argument(flag, help=text, **how)
    return part


# %% book/run_options.md#an-option-is-a-field 5df982ce
def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r}; give a whole number from 1 on")
    return int(text)


def _default(function, name):
    """What a function takes for an argument that is not given."""
    from inspect import signature

    return signature(function).parameters[name].default


# %% book/run_options.md#an-option-is-a-field 88eb6974
def _add_text(parser):
    from bertbook.pretraining_text import learn_tokenizer, prepare_text
    from bertbook.sources import SOURCES

    usual = _default(learn_tokenizer, "vocab_size")
    part = parser.add_argument_group("the text")
    part.add_argument(
        "--corpus",
        metavar="TEXT",
        help=f"{', '.join(SOURCES)}; a text file, in which a blank line "
        "ends a document; a folder of such files; or a name on the hub",
    )
    which = part.add_mutually_exclusive_group()
    which.add_argument(
        "--vocab-size",
        type=_positive,
        metavar="N",
        help=f"pieces to learn from the text (default: {usual})",
    )
    which.add_argument(
        "--vocabulary", metavar="FILE", help="a vocab.txt, or its folder"
    )
    part.add_argument(
        "--workers",
        type=_positive,
        default=_default(prepare_text, "workers"),
        metavar="N",
        help="processes that tokenise (default: %(default)s)",
    )


# %% book/run_options.md#an-option-is-a-field d2049b2c
def _add_sizes(parser):
    from bertbook.config import PRESETS

    size = parser.add_argument_group("the size")
    size = size.add_mutually_exclusive_group()
    size.add_argument(
        "--preset",
        choices=PRESETS,
        metavar="NAME",
        help=f"{', '.join(PRESETS)} (default: {PRESET})",
    )
    size.add_argument(
        "--config", metavar="FILE", help="a config.json with all sizes"
    )


# %% book/run_options.md#an-option-is-a-field 12bbdabe
def _add_length(parser):
    length = parser.add_argument_group("the length, one of")
    length = length.add_mutually_exclusive_group()
    for unit, kind, text in (
        ("steps", int, "batches learned from"),
        ("tokens", int, "pieces in these batches"),
        ("minutes", float, "by the clock; pauses do not count"),
    ):
        length.add_argument(
            f"--{unit}",
            dest=f"length.{unit}",
            default=SUPPRESS,
            type=kind,
            metavar="N" if kind is int else "X",
            help=text,
        )


# %% book/run_options.md#an-option-is-a-field 04b1fd9a
def _add_folder(parser):
    from bertbook.pretraining import pretrain

    part = parser.add_argument_group("the folder")
    part.add_argument(
        "--out",
        required=True,
        metavar="FOLDER",
        help="the run: model, log, states, text",
    )
    part.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in FOLDER; all else is known",
    )
    part.add_argument(
        "--save-every",
        type=_positive,
        default=_default(pretrain, "save_every"),
        metavar="N",
        help="steps between states to continue from (default: %(default)s)",
    )
    part.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="where to compute (default: cuda where there is one)",
    )
    part.add_argument(
        "--quiet", action="store_true", help="no progress on stderr"
    )


# %% book/run_options.md#an-option-is-a-field fc7535e9
_USAGE = """%(prog)s --corpus TEXT --minutes X --out FOLDER [OPTION ...]
       %(prog)s --resume --out FOLDER [OPTION ...]"""
_EXAMPLE = """for example:
  %(prog)s --corpus imdb --preset mini --minutes 10 \\
      --out runs/mini"""


def _rates(text):
    first, _, last = text.partition(",")
    try:
        return float(first), float(last or first)
    except ValueError:
        message = f"{text!r}; give a share, or two as in 0.3,0.15"
        raise ArgumentTypeError(message) from None


# %% book/run_options.md#an-option-is-a-field ebd09802
def add_pretrain_arguments(parser: ArgumentParser) -> None:
    """Add all options of `pretrain`, in groups."""
    parser.usage, parser.epilog = _USAGE, _EXAMPLE
    defaults = default_settings()
    for add in _add_text, _add_length, _add_folder, _add_sizes:
        add(parser)
    parts = {name: add_fields(parser, name, defaults) for name in _OPTIONS}
    first, last = defaults["masking"]["rate"], defaults["last_rate"]
    parts["the task"].add_argument(
        "--mask-rate",
        type=_rates,
        default=SUPPRESS,
        metavar="X,X",
        help="share of pieces hidden at the start and at the end "
        f"(default: {first},{last})",
    )
    usual = defaults["model"]["hidden_dropout_prob"]
    parts["the model"].add_argument(
        "--dropout",
        type=float,
        default=SUPPRESS,
        metavar="X",
        help=f"share of values dropped, everywhere (default: {usual})",
    )


# %% book/run_options.md#from-words-to-settings 738cbc36
_SIZES = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size"
).split()


def _sizes(options):
    """The fields of the model that --preset, --config, --initial fix."""
    from dataclasses import asdict

    from bertbook.checkpoint_files import (
        find_checkpoint,
        read_configuration,
    )
    from bertbook.config import PRESETS, BertConfig

    if options.preset:
        model = asdict(PRESETS[options.preset])
        return {name: model[name] for name in _SIZES}
    if options.config:
        model = asdict(BertConfig.from_json_file(options.config))
        del model["vocab_size"]  # the vocabulary's
        return model
    if initial := vars(options).get("initial"):
        return asdict(read_configuration(find_checkpoint(initial))[0])
    return {}


# %% book/run_options.md#from-words-to-settings 81928382
def given_fields(options: Namespace) -> dict:
    """The fields that a line sets, with dots, and their values."""
    given = {f"model.{name}": v for name, v in _sizes(options).items()}
    words = vars(options)
    given |= {name: words[name] for name in _FIELDS & words.keys()}
    if "mask_rate" in words:
        given["masking.rate"], given["last_rate"] = words["mask_rate"]
    if "dropout" in words:
        for name in "hidden_dropout_prob", "attention_probs_dropout_prob":
            given[f"model.{name}"] = words["dropout"]
    return given


# %% book/run_options.md#from-words-to-settings 888ee42a
def chosen_settings(options: Namespace, before: dict) -> dict:
    """The settings `before`, with what a line says of them.

    A length that is given replaces the one before, whatever its unit.
    """
    data = json.loads(json.dumps(before))
    for name, value in given_fields(options).items():
        set_field(data, name, value)
    words = vars(options)
    units = "steps", "tokens", "minutes"
    length = {
        u: words[f"length.{u}"] for u in units if f"length.{u}" in words
    }
    optimizer = data["optimization"]["optimizer"]
    if "optimization.muon_learning_rate" in words and optimizer != "muon":
        raise ValueError(
            f"--muon-learning-rate with {optimizer}; give --learning-rate"
        )
    return data | ({"length": length} if length else {})
