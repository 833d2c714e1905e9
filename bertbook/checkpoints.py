"""Checkpoints

Loads a published checkpoint into a model, says what became of every tensor,
and writes a model so that others can load it.

The page: https://bertbook.github.io/bertbook/book/checkpoints.html
"""

# Tangled from book/checkpoints.md (1ebbbc54): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "PreTrainedModel",
    "draw",
]


# %% book/checkpoints.md#fresh-weights a009969c
import math

import torch
from torch import nn


def _draw_cut_normal(parameter, std):
    inside = math.erf(math.sqrt(2))
    exact = torch.promote_types(parameter.dtype, torch.float32)
    drawn = torch.empty_like(parameter, dtype=exact)
    drawn.uniform_(-inside, inside).erfinv_().mul_(math.sqrt(2) * std)
    parameter.copy_(drawn.clamp_(-2 * std, 2 * std))  # it may round up


# %% book/checkpoints.md#fresh-weights bed05d39
@torch.no_grad()
def draw(module: nn.Module, name: str, std: float) -> None:
    """Draws the parameter `name` of `module` anew.

    Matrices come from a normal distribution cut at two standard deviations
    (the code of Devlin et al., 2019). Biases are zero, and so is the row
    of the padding; a LayerNorm starts as the identity.
    """
    parameter = getattr(module, name)
    if name == "bias":
        parameter.zero_()
    elif isinstance(module, nn.LayerNorm):
        parameter.fill_(1.0)
    else:
        _draw_cut_normal(parameter, std)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        parameter[module.padding_idx].zero_()


# %% book/checkpoints.md#filling a46d4609
from functools import reduce

from bertbook.published_names import stack


def _fill(model, parts, tensors, dtype, device):
    """Gives `model`, which has shapes only, its numbers."""
    found = [tensors[name].dtype for at in parts.values() for name in at]
    dtype = dtype or reduce(torch.promote_types, found)
    loaded = {
        ours: stack([tensors[name] for name in at]).to(device, dtype)
        for ours, at in parts.items()
    }
    model.load_state_dict(loaded, strict=False, assign=True)
    for module in model.modules():
        for name, each in module.named_parameters(recurse=False):
            if each.is_meta:
                new = torch.empty_like(each, device=device, dtype=dtype)
                setattr(module, name, nn.Parameter(new))
                draw(module, name, model.config.initializer_range)
    for name, each in model.named_buffers():
        if each.is_meta:
            raise ValueError(
                f"{name} is a buffer, and no file holds it; compute it in "
                "forward, or make it a parameter"
            )


# %% book/checkpoints.md#filling 85ab808f
import inspect
from dataclasses import fields, replace
from difflib import get_close_matches

from bertbook.config import BertConfig


def _split(cls, changes):
    """`changes` in two: those of the configuration and those of `cls`."""
    known = {field.name for field in fields(BertConfig)}
    own = inspect.signature(cls).parameters.keys() - known - {"config"}
    for name in changes.keys() - known - own:
        names = ["dtype", "device", "revision", "strict", *known, *own]
        near = get_close_matches(name, names, 1)
        hint = "".join(f", or give {each}=" for each in near)
        raise TypeError(
            f"{name}={changes[name]!r} is no option of {cls.__name__} nor "
            f"a field of BertConfig; leave it out{hint}"
        )
    return (
        {name: changes[name] for name in changes.keys() & known},
        {name: changes[name] for name in changes.keys() & own},
    )


# %% book/checkpoints.md#filling 22105ebd
def _changed(config, changes):
    """The changed configuration, and which parameters it makes useless."""
    labels = changes.get("num_labels", config.num_labels)
    if labels == config.num_labels:
        return replace(config, **changes), ()
    # The names of the old labels are of no use either.
    return replace(config, **{"labels": None} | changes), ("classifier.",)


# %% book/checkpoints.md#filling 0faf7a8b
from bertbook.checkpoint_files import (
    check_vocabulary,
    find_checkpoint,
    read_configuration,
    read_weights,
)


def _look_at_vocabulary(folder, rows):
    """What the report says of the vocabulary beside the weights."""
    try:
        spare = check_vocabulary(folder, rows)
    except ValueError as error:
        return {"vocabulary": (str(error),)}
    return {"spare_rows": (spare,)} if spare else {}


def _check_type(dtype):
    if dtype is not None and not getattr(dtype, "is_floating_point", False):
        raise TypeError(
            f"dtype={dtype!r} is no floating point type of PyTorch; give "
            "one such as torch.bfloat16, or None for the file's own"
        )


# %% book/checkpoints.md#filling 7bbf4ccc
import logging

from bertbook.loading_report import CheckpointError, LoadingReport, compare


def _load(cls, source, revision, strict, dtype, device, changes):
    _check_type(dtype)
    folder = find_checkpoint(source, revision)
    changes, options = _split(cls, changes)
    config, unused = read_configuration(folder)
    config, useless = _changed(config, changes)
    with torch.device("meta"):
        model = cls(config, **options)
    tensors, format = read_weights(folder)
    wanted, title = model.state_dict(), f"{cls.__name__} from {source}"
    details = _look_at_vocabulary(folder, config.vocab_size)
    details |= {"title": title, "unused_keys": tuple(unused)}
    parts, report = compare(wanted, tensors, format, useless, **details)
    stop = strict or report.mismatched or report.untied or not parts
    if report.problems and stop:
        raise CheckpointError(report, nothing=not parts)
    _fill(model, parts, tensors, dtype, device)
    if report.problems:
        logging.getLogger(__name__).warning(report)
    model.loading_report = report
    return model.eval()


# %% book/checkpoints.md#saving d5f9ddf9
import json

from bertbook.checkpoint_files import STEMS, saving, write_weights
from bertbook.published_names import to_published
from bertbook.reproducibility import write_atomically
from bertbook.tokenizer_files import check_vocab


def _save(model, folder, tokenizer, format, max_shard_size):
    if format not in STEMS:
        raise ValueError(
            f"format={format!r} is not known; give 'published', which "
            "others read, or 'bertbook', which holds every option"
        )
    published = format == "published"
    config = model.config.to_dict(published)
    config["architectures"] = [type(model).__name__]
    tensors = model.state_dict()
    if published:
        tensors = to_published(tensors)
    kinds = (each.dtype for each in tensors.values())
    kind = reduce(torch.promote_types, kinds)
    config["dtype"] = str(kind).removeprefix("torch.")
    if tokenizer is not None:
        check_vocab(tokenizer.get_vocab(), (), model.config.vocab_size)
    with saving(folder) as new:
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        write_weights(new, tensors, format, max_shard_size)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        write_atomically(new / "config.json", text)


# %% book/checkpoints.md#the-base-class b225ef01
from pathlib import Path


def _initialise(model):
    for module in model.modules():
        for name, each in module.named_parameters(recurse=False):
            if not each.is_meta:
                draw(module, name, model.config.initializer_range)


# %% book/checkpoints.md#the-base-class b4d6e46f
class PreTrainedModel(nn.Module):
    """A model that can be drawn, loaded and saved."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.loading_report: LoadingReport | None = None

    def initialise(self) -> None:
        """Draws all weights anew; `draw` says how."""
        _initialise(self)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        strict: bool = False,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        **changes,
    ) -> "PreTrainedModel":
        """The model in a folder, or by its name, ready for inference.

        `changes` are fields of its configuration, or options of the class;
        `dtype` None is the file's own. `loading_report` says what became of
        each tensor, and is logged as a warning where something was lost or
        made up. There `strict` raises CheckpointError, as what does not fit
        always does. Raises also what `find_checkpoint`, `read_weights` and
        `BertConfig` raise.
        """
        return _load(cls, source, revision, strict, dtype, device, changes)

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
        where the format cannot hold the model, or the model the tokenizer.
        """
        _save(self, folder, tokenizer, format, max_shard_size)
