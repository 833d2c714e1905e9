"""The options of a run

Turns the words of a command line into the settings of a pretraining run:
each option is a field, and its default is the field's.

The page: https://bertbook.github.io/bertbook/book/run_options.html
"""

# Tangled from book/run_options.md (06149604): change it there and run
# `make tangle`, or change it here and run `make sync`.

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


# %% book/run_options.md#an-option-is-a-field fb2b50b7
import json
from argparse import SUPPRESS, ArgumentParser, Namespace

_OPTIONS = {
    "the model": (
        ("--layer-norm", "model.layer_norm", "post, or pre"),
        ("--initial", "initial", "folder of a model to go on from"),
    ),
    "the task": (
        ("--objective", "objective", "mlm, mlm+nsp or mlm+sop"),
        ("--seq-length", "seq_length", "pieces in a row"),
        ("--masking", "masking.unit", "hidden together: piece, word, span"),
    ),
    "a step": (
        ("--batch-size", "batch_size", "rows, over all processes"),
        ("--accumulation", "accumulation", "parts that it comes in"),
        ("--optimizer", "optimization.optimizer", "muon, adamw, bert_adam"),
        ("--learning-rate", "optimization.learning_rate", "AdamW's peak"),
        (
            "--muon-learning-rate",
            "optimization.muon_learning_rate",
            "Muon's peak",
        ),
        ("--warmup", "optimization.warmup", "share with a rising rate"),
        ("--dtype", "dtype", "of products: bfloat16 or float32"),
        ("--compile", "compiled", "by torch.compile"),
    ),
    "the run": (
        ("--seed", "seed", "of everything random"),
        ("--evaluate-every", "evaluate_every", "steps"),
        ("--patience", "patience", "evaluations without progress: an end"),
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


# %% book/run_options.md#an-option-is-a-field 43a653d8
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
        usual = "none" if value in (None, "") else value
        part.add_argument(flag, help=f"{text} (default: {usual})", **how)
    return part


# %% book/run_options.md#an-option-is-a-field 496bc728
def _default(function, name):
    """What a function takes for an argument that is not given."""
    from inspect import signature

    return signature(function).parameters[name].default


# %% book/run_options.md#an-option-is-a-field a4fd2d94
def _add_text(parser):
    from bertbook.corpora import SOURCES
    from bertbook.pretraining_text import learn_tokenizer, prepare_text

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
        type=int,
        metavar="N",
        help=f"pieces to learn from the text (default: {usual})",
    )
    which.add_argument(
        "--vocabulary", metavar="FILE", help="a vocab.txt, or its folder"
    )
    part.add_argument(
        "--workers",
        type=int,
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


# %% book/run_options.md#an-option-is-a-field 1536dd57
def _add_length(parser):
    length = parser.add_argument_group("the length, one of")
    length = length.add_mutually_exclusive_group()
    for name, kind in ("steps", int), ("tokens", int), ("minutes", float):
        length.add_argument(
            f"--{name}",
            dest=f"length.{name}",
            default=SUPPRESS,
            type=kind,
            metavar="N" if kind is int else "X",
        )


# %% book/run_options.md#an-option-is-a-field ef106ccf
def _add_folder(parser):
    from bertbook.pretraining import pretrain

    part = parser.add_argument_group("the folder")
    part.add_argument(
        "--out", required=True, metavar="FOLDER", help="where all goes"
    )
    part.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in FOLDER, with its text and its settings",
    )
    part.add_argument(
        "--save-every",
        type=int,
        default=_default(pretrain, "save_every"),
        metavar="N",
        help="steps (default: %(default)s)",
    )
    part.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="cpu or cuda (default: cuda where there is one)",
    )
    part.add_argument(
        "--quiet", action="store_true", help="no progress on stderr"
    )


# %% book/run_options.md#an-option-is-a-field 16cc1d96
_EXAMPLE = (
    "Example: %(prog)s --corpus imdb --preset mini --minutes 10 --out "
    "runs/mini"
)


def _rates(text):
    """Two rates of "0.3,0.15"; one number counts twice."""
    first, _, last = text.partition(",")
    return float(first), float(last or first)


# %% book/run_options.md#an-option-is-a-field 580ca8d0
def add_pretrain_arguments(parser: ArgumentParser) -> None:
    """Add all options of `pretrain`, in groups."""
    parser.epilog, defaults = _EXAMPLE, default_settings()
    for add in _add_folder, _add_text, _add_length, _add_sizes:
        add(parser)
    parts = {name: add_fields(parser, name, defaults) for name in _OPTIONS}
    first, last = defaults["masking"]["rate"], defaults["last_rate"]
    parts["the task"].add_argument(
        "--mask-rate",
        type=_rates,
        default=SUPPRESS,
        metavar="X,X",
        help=f"first and last (default: {first},{last})",
    )
    usual = defaults["model"]["hidden_dropout_prob"]
    parts["the model"].add_argument(
        "--dropout",
        type=float,
        default=SUPPRESS,
        metavar="X",
        help=f"everywhere (default: {usual})",
    )


# %% book/run_options.md#from-words-to-settings d9aacb1f
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
        try:
            model = asdict(BertConfig.from_json_file(options.config))
        except TypeError as error:
            raise ValueError(str(error)) from None
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


# %% book/run_options.md#from-words-to-settings 821af769
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
    return data | ({"length": length} if length else {})
