"""Checkpoints

Loads a published checkpoint into a model, says what it did with every
tensor, and writes a model so that others can load it.

The page: https://bertbook.github.io/bertbook/book/checkpoints.html
"""

# Tangled from book/checkpoints.md (3c59d3e0): change it there and run
# `make tangle`, or change it here and run `make sync`.

__all__ = [
    "CheckpointError",
    "LoadingReport",
    "PreTrainedModel",
    "draw",
]


# %% book/checkpoints.md#the-report 048de005
from dataclasses import dataclass

_SECTIONS = {
    "mismatched": "of another shape or type",
    "untied": "not the copy that it should be, and a tied one is all that "
    "this model can hold",
    "missing": "not in the file, and drawn anew",
    "left_out": "left out, for this model has no place for it",
    "unexpected": "left out, for it means nothing here",
    "vocabulary": "the vocabulary does not fit",
    "renamed": "found under an old name",
    "buffers": "a constant that is no weight, passed over",
    "tied": "a copy, passed over",
    "unused_keys": "said by config.json, and nothing here depends on it",
    "notes": "besides",
}
_FATAL = "mismatched", "untied"
_PROBLEMS = *_FATAL, "missing", "left_out", "unexpected", "vocabulary"


# %% book/checkpoints.md#the-report 2ec139b4
@dataclass(frozen=True)
class LoadingReport:
    """What became of every tensor of a checkpoint, and why.

    All but the first are names, or sentences that begin with one.
    """

    title: str  # which model, from which file
    mismatched: tuple[str, ...] = ()  # this and `untied` always raise
    untied: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # from here on `strict=True` raises
    left_out: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()  # from here on all is well
    buffers: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    unused_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> dict[str, tuple[str, ...]]:
        """What was lost or made up, by the name of the field."""
        found = {name: getattr(self, name) for name in _PROBLEMS}
        return {name: items for name, items in found.items() if items}

    def __str__(self) -> str:
        lines = [self.title]
        for name, sentence in _SECTIONS.items():
            items = getattr(self, name)
            if items:
                lines.append(f"  {sentence} ({len(items)}):")
                lines += [f"    {item}" for item in items[:8]]
            if len(items) > 8:
                lines.append(f"    and {len(items) - 8} more")
        return "\n".join(lines)


class CheckpointError(ValueError):
    """A checkpoint that does not fit; `report` says all that was found."""

    def __init__(self, report: LoadingReport):
        super().__init__(str(report))
        self.report = report


# %% book/checkpoints.md#drawing-weights 57114a92
import torch
from torch import nn


@torch.no_grad()
def draw(module: nn.Module, name: str, std: float) -> None:
    """Draws the parameter `name` of `module` anew.

    Matrices come from a normal distribution cut at two standard deviations
    (the code of Devlin et al. 2019), the row of the padding is zero, and so
    are biases; a LayerNorm starts as the identity.
    """
    parameter = getattr(module, name)
    if name == "bias":
        parameter.zero_()
    elif isinstance(module, nn.LayerNorm):
        parameter.fill_(1.0)
    else:
        nn.init.trunc_normal_(parameter, 0.0, std, -2 * std, 2 * std)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        parameter[module.padding_idx].zero_()


# %% book/checkpoints.md#filling-a-model e9343ead
from functools import reduce

from bertbook.published_names import NamesRead, read_names, stack

_ENCODER = "embeddings.", "encoder.", "pooler."


def _read(tensors, format):
    if format == "published":
        return read_names(tensors)
    parts = {name.removeprefix("bert."): (name,) for name in tensors}
    return NamesRead(parts, {}, (), {}, ())


def _as_in(wanted, parts):
    """`parts` with the `bert.` that a model with a head puts before."""
    inside = any(name.startswith("bert.") for name in wanted)
    return {
        f"bert.{name}" if inside and name.startswith(_ENCODER) else name: at
        for name, at in parts.items()
    }


# %% book/checkpoints.md#filling-a-model 6c3bc9bd
def _misfits(wanted, parts, tensors):
    """One sentence for each tensor that has no place in `wanted`."""
    for ours, names in parts.items():
        rows, *rest = wanted[ours].shape
        expected = rows // len(names), *rest
        for name in names:
            found = tensors[name]
            if not found.is_floating_point():
                kind = str(found.dtype).removeprefix("torch.")
                yield f"{name} holds {kind}, and weights are floating point"
            elif tuple(found.shape) != expected:
                shapes = f"{tuple(found.shape)} there, {expected} here"
                if ours.endswith("embeddings.tokens.weight"):
                    shapes += f" (vocab_size={rows} in the configuration)"
                yield f"{name} is {shapes}"


# %% book/checkpoints.md#filling-a-model 738724a8
def _compare(names, tensors):
    """The copies that equal their originals, and those that do not."""
    tied, untied = [], []
    for copy, original in names.tied.items():
        equal = torch.equal(tensors[copy], tensors[original])
        (tied if equal else untied).append(f"{copy} of {original}")
    return tied, untied


def _sort(wanted, tensors, format, details):
    """What to load, and the report on it."""
    names = _read(tensors, format)
    parts = _as_in(wanted, names.parts)
    here = {ours: at for ours, at in parts.items() if ours in wanted}
    left_out = [
        n for ours in parts if ours not in here for n in parts[ours]
    ]
    tied, untied = _compare(names, tensors)
    if "mlm_head.bias" not in wanted:
        left_out += names.tied
        tied, untied = [], []
    renamed = [f"{old}: {new}" for old, new in names.renamed.items()]
    return here, LoadingReport(
        mismatched=tuple(_misfits(wanted, here, tensors)),
        untied=tuple(untied),
        missing=tuple(name for name in wanted if name not in here),
        left_out=tuple(left_out),
        unexpected=names.unknown,
        renamed=tuple(renamed),
        buffers=names.buffers,
        tied=tuple(tied),
        **details,
    )


# %% book/checkpoints.md#filling-a-model 862173b7
def _fill(model, parts, tensors, dtype, device):
    """Gives `model`, which has shapes only, its numbers."""
    found = [
        tensors[name].dtype for names in parts.values() for name in names
    ]
    dtype = dtype or reduce(torch.promote_types, found)
    loaded = {
        ours: stack([tensors[name] for name in names]).to(device, dtype)
        for ours, names in parts.items()
    }
    model.load_state_dict(loaded, strict=False, assign=True)
    for module in model.modules():
        for name, each in module.named_parameters(recurse=False):
            if each.is_meta:
                new = torch.empty_like(each, device=device, dtype=dtype)
                setattr(module, name, nn.Parameter(new))
                draw(module, name, model.config.initializer_range)


# %% book/checkpoints.md#the-base-class aeb15246
import inspect
import json
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path

from bertbook.checkpoint_files import (
    find_checkpoint,
    read_weights,
    saving,
    write_weights,
)
from bertbook.config import BertConfig, unused_keys


def _options_of(cls, changes):
    """Splits `changes` into those of the configuration and of `cls`."""
    known = {field.name for field in fields(BertConfig)}
    options = {
        name: value
        for name, value in changes.items()
        if name in inspect.signature(cls).parameters and name not in known
    }
    for name in changes:
        if name not in known and name not in options:
            near = get_close_matches(name, known, 1) or ["num_labels"]
            raise TypeError(
                f"{name}={changes[name]!r} is no option of {cls.__name__} "
                f"or of its BertConfig; leave it out, or give {near[0]}="
            )
    return {n: changes[n] for n in changes if n not in options}, options


# %% book/checkpoints.md#the-base-class 17b797bb
def _read_config(folder, changes):
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no config.json, and without it the sizes of "
            "the model are unknown; name a folder that save_pretrained "
            "wrote"
        )
    config = BertConfig.from_json_file(path)
    if "num_labels" in changes:
        changes = {"labels": None} | changes  # the file's are of no use
    unused = unused_keys(json.loads(path.read_text("utf-8")))
    return replace(config, **changes), tuple(unused)


# %% book/checkpoints.md#the-base-class 5ba28fca
from bertbook.tokenizer_files import (
    check_vocab,
    read_tokenizer_json,
    read_vocab,
)


def _check_vocabulary(folder, rows):
    """A problem and a note on the vocabulary beside the weights, if any."""
    form, lines = folder / "tokenizer.json", folder / "vocab.txt"
    path = form if form.exists() else lines
    if not path.exists():
        return {}
    try:
        vocab = (
            read_vocab(path)
            if path is lines
            else (read_tokenizer_json(path)[0])
        )
        check_vocab(vocab, (), rows, path)
    except ValueError as error:
        return {"vocabulary": (str(error),)}
    size = max(vocab.values()) + 1
    if size == rows:
        return {}
    return {"notes": (f"{path}: {size} pieces, for {rows} rows",)}


# %% book/checkpoints.md#the-base-class b473dc10
import logging


def _load(cls, folder, changes, strict, dtype, device):
    changes, options = _options_of(cls, changes)
    config, unused = _read_config(folder, changes)
    with torch.device("meta"):  # shapes without numbers: nothing is drawn
        model = cls(config, **options)
    tensors, format = read_weights(folder)
    details = _check_vocabulary(folder, config.vocab_size) | {
        "title": f"{cls.__name__} from {folder}",
        "unused_keys": unused,
    }
    parts, report = _sort(model.state_dict(), tensors, format, details)
    if report.problems and (strict or report.mismatched or report.untied):
        raise CheckpointError(report)
    _fill(model, parts, tensors, dtype, device or "cpu")
    if report.problems:
        logging.getLogger(__name__).warning(report)
    model.loading_report = report
    return model.eval()


# %% book/checkpoints.md#the-base-class 67b08c9b
from bertbook.published_names import to_published
from bertbook.reproducibility import write_atomically


def _save(model, folder, tokenizer, format, max_shard_size):
    published = format == "published"
    if format not in ("published", "bertbook"):
        raise ValueError(
            f"format={format!r} is not known; give 'published', which "
            "others read, or 'bertbook', which holds every option"
        )
    config = model.config.to_dict(published)
    config["architectures"] = [type(model).__name__]
    tensors = model.state_dict()
    if published:
        tensors = to_published(tensors)
    config["dtype"] = str(next(iter(tensors.values())).dtype)[6:]
    if tokenizer is not None:
        check_vocab(tokenizer.get_vocab(), (), model.config.vocab_size)
    with saving(folder) as new:
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        write_weights(new, tensors, format, max_shard_size)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_atomically(new / "config.json", text)


# %% book/checkpoints.md#the-base-class c6ac703c
class PreTrainedModel(nn.Module):
    """A model that can be drawn, loaded and saved."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.loading_report: LoadingReport | None = None

    def initialise(self) -> None:
        """Draws all weights anew; `draw` says how."""
        for module in self.modules():
            for name, each in module.named_parameters(recurse=False):
                if not each.is_meta:
                    draw(module, name, self.config.initializer_range)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        strict: bool = False,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        **changes,
    ):
        """The model in a folder, or by its name, ready for inference.

        `changes` are fields of the configuration, or options of the class.
        `dtype` None is the file's own. What became of each tensor is in
        `loading_report`, and is logged as a warning if something was lost
        or made up; with `strict` that raises CheckpointError, as a wrong
        shape always does. Raises also what `find_checkpoint`,
        `read_weights` and `BertConfig` raise.
        """
        folder = find_checkpoint(source, revision)
        return _load(cls, folder, changes, strict, dtype, device)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        tokenizer=None,
        format: str = "published",
        max_shard_size: int | str | None = None,
    ) -> None:
        """Writes the model, and a tokenizer, for others to load.

        The files replace those in `folder` all at once. Raises ValueError
        where the format cannot hold the model.
        """
        _save(self, folder, tokenizer, format, max_shard_size)
