"""Back to text

Translates ids into tokens and text, and answers which token covers which
character of the original.

The page: https://bertbook.github.io/bertbook/book/decoding.html
"""

# Tangled from book/decoding.md (db0209c7): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "BatchEncoding",
    "Decoder",
    "TextEncoding",
    "TokenTable",
    "to_tensors",
]


# %% book/decoding.md#from-ids-to-text 7d79169b
_REPAIRS = [(f" {mark}", mark) for mark in ".?!,"]
_REPAIRS += [(" ' ", "'")]
_REPAIRS += [(f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")]


def _repair(text):
    for wrong, right in _REPAIRS:
        text = text.replace(wrong, right)
    return text


# %% book/decoding.md#from-ids-to-text f0f749ca
def _glue(pieces, prefix):
    """One text; blanks are repaired piece by piece, as the engine does."""
    text = []
    for position, piece in enumerate(pieces):
        if position:
            continues = piece.startswith(prefix)
            piece = piece[len(prefix) :] if continues else f" {piece}"
        text.append(_repair(piece))
    return "".join(text)


# %% book/decoding.md#ids-and-tokens 8d964178
from bertbook.tokenizer_files import TokenizerSettings, check_vocab

_ROLES = ("unk", "sep", "pad", "cls", "mask")


class TokenTable:
    """Tokens and their ids, and the way back from ids to text.

    The roles are attributes: `cls_token`, `cls_token_id`, and so on for
    `unk`, `sep`, `pad` and `mask`. Raises ValueError where `vocab` lacks a
    token that `settings` name.
    """

    def __init__(self, vocab: dict[str, int], settings: TokenizerSettings):
        whole = *settings.special_tokens, *settings.never_split
        check_vocab(vocab, whole)
        self.settings = settings
        self._vocab = dict(vocab)
        self._tokens = {number: token for token, number in vocab.items()}
        self.all_special_tokens = list(dict.fromkeys(whole))
        self.all_special_ids = [vocab[t] for t in self.all_special_tokens]
        self.special_tokens_map = {}
        for role, token in zip(_ROLES, settings.special_tokens):
            setattr(self, f"{role}_token", token)
            setattr(self, f"{role}_token_id", vocab[token])
            self.special_tokens_map[f"{role}_token"] = token

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return len(self._vocab)

    def __len__(self) -> int:
        return len(self._vocab)

    def get_vocab(self) -> dict[str, int]:
        """A copy of the vocabulary."""
        return dict(self._vocab)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens a row has beside its texts': 2, for pairs 3."""
        return 3 if pair else 2


# %% book/decoding.md#ids-and-tokens dec0dd1c
def _as_list(ids):
    return ids.tolist() if hasattr(ids, "tolist") else ids


def _unknown(token_id, tokens):
    return (
        f"no token has the id {token_id}; the {len(tokens)} ids of this "
        f"vocabulary end at {max(tokens)}"
    )


# %% book/decoding.md#ids-and-tokens 28c2aae9
class Decoder(TokenTable):
    """A `TokenTable` that translates between tokens, ids and text."""

    def convert_tokens_to_ids(self, tokens: str | list[str]):
        """The id of a token, or of each; unknown ones are `[UNK]`."""
        if isinstance(tokens, str):
            return self._vocab.get(tokens, self.unk_token_id)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids, skip_special_tokens: bool = False):
        """The token of an id, or of each id of a list or tensor."""
        ids = _as_list(ids)
        skipped = self.all_special_ids if skip_special_tokens else []
        try:
            if isinstance(ids, int):
                return self._tokens[ids]
            return [self._tokens[i] for i in ids if i not in skipped]
        except KeyError as error:
            raise ValueError(_unknown(error, self._tokens)) from None

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Tokens glued to a text."""
        return _glue(tokens, self.settings.continuing_subword_prefix)

    def decode(
        self,
        ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ):
        """The text of ids: an int, a list, a tensor; for rows, a list."""
        ids = _as_list(ids)
        ids = [ids] if isinstance(ids, int) else ids
        if ids and isinstance(ids[0], (list, tuple)):
            rules = skip_special_tokens, clean_up_tokenization_spaces
            return [self.decode(row, *rules) for row in ids]
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
        text = self.convert_tokens_to_string(tokens)
        return _repair(text) if clean_up_tokenization_spaces else text

    def batch_decode(self, rows, *args, **kwargs) -> list[str]:
        """`decode` for each row."""
        return [self.decode(row, *args, **kwargs) for row in rows]


# %% book/decoding.md#what-a-call-returns dba226f1
from collections.abc import Callable
from functools import cached_property


class BatchEncoding(dict):
    """What a tokenizer returns: columns by name, as items or attributes.

    `find_rows` gives the rows with offsets, words and tokens when they are
    first asked for. Questions take the row as their first argument; for a
    single row it may be left out.
    """

    def __init__(self, columns: dict, find_rows: Callable | None = None):
        super().__init__(columns)
        self._find_rows = find_rows

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(f"the encoding has no column {name!r}")

    def __reduce__(self):  # to another process go the columns alone
        return type(self), (dict(self),)

    @cached_property
    def _rows(self):
        if self._find_rows is None:
            raise ValueError(
                "this encoding was copied from another process without its "
                "texts; ask where it was made, or return_offsets_mapping"
            )
        return self._find_rows()

    def to(self, device) -> "BatchEncoding":
        """The same encoding with its tensors on `device`."""
        for name, column in self.items():
            if hasattr(column, "to"):
                self[name] = column.to(device)
        return self


# %% book/decoding.md#what-a-call-returns 9406c6f9
class TextEncoding(BatchEncoding):
    """A `BatchEncoding` with the questions about tokens and text."""

    def tokens(self, row: int = 0) -> list[str]:
        """The tokens of a row."""
        return self._rows[row]["tokens"]

    def word_ids(self, row: int = 0) -> list[int | None]:
        """For each token, which word of its text it belongs to."""
        return self._rows[row]["words"]

    def sequence_ids(self, row: int = 0) -> list[int | None]:
        """For each token, which text it belongs to: 0, 1 or None."""
        return self._rows[row]["segments"]

    def char_to_token(
        self, row: int, char: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that covers a character of the original text."""
        row, char = (0, row) if char is None else (row, char)
        found = self._rows[row]
        for token, (start, end) in enumerate(found["offsets"]):
            inside = found["segments"][token] == sequence_index
            if inside and start <= char < end:
                return token
        return None

    def token_to_chars(
        self, row: int, token: int | None = None
    ) -> tuple[int, int] | None:
        """Where a token stands in the original text, or None."""
        row, token = (0, row) if token is None else (row, token)
        found = self._rows[row]
        outside = found["segments"][token] is None
        return None if outside else found["offsets"][token]


# %% book/decoding.md#tensors 09acd7ab
def _check_rows(rows, kind):
    lengths = sorted({len(row) for row in rows})
    if kind not in ("pt", "np"):
        raise ValueError(
            f"return_tensors={kind!r} is neither 'pt' (PyTorch) nor 'np' "
            "(NumPy); choose one, or None for lists"
        )
    if len(lengths) > 1:
        raise ValueError(
            f"the rows have {lengths[0]} to {lengths[-1]} tokens, and a "
            "tensor has one length; pass padding=True"
        )


# %% book/decoding.md#tensors 8c427ddf
def to_tensors(columns: dict[str, list], kind: str | None) -> dict:
    """Columns as tensors: `kind` is "pt", "np", or None to leave them.

    Raises ValueError for another kind, or rows of different lengths.
    """
    if kind is None:
        return columns
    _check_rows(columns["input_ids"], kind)
    if kind == "np":
        import numpy

        make, dtype = numpy.array, numpy.int64
    else:
        import torch

        make, dtype = torch.tensor, torch.int64
    return {
        name: make(column, dtype=dtype) for name, column in columns.items()
    }
