"""The published names

Translates between the parameter names of published checkpoints and the
names of this book, in both directions, without changing a number.

The page: https://bertbook.github.io/bertbook/book/published_names.html
"""

# Tangled from book/published_names.md (e4ba8c42): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "BUFFERS",
    "MODULES",
    "NamesRead",
    "TIED",
    "from_published",
    "modern_name",
    "our_name",
    "published_names",
    "read_names",
    "stack",
    "to_published",
]


# %% book/published_names.md#the-table d2d81b4e
import re
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# In a layer, with what stands before it left out:
_IN_A_LAYER = {
    "attention.self.query": "attention.query_key_value",
    "attention.self.key": "attention.query_key_value",
    "attention.self.value": "attention.query_key_value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.expand",
    "output.dense": "feed_forward.contract",
    "output.LayerNorm": "feed_forward_norm",
}


# %% book/published_names.md#the-table 26c2ee28
MODULES = {
    "embeddings.word_embeddings": "embeddings.tokens",
    "embeddings.position_embeddings": "embeddings.positions",
    "embeddings.token_type_embeddings": "embeddings.segments",
    "embeddings.LayerNorm": "embeddings.norm",
    **{
        f"encoder.layer.N.{published}": f"encoder.layers.N.{ours}"
        for published, ours in _IN_A_LAYER.items()
    },
    "pooler.dense": "pooler.dense",
    "cls.predictions.transform.dense": "mlm_head.dense",
    "cls.predictions.transform.LayerNorm": "mlm_head.norm",
    "cls.predictions": "mlm_head",
    "cls.seq_relationship": "nsp_head",
    "classifier": "classifier",
    "qa_outputs": "span_head",
}


# %% book/published_names.md#names-as-they-were-once 70e58ca9
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)*(bert\.)?")
_OLD = {"gamma": "weight", "beta": "bias"}


def modern_name(name: str) -> str:
    """A published name as it is written today, without `bert.` before it.

    Older files call the two parts of a LayerNorm `gamma` and `beta`, and
    wrappers of a model leave `module.` or `_orig_mod.` before each name.
    """
    module, dot, kind = _WRAPPERS.sub("", name).rpartition(".")
    return f"{module}{dot}{_OLD.get(kind, kind)}"


# %% book/published_names.md#names-as-they-were-once d5aee158
_NUMBER = re.compile(r"\.(0|[1-9][0-9]*)\.")


def _look_up(table, name):
    """What `table` says of the module in `name`, with its number put in."""
    module, _, kind = name.rpartition(".")
    number = _NUMBER.search(module)
    module = _NUMBER.sub(".N.", module, count=1)
    found = table.get(module, ())
    if kind not in ("weight", "bias") or (".N." in module) != bool(number):
        return ()
    number = number[0] if number else ".N."
    return tuple(f"{each.replace('.N.', number)}.{kind}" for each in found)


_OURS = {published: (ours,) for published, ours in MODULES.items()}
_PUBLISHED = {
    ours: tuple(each for each in MODULES if MODULES[each] == ours)
    for ours in MODULES.values()
}


# %% book/published_names.md#names-as-they-were-once 59319a2e
def our_name(published: str) -> str | None:
    """The parameter that holds a published one, or holds it as a third.

    No `bert.` stands before it. None where there is no such parameter.
    """
    return next(iter(_look_up(_OURS, modern_name(published))), None)


def published_names(ours: str) -> tuple[str, ...]:
    """The names under which our parameter `ours` is published.

    There are three for a stacked one: its query, key and value rows. A
    `bert.` before the name stays. Raises ValueError where there is none.
    """
    stem = ours.removeprefix("bert.")
    found = _look_up(_PUBLISHED, stem)
    if not found:
        raise ValueError(
            f"{ours} has no name in the published format; save this model "
            "with format='bertbook'"
        )
    return tuple(ours[: len(ours) - len(stem)] + name for name in found)


# %% book/published_names.md#what-a-file-says 2b51dc52
BUFFERS = "embeddings.position_ids", "embeddings.token_type_ids"
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


class NamesRead(NamedTuple):
    """What the names in a published file mean."""

    parts: dict[str, tuple[str, ...]]  # ours: those in the file, stacked
    renamed: dict[str, str]  # of these, as found: as written today
    buffers: tuple[str, ...]  # constants that no longer belong in a file
    tied: dict[str, str]  # a copy: what it should equal
    unknown: tuple[str, ...]  # nothing here, or not all of a stack


# %% book/published_names.md#what-a-file-says 3d6b7c54
def _by_modern_name(names):
    found = {}
    for name in names:
        other = found.setdefault(modern_name(name), name)
        if other != name:
            raise ValueError(
                f"{other} and {name} are two names of one parameter, and "
                "which of them holds its numbers is not said; remove one "
                "from the file"
            )
    return found


# %% book/published_names.md#what-a-file-says 2ae90b10
def read_names(names: Iterable[str]) -> NamesRead:
    """What published `names` mean: each has one place in the answer.

    Raises ValueError where two of them name the same parameter.
    """
    found = _by_modern_name(names)
    parts, renamed, buffers, tied, unknown, here = {}, {}, [], {}, [], {}
    for modern, name in found.items():
        if modern in BUFFERS:
            buffers.append(name)
        elif TIED.get(modern) in found:
            tied[name] = found[TIED[modern]]
        else:  # a copy alone stands for what it copies
            here[TIED.get(modern, modern)] = name
    for modern, name in here.items():
        ours = our_name(modern)
        wanted = published_names(ours) if ours else ()
        if not wanted or not all(each in here for each in wanted):
            unknown.append(name)
            continue
        parts[ours] = tuple(here[each] for each in wanted)
        if name.removeprefix("bert.") != modern:
            renamed[name] = modern
    return NamesRead(parts, renamed, tuple(buffers), tied, tuple(unknown))


# %% book/published_names.md#there-and-back edc6d09e
def stack(tensors: list[Tensor]) -> Tensor:
    """The rows of all `tensors`, one after another, in new memory."""
    return tensors[0].clone() if len(tensors) == 1 else torch.cat(tensors)


def from_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors by our names, without `bert.` before them.

    What has no name here is left out; `read_names` tells what that is.
    """
    parts = read_names(tensors).parts
    return {
        ours: stack([tensors[name] for name in names])
        for ours, names in parts.items()
    }


def to_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors by their published names; a `bert.` stays.

    Raises ValueError for a parameter that the format has no name for.
    """
    result = {}
    for ours, tensor in tensors.items():
        names = published_names(ours)
        result.update(zip(names, tensor.chunk(len(names)), strict=True))
    return result
