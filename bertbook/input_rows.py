"""Rows for the model

Builds BERT's input rows from pieces: special tokens, segments, truncation
into windows, and padding to one length.

The page: https://bertbook.github.io/bertbook/book/input_rows.html
"""

# Tangled from book/input_rows.md (284287a0): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "RowRules",
    "build_row",
    "build_rows",
    "kept_lengths",
    "pad_row",
    "read_texts",
    "windows",
]


# %% book/input_rows.md#one-row 0f901726
_EDGE = {"offsets": [(0, 0)], "words": [None]}


def _repeat(values, lengths):
    return [v for v, n in zip(values, lengths) for _ in range(n)]


# %% book/input_rows.md#one-row ff9824ee
def build_row(
    first: dict[str, list],
    second: dict[str, list] | None = None,
    cls: list[int] = (),
    sep: list[int] = (),
) -> dict[str, list]:
    """One row of the model's input from the columns of its segments.

    `cls` and `sep` are lists with the ids of the special tokens; empty
    ones leave them out. Devlin et al. (2019), figure 2.
    """
    lengths = [len(cls), len(first["ids"]), len(sep), 0, 0]
    if second is not None:
        lengths[3:] = len(second["ids"]), len(sep)
    row = {}
    for name, column in first.items():
        left, right = list(cls), list(sep)
        if name != "ids":
            left, right = _EDGE[name] * len(cls), _EDGE[name] * len(sep)
        row[name] = left + column + right
        if second is not None:
            row[name] += second[name] + right
    row["types"] = _repeat([0, 0, 0, 1, 1], lengths)
    row["present"] = [1] * sum(lengths)
    row["special"] = _repeat([1, 0, 1, 0, 1], lengths)
    row["segments"] = _repeat([None, 0, None, 1, None], lengths)
    return row


# %% book/input_rows.md#rows-that-are-too-long 234c62d9
def windows(
    length: int, size: int, stride: int = 0, side: str = "right"
) -> list[tuple[int, int]]:
    """Start and end of windows of `size` over `length` pieces.

    Neighbours share `stride` pieces. `side` is where the text goes on:
    "right" begins at its start. Raises ValueError where the windows would
    not move, or would leave something out.
    """
    if stride < 0:
        raise ValueError(
            f"stride={stride} would leave out text between windows; give "
            "the number of pieces that they share, 0 or more"
        )
    if size >= length:
        return [(0, length)]
    if size == 0:
        return [(0, 0), (0, length)]
    if stride >= size:
        raise ValueError(
            f"stride={stride} does not fit windows of {size} pieces, which "
            "would not move; choose a smaller stride or a larger max_length"
        )
    if side == "left":
        mirrored = windows(length, size, stride)
        return [(length - end, length - start) for start, end in mirrored]
    starts = range(0, length - stride, size - stride)
    return [(start, min(start + size, length)) for start in starts]


# %% book/input_rows.md#rows-that-are-too-long 3c90d028
def kept_lengths(
    first: int, second: int | None, room: int, strategy: str
) -> tuple[int, int | None]:
    """How many pieces each segment keeps so that `room` holds both.

    Raises ValueError where `strategy` may not cut enough.
    """
    excess = first + (second or 0) - room
    if excess <= 0:
        return first, second
    if room == 0:
        return 0, None if second is None else 0
    if strategy == "longest_first":
        if second is None:
            return room, None
        short, long = sorted((first, second))
        long = max(short, room - short)
        if short + long > room:
            short, long = room // 2, room - room // 2
        return (short, long) if first <= second else (long, short)
    cut = strategy.removeprefix("only_")
    of = first if cut == "first" else second or 0
    if of <= excess:
        raise ValueError(
            f"truncation={strategy!r} must remove {excess} pieces, and the "
            f"{cut} text has {of}; raise max_length or use 'longest_first'"
        )
    if cut == "first":
        return first - excess, second
    return first, second - excess


# %% book/input_rows.md#rows-that-are-too-long 10918afd
def _pairs_of_windows(first, second, room, rules):
    """Segments cut to `room`: those of the row, then the overflow."""
    lengths = len(first["ids"]), second and len(second["ids"])
    kept = kept_lengths(*lengths, room, rules.truncation)
    cut = []
    for columns, length, size in zip((first, second), lengths, kept):
        if columns is None:
            cut.append([None])
            continue
        spans = windows(length, size, rules.stride, rules.truncation_side)
        cut.append(
            [
                {
                    name: values[start:end]
                    for name, values in columns.items()
                }
                for start, end in spans
            ]
        )
    firsts, seconds = cut
    pairs = [(firsts[0], seconds[0])]
    pairs += [(one, two) for one in firsts[1:] for two in seconds]
    pairs += [(firsts[0], two) for two in seconds[1:]]
    return pairs


# %% book/input_rows.md#rows-of-one-length 728b4414
def pad_row(
    row: dict[str, list], length: int, pad_id: int, side: str = "right"
) -> dict[str, list]:
    """`row` filled up to `length` positions with the padding token."""
    fill = {
        "ids": pad_id,
        "offsets": (0, 0),
        "words": None,
        "types": 0,
        "present": 0,
        "special": 1,
        "segments": None,
    }
    missing = length - len(row["ids"])
    if missing <= 0:
        return row
    padded = {}
    for name, column in row.items():
        filling = [fill[name]] * missing
        left = side == "left"
        padded[name] = filling + column if left else column + filling
    return padded


# %% book/input_rows.md#what-was-asked-for 5a8029bb
_CHOICES = {
    "padding": ("longest", "max_length", "do_not_pad"),
    "truncation": (
        "longest_first",
        "only_first",
        "only_second",
        "do_not_truncate",
    ),
}


# %% book/input_rows.md#what-was-asked-for 170f22ec
def _choice(name, value):
    choices = _CHOICES[name]
    if value is True:
        return choices[0]
    if value in (False, None, choices[-1]):
        return None
    if value in choices:
        return value
    raise ValueError(
        f"{name}={value!r} is none of True, False, "
        f"{', '.join(map(repr, choices))}; choose one of these"
    )


# %% book/input_rows.md#what-was-asked-for 33e7872e
from dataclasses import dataclass


@dataclass(frozen=True)
class RowRules:
    """How rows are cut and filled. Raises ValueError where it cannot be."""

    padding: bool | str | None = None
    truncation: bool | str | None = None
    max_length: int | None = None
    stride: int = 0
    pad_to_multiple_of: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"

    def __post_init__(self):
        for name in _CHOICES:  # True and False become the names they mean
            choice = _choice(name, getattr(self, name))
            object.__setattr__(self, name, choice)
        for name in ("padding_side", "truncation_side"):
            if getattr(self, name) not in ("left", "right"):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is neither 'left' nor "
                    "'right'; choose one of these"
                )
        needs = self.truncation or self.padding == "max_length"
        if needs and self.max_length is None:
            raise ValueError(
                "truncation and padding='max_length' need a length, and "
                "neither the call nor the tokenizer has one; pass "
                "max_length"
            )
        multiple = self.pad_to_multiple_of
        both = self.truncation and self.padding and multiple
        if both and self.max_length % multiple:
            raise ValueError(
                f"max_length={self.max_length} is no multiple of "
                f"pad_to_multiple_of={multiple}, so padding would undo the "
                "truncation; change one of them"
            )


# %% book/input_rows.md#what-was-asked-for 47f16a6c
def _room(rules, added):
    """How many pieces of text a row has room for."""
    room = rules.max_length - added
    if room < 0 or rules.stride and rules.stride >= room:
        raise ValueError(
            f"max_length={rules.max_length} has no room for {added} "
            f"special tokens and a stride of {rules.stride}; raise it"
        )
    return room


# %% book/input_rows.md#what-was-asked-for fae202ed
def build_rows(
    firsts: list[dict],
    seconds: list[dict] | None,
    rules: RowRules,
    cls: list[int],
    sep: list[int],
    pad_id: int,
    overflow: bool = False,
) -> tuple[list[dict], list[int]]:
    """All rows of a batch, and for each the number of its text.

    With `overflow` a text that is too long gives several rows. Raises
    ValueError where `rules` leave no room.
    """
    rows, owners = [], []
    added = len(cls) + len(sep) * (1 if seconds is None else 2)
    room = _room(rules, added) if rules.truncation else None
    for number, first in enumerate(firsts):
        second = None if seconds is None else seconds[number]
        pairs = [(first, second)]
        if room is not None:
            pairs = _pairs_of_windows(first, second, room, rules)
        for pair in pairs if overflow else pairs[:1]:
            rows.append(build_row(*pair, cls, sep))
            owners.append(number)
    return _pad_rows(rows, owners, rules, pad_id), owners


# %% book/input_rows.md#what-was-asked-for 490d2409
def _pad_rows(rows, owners, rules, pad_id):
    if rules.padding is None:
        return rows
    length = rules.max_length
    if rules.padding == "longest":
        kept = {}
        for row, owner in zip(rows, owners):
            kept.setdefault(owner, len(row["ids"]))
        length = max(kept.values(), default=0)
    multiple = rules.pad_to_multiple_of or 1
    length = -(-length // multiple) * multiple
    side = rules.padding_side
    return [pad_row(row, length, pad_id, side) for row in rows]


# %% book/input_rows.md#what-a-call-takes 6ecf0461
from collections.abc import Sequence


def _is_list(value):
    return isinstance(value, (list, tuple))


def _listed(value):
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return list(value[:])  # a column reads a slice faster than its rows
    return value


# %% book/input_rows.md#what-a-call-takes 0e3d4a78
def read_texts(
    text: str | Sequence, pair: str | Sequence | None, split: bool
) -> tuple[bool, list, list | None]:
    """Whether it is a batch, the first texts, and the second or None.

    With `split` a text is a list of words. Raises TypeError where a text is
    none, ValueError where the batches have different lengths.
    """
    text, pair = _listed(text), _listed(pair)
    words_in = split and _is_list(text) and not any(map(_is_list, text))
    batched = _is_list(text) and not words_in
    if not batched:
        text, pair = [text], [pair] if pair else None
    elif pair is None and text and not split and all(map(_is_list, text)):
        if any(len(two) != 2 for two in text):
            raise ValueError(
                "a batch of lists is a batch of pairs, and one of them "
                "does not hold two texts; for lists of words pass "
                "is_split_into_words=True"
            )
        text, pair = map(list, zip(*text))
    if pair is not None and (not _is_list(pair) or len(pair) != len(text)):
        size = len(pair) if _is_list(pair) else "no list"
        raise ValueError(
            f"a batch of {len(text)} texts needs as many second texts, and "
            f"text_pair is {size}; pass two lists of one length"
        )
    for each in [*text, *(pair or [])]:
        words = each if split and _is_list(each) else [each]
        strings = all(isinstance(word, str) for word in words)
        if _is_list(each) != split or not strings:
            kind = "a list of words" if split else "a str"
            raise TypeError(
                f"each text must be {kind}, and one is {each!r:.60} "
                f"({type(each).__name__})"
            )
    return batched, text, pair
