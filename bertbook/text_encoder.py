"""Doing less

Turns text into ids and offsets at several times the speed of a compiled
engine, by computing the pieces of each word only once.

The page: https://bertbook.github.io/bertbook/book/text_encoder.html
"""

# Tangled from book/text_encoder.md (f730bc89): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "EngineEncoder",
    "TextEncoder",
]


# %% book/text_encoder.md#parts-that-may-be-cached d8a1177a
import re
from itertools import accumulate, chain
from operator import itemgetter

from bertbook.wordpiece import BasicTokenizer, WordPiece

_SYMBOLS = "!-/:-@\\[-`{-~\u2010-\u2027"
_SYMBOLS += "\u3001-\u3003\u3008-\u3011"
_SYMBOLS += "\uff01-\uff03\uff05-\uff0a\uff0c-\uff0f"
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff"


def _part_pattern(chinese):
    alone = _SYMBOLS + (_IDEOGRAPHS if chinese else "")
    word = f"[^ \t\n\r{alone}]+"
    return re.compile(f" ?(?:{word}|[{alone}])|[ \t\n\r]")


# %% book/text_encoder.md#the-cache 28e89f9c
_LONGEST_KEY = 64


class _Cache(dict):
    def __init__(self, compute, limit):
        self.compute, self.limit = compute, limit

    def __missing__(self, part):
        value = self.compute(part)
        if len(part) <= _LONGEST_KEY:
            if len(self) >= self.limit:
                self.clear()
            self[part] = value
        return value

    def __reduce__(self):  # a copy in another process starts empty
        return _Cache, (self.compute, self.limit)


# %% book/text_encoder.md#the-cache 15b6be14
def _words_of(part, basic):
    word = part.lstrip(" ")
    if word.isascii() and word.isalnum():
        places = range(len(part) - len(word), len(part))
        return [(word.lower() if basic.do_lower_case else word, places)]
    return basic.words(part)


# %% book/text_encoder.md#the-cache 52d2e92d
def _pieces_of(part, basic, wordpiece):
    """Piece, start, end and word number of each piece of `part`."""
    pieces, prefix = [], len(wordpiece.continuing_subword_prefix)
    for number, (word, places) in enumerate(_words_of(part, basic)):
        found = wordpiece.tokenize(word)
        end = 0
        for position, piece in enumerate(found):
            start = end
            end += len(piece) - (prefix if position else 0)
            if len(found) == 1:
                end = len(word)  # [UNK] stands for the whole word
            place = places[start], places[end - 1] + 1
            pieces.append((piece, *place, number))
    return pieces


# %% book/text_encoder.md#the-encoder f23be73b
class TextEncoder:
    """From text to columns of ids, offsets and word numbers.

    `basic` cuts text into words, `wordpiece` words into pieces. Each cache
    holds at most `limit` parts of text.
    """

    def __init__(
        self,
        basic: BasicTokenizer,
        wordpiece: WordPiece,
        limit: int = 2**17,
    ):
        self.basic, self.wordpiece = basic, wordpiece
        self._parts = _part_pattern(basic.tokenize_chinese_chars)
        self._ids = _Cache(self._find_ids, limit)
        self._spans = _Cache(self._find_spans, limit)
        self._numbers = _Cache(self._find_numbers, limit)

    def _find_ids(self, part):
        words, cut = _words_of(part, self.basic), self.wordpiece.tokenize
        vocab = self.wordpiece.vocab
        return tuple(vocab[p] for word, _ in words for p in cut(word))

    def _find_spans(self, part):
        pieces = _pieces_of(part, self.basic, self.wordpiece)
        vocab = self.wordpiece.vocab
        ids = tuple([vocab[piece] for piece, *_ in pieces])
        return ids, tuple([(start, end) for _, start, end, _ in pieces])

    def _find_numbers(self, part):
        pieces = _pieces_of(part, self.basic, self.wordpiece)
        return tuple(number for *_, number in pieces)

    def encode(
        self, text: str, offsets: bool = False, words: bool = False
    ) -> dict[str, list]:
        """The columns "ids" and, if asked, "offsets" and "words"."""
        return _encode(self, text, offsets, words)

    def encode_batch(
        self, texts: list[str], offsets: bool = False, words: bool = False
    ) -> list[dict[str, list]]:
        """`encode` of each text."""
        return [_encode(self, text, offsets, words) for text in texts]


# %% book/text_encoder.md#the-encoder 4852b005
def _encode(encoder, text, offsets, words):
    ids, spans, numbers, start, count = [], [], [], 0, 0
    for position, segment in enumerate(encoder.basic.segments(text)):
        if position % 2:  # a string that is never split
            ids.append(encoder.wordpiece.vocab[segment])
            spans.append((start, start + len(segment)))
            numbers.append(count)
            count += 1
        else:
            parts = encoder._parts.findall(segment)
            if offsets:
                starts = accumulate(map(len, parts), initial=start)
                found = list(map(encoder._spans.__getitem__, parts))
                spans += [
                    (at + first, at + last)
                    for at, (_, inside) in zip(starts, found)
                    for first, last in inside
                ]
                found = map(itemgetter(0), found)
            else:
                found = map(encoder._ids.__getitem__, parts)
            ids += chain.from_iterable(found)
            if words:
                for inside in map(encoder._numbers.__getitem__, parts):
                    numbers += [count + number for number in inside]
                    count += inside[-1] + 1 if inside else 0
        start += len(segment)
    columns = {"ids": ids}
    if offsets:
        columns["offsets"] = spans
    if words:
        columns["words"] = numbers
    return columns


# %% book/text_encoder.md#the-engine-when-you-want-it bc197294
class EngineEncoder:
    """`TextEncoder` on an engine of the `tokenizers` library."""

    def __init__(self, engine):
        self.engine = engine

    def encode(
        self, text: str, offsets: bool = False, words: bool = False
    ) -> dict[str, list]:
        """The columns "ids" and, if asked, "offsets" and "words"."""
        return self.encode_batch([text], offsets, words)[0]

    def encode_batch(
        self, texts: list[str], offsets: bool = False, words: bool = False
    ) -> list[dict[str, list]]:
        """`encode` of each text, on several cores where there are."""
        batch = []
        for found in self.engine.encode_batch(
            texts, add_special_tokens=False
        ):
            columns = {"ids": found.ids}
            if offsets:
                columns["offsets"] = found.offsets
            if words:
                columns["words"] = found.word_ids
            batch.append(columns)
        return batch
