"""The loading report

Compares a checkpoint with a model before a number moves, and tells what
will become of every tensor: loaded, left out, drawn anew, or refused.

The page: https://bertbook.github.io/bertbook/book/loading_report.html
"""

# Tangled from book/loading_report.md (db31c0b2): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "CheckpointError",
    "LoadingReport",
    "compare",
]


# %% book/loading_report.md#what-can-become-of-a-tensor 0971bde2
_SECTIONS = {
    "mismatched": "not fitting this configuration",
    "untied": "unlike what it should be a copy of; decoders are tied here",
    "missing": "drawn anew, not in the file",
    "left_out": "left out, without a place in this model",
    "unexpected": "left out, without a meaning here",
    "vocabulary": "vocabulary that does not fit",
    "renamed": "under an old name",
    "buffers": "passed over, a constant and no weight",
    "tied": "passed over, a copy",
    "unused_keys": "in config.json, without a meaning here",
    "spare_rows": "vocabulary smaller than the embedding",
}
_PROBLEMS = tuple(_SECTIONS)[:6]
_SHOWN = 8  # of each section


# %% book/loading_report.md#what-can-become-of-a-tensor 7c6a47cb
from dataclasses import dataclass


@dataclass(frozen=True)
class LoadingReport:
    """What became of every tensor of a checkpoint.

    All fields but the first hold names, or sentences that begin with one.
    """

    title: str  # which model, from which checkpoint
    mismatched: tuple[str, ...] = ()  # this and the next always raise
    untied: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # from here on `strict=True` raises
    left_out: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()  # from here on all is well
    buffers: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    unused_keys: tuple[str, ...] = ()
    spare_rows: tuple[str, ...] = ()

    @property
    def problems(self) -> dict[str, tuple[str, ...]]:
        """What does not fit, was lost or made up, by the field's name."""
        found = {name: getattr(self, name) for name in _PROBLEMS}
        return {name: items for name, items in found.items() if items}

    def __str__(self) -> str:
        lines = [self.title]
        for name, sentence in _SECTIONS.items():
            items = getattr(self, name)
            if items:
                lines.append(f"  {len(items)} {sentence}:")
                lines += [f"    {item}" for item in items[:_SHOWN]]
            if len(items) > _SHOWN:
                lines.append(f"    and {len(items) - _SHOWN} more")
        return "\n".join(lines)


# %% book/loading_report.md#what-can-become-of-a-tensor ed9f9eba
class CheckpointError(ValueError):
    """A checkpoint that does not fit; its `report` says all of it.

    With `nothing`, no tensor of the file is one of the model.
    """

    def __init__(self, report: LoadingReport, nothing: bool = False):
        advice = "leave strict=True out to go on without what is named"
        if nothing:
            advice = (
                "the file shares no name with the model; name a checkpoint "
                "of BERT"
            )
        if report.untied:
            advice = "load it into BertModel, which has no decoder"
        if report.mismatched:
            advice = "give the configuration that it was trained with"
        super().__init__(f"{report}\nNothing is loaded; {advice}")
        self.report = report


# %% book/loading_report.md#comparing b7c3e53b
from torch import Tensor

from bertbook.published_names import NamesRead, read_names

_ENCODER = "embeddings.", "encoder.", "pooler."


def _read(wanted, tensors, format):
    """What the names mean; `bert.` stands before ours as in `wanted`."""
    if format == "published":
        names = read_names(tensors)
    else:
        parts = {name.removeprefix("bert."): (name,) for name in tensors}
        names = NamesRead(parts, {}, (), {}, ())
    inside = any(name.startswith("bert.") for name in wanted)
    placed = {
        f"bert.{name}" if inside and name.startswith(_ENCODER) else name: at
        for name, at in names.parts.items()
    }
    return names._replace(parts=placed)


# %% book/loading_report.md#comparing 45e88a15
def _misfits(wanted, parts, tensors):
    """One sentence for each tensor that does not fit its place."""
    for ours, names in parts.items():
        rows, *rest = wanted[ours].shape
        expected = rows // len(names), *rest
        for name in names:
            found = tensors[name]
            if not found.is_floating_point():
                kind = str(found.dtype).removeprefix("torch.")
                yield f"{name} holds {kind}, and weights are floating point"
            elif tuple(found.shape) != expected:
                shapes = f"{tuple(found.shape)}, and {expected} is expected"
                if ours.endswith("embeddings.tokens.weight"):
                    shapes += f", for vocab_size={rows}"
                yield f"{name} is {shapes}"


# %% book/loading_report.md#comparing 80bded9c
import torch


def _compare_copies(wanted, tied, tensors):
    """The copies that are, those that are not, and those without use."""
    same, other, useless = [], [], []
    for copy, original in tied.items():
        if "mlm_head.bias" not in wanted:
            useless.append(copy)
        elif torch.equal(tensors[copy], tensors[original]):
            same.append(f"{copy} of {original}")
        else:
            other.append(f"{copy} from {original}")
    return tuple(same), tuple(other), tuple(useless)


# %% book/loading_report.md#comparing c14c7761
def compare(
    wanted: dict[str, Tensor],
    tensors: dict[str, Tensor],
    format: str = "published",
    fresh: tuple[str, ...] = (),
    **details,
) -> tuple[dict[str, tuple[str, ...]], LoadingReport]:
    """Which tensors of a file make which parameter, and the report.

    `wanted` is the model's `state_dict`, of which only names and shapes
    count. Names there that begin with one of `fresh` are not loaded.
    `details` are further fields of the report.
    """
    names = _read(wanted, tensors, format)
    parts = {
        ours: at
        for ours, at in names.parts.items()
        if ours in wanted and not ours.startswith(fresh)
    }
    same, other, useless = _compare_copies(wanted, names.tied, tensors)
    left_out = [at for o, at in names.parts.items() if o not in parts]
    return parts, LoadingReport(
        mismatched=tuple(_misfits(wanted, parts, tensors)),
        untied=other,
        missing=tuple(name for name in wanted if name not in parts),
        left_out=tuple(name for at in left_out for name in at) + useless,
        unexpected=names.unknown,
        renamed=tuple(f"{a}: now {b}" for a, b in names.renamed.items()),
        buffers=names.buffers,
        tied=same,
        **details,
    )
