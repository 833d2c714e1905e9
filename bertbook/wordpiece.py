"""Words and pieces

Cuts a text into words by BERT's rules, and each word into pieces of a
vocabulary by the greedy longest match, in quadratic and in linear time.

The page: https://bertbook.github.io/bertbook/book/wordpiece.html
"""

# Tangled from book/wordpiece.md (2f5272d3): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "BasicTokenizer",
    "LinearWordPiece",
    "WordPiece",
    "is_chinese",
    "is_control",
    "is_punctuation",
    "is_whitespace",
]


# %% book/wordpiece.md#which-unicode 592508c3
import re
import unicodedata


def _characters(ranges):
    spans = [span.split("-") for span in ranges.split()]
    return frozenset(
        chr(point)
        for span in spans
        for point in range(int(span[0], 16), int(span[-1], 16) + 1)
    )


# These ranges hold every mark, punctuation and format character that was
# added or moved after Unicode 8, and none that Unicode 8 had.
_YOUNG = _characters("""
    5c8-5c9 61d 7fd 890-8e2 9fd-9fe a76 afa-aff b53-b55 c04-c3c c77 c84
    d00 d3b-d3c d81 eba ece 1715 180f-1886 1abf-1af0 1b4e-1b4f 1b7d-1b7f
    1df6-1dfb 2e43-2e63 a82c a8c5 a8ff a9bd 105c9-105e4 10d24-10d6e
    10eab-10f89 11070-11074 110c2-110cd 111cf 1123e-11241 1133b 11383-1145e
    11660-1166c 116b9 1182f-11df0 11ef3-11fff 12ff1-12ff2 13430-13455
    1611e-1612f 16d68-16d6f 16e97-16f4f 16fe2-16ff1 1cf00-1cf46 1d127-1d128
    1d250-1d281 1e000-1e136 1e2ae-1e2ef 1e4ec-1e6f5 1e944-1e95f
""")


# %% book/wordpiece.md#which-unicode dc7265e9
_MOVED = {"\u166d": "Po", "\u1734": "Mn"}
_MOVED |= {"\U000111c9": "Po", "\U0001171e": "Mn"}
_UNICODE_9_MARKS = _characters(
    "8d4-8e1 1dfb 11442 11446 11c3f 1e000-1e02a 1e944-1e94a"
)


def _category(c):
    if c in _YOUNG:
        return "Lo"  # as a letter: neither dropped nor split off
    return _MOVED.get(c) or unicodedata.category(c)


def _decompose(c):
    return c if c in _YOUNG else unicodedata.normalize("NFD", c)


def _combining_class(c):
    if c in _YOUNG and c not in _UNICODE_9_MARKS:
        return 0
    return unicodedata.combining(c)


# %% book/wordpiece.md#which-unicode f7810590
_LOWER = dict(
    zip(
        "\u1c89\ua7cb\ua7cc\ua7ce\ua7d2\ua7d4\ua7da\ua7dc",
        "\u1c8a\u0264\ua7cd\ua7cf\ua7d3\ua7d5\ua7db\u019b",
    )
)
_LOWER |= {chr(p): chr(p + 32) for p in range(0x10D50, 0x10D66)}
_LOWER |= {chr(p): chr(p + 27) for p in range(0x16EA0, 0x16EB9)}


def _lower(c):
    return _LOWER.get(c) or c.lower()


# %% book/wordpiece.md#which-unicode f77a6a3c
_CHINESE = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df"
    "\U0002a700-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]"
)


def is_whitespace(c: str) -> bool:
    """Whether the character `c` becomes a blank."""
    return c in "\t\n\r" or unicodedata.category(c) in ("Zs", "Zl", "Zp")


def is_control(c: str) -> bool:
    """Whether `c` is dropped: control, format, private use, U+FFFD."""
    dropped = _category(c) in ("Cc", "Cf", "Co") or c == "\ufffd"
    return dropped and c not in "\t\n\r"


def is_chinese(c: str) -> bool:
    """Whether `c` is an ideograph, which becomes a word of its own."""
    return _CHINESE.match(c) is not None


# %% book/wordpiece.md#which-unicode 6ab84218
def is_punctuation(c: str) -> bool:
    """Whether `c` is a word of its own: ASCII's symbols, category P."""
    if c < "\x80":
        return "!" <= c <= "~" and not c.isalnum()
    return _category(c)[0] == "P"


# %% book/wordpiece.md#a-text-one-character-at-a-time bc603480
_MOVING_MARKS = _UNICODE_9_MARKS | _characters(
    "1b44 1baa 1bf2-1bf3 302e-302f a953 a9c0 111c0 11235 1134d 116b6"
    " 1d15e-1d166 1d16d-1d172 1d1bb-1d1c0"  # or decompose to one
)
_ANY_MOVING_MARK = re.compile(f"[{''.join(sorted(_MOVING_MARKS))}]")


def _in_canonical_order(text):
    ordered, marks = [], []
    for source in text:
        for position, c in enumerate(_decompose(source)):
            entry = _combining_class(c), c, position == 0
            if entry[0]:
                marks.append(entry)
                continue
            ordered += sorted(marks, key=lambda mark: mark[0])
            ordered.append(entry)
            marks = []
    ordered += sorted(marks, key=lambda mark: mark[0])
    index, pairs = -1, []
    for _, c, first in ordered:
        index += first  # like the engine: sources are counted, not moved
        pairs.append((c, index))
    return pairs


# %% book/wordpiece.md#a-text-one-character-at-a-time 824127e1
class _NormalForms(dict):
    def __init__(self, lower, strip, chinese):
        self.lower, self.strip, self.chinese = lower, strip, chinese

    def __missing__(self, c):
        if "\ud800" <= c <= "\udfff":
            raise ValueError(
                f"the text holds U+{ord(c):04X}, half of a surrogate pair, "
                "which no UTF-8 can hold; decode its bytes with "
                "errors='replace'"
            )
        if is_whitespace(c) or is_control(c):
            form = " " if is_whitespace(c) else ""
        else:
            parts = _decompose(c) if self.strip else c
            form = "".join(self.letter(part, c) for part in parts)
        self[c] = form
        return form

    def letter(self, c, source):
        if self.strip and _category(c) == "Mn":
            return ""
        alone = is_punctuation(c) or (self.chinese and is_chinese(source))
        c = _lower(c) if self.lower else c
        return f" {c} " if alone else c


# %% book/wordpiece.md#a-text-one-character-at-a-time 24b83be4
def _normalize(text, forms):
    if not (forms.strip and _ANY_MOVING_MARK.search(text)):
        parts = [forms[c] for c in text]
        places = [i for i, part in enumerate(parts) for _ in part]
        return "".join(parts), places
    kept = [i for i, c in enumerate(text) if forms[c] or not is_control(c)]
    cleaned = "".join(text[i] for i in kept)
    parts, places = [], []
    for c, index in _in_canonical_order(cleaned):
        blank = is_whitespace(cleaned[index])
        part = " " if blank else forms.letter(c, cleaned[index])
        parts.append(part)
        places += [kept[index]] * len(part)
    return "".join(parts), places


# %% book/wordpiece.md#a-text-one-character-at-a-time 95fb4b10
from collections.abc import Iterable

_WORD = re.compile("[^ ]+")


def _any_of(strings):
    longest_first = sorted(strings, key=len, reverse=True)
    whole = "|".join(map(re.escape, longest_first))
    return re.compile(f"({whole})") if whole else None


# %% book/wordpiece.md#a-text-one-character-at-a-time 9b80bdc4
class BasicTokenizer:
    """Cuts text into BERT's words (Devlin et al. 2019, section 3).

    `do_lower_case` lowers. `strip_accents` drops non-spacing marks (None:
    as `do_lower_case`). `tokenize_chinese_chars` makes each ideograph a
    word. The strings of `never_split` are words as they stand, anywhere.
    """

    def __init__(
        self,
        do_lower_case: bool = True,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        never_split: Iterable[str] = (),
    ):
        self.do_lower_case = do_lower_case
        self.strip_accents = strip_accents
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.never_split = tuple(never_split)
        strip = do_lower_case if strip_accents is None else strip_accents
        self._forms = _NormalForms(
            do_lower_case, strip, tokenize_chinese_chars
        )
        self._whole = _any_of(self.never_split)

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`; raises TypeError where it is no str."""
        return [word for word, _ in self.words(text)]

    def segments(self, text: str) -> list[str]:
        """`text` in parts; those at odd places are of `never_split`."""
        if not isinstance(text, str):
            kind = type(text).__name__
            raise TypeError(f"a text must be a str, not {text!r} ({kind})")
        return self._whole.split(text) if self._whole else [text]

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """Each word, with the index in `text` of each character of it."""
        words, start = [], 0
        for position, part in enumerate(self.segments(text)):
            stop = start + len(part)
            if position % 2:
                words.append((part, list(range(start, stop))))
            else:
                normal, places = _normalize(part, self._forms)
                for found in _WORD.finditer(normal):
                    inside = places[found.start() : found.end()]
                    words.append((found[0], [start + i for i in inside]))
            start = stop
        return words


# %% book/wordpiece.md#from-words-to-pieces a1749f11
class WordPiece:
    """Cuts a word into pieces by the greedy longest match.

    `vocab` maps pieces to ids. A word longer than
    `max_input_chars_per_word`, or that cannot be cut, is `[unk_token]`.
    Raises ValueError where `vocab` lacks `unk_token`.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        unk_token: str = "[UNK]",
        max_input_chars_per_word: int = 100,
        continuing_subword_prefix: str = "##",
    ):
        if unk_token not in vocab:
            raise ValueError(
                f"the vocabulary of {len(vocab)} pieces lacks "
                f"{unk_token!r}, the piece for words that cannot be cut; "
                "add it"
            )
        self.vocab = vocab
        self.unk_token = unk_token
        self.max_input_chars_per_word = max_input_chars_per_word
        self.continuing_subword_prefix = continuing_subword_prefix

    def tokenize(self, word: str) -> list[str]:
        """The pieces of `word`, a word as `BasicTokenizer` makes them."""
        if len(word) > self.max_input_chars_per_word:
            return [self.unk_token]
        pieces, start, prefix = [], 0, ""
        while start < len(word):
            for end in range(len(word), start, -1):
                if prefix + word[start:end] in self.vocab:
                    break
            else:
                return [self.unk_token]
            pieces.append(prefix + word[start:end])
            start, prefix = end, self.continuing_subword_prefix
        return pieces


# %% book/wordpiece.md#in-linear-time dcbef81a
_START, _CONTINUE = 0, 1  # the roots: begin a word, continue one


def _trie(vocab, prefix):
    edges, piece_at = [{}, {}], [None, None]
    for piece in vocab:
        spellings = [(_START, piece)]
        if piece.startswith(prefix):
            spellings.append((_CONTINUE, piece[len(prefix) :]))
        for node, letters in spellings:
            if not letters:
                continue
            for c in letters:
                if c not in edges[node]:
                    edges[node][c] = len(edges)
                    edges.append({})
                    piece_at.append(None)
                node = edges[node][c]
            piece_at[node] = piece
    return edges, piece_at


# %% book/wordpiece.md#in-linear-time 9281f895
def _failures(edges, piece_at):
    failure = [None] * len(edges)
    emitted = [()] * len(edges)
    level = [_START, _CONTINUE]
    while level:
        children = []
        for parent in level:
            for c, node in edges[parent].items():
                children.append(node)
                if piece_at[node] is not None:
                    failure[node] = _CONTINUE
                    emitted[node] = (piece_at[node],)
                    continue
                back, pieces = failure[parent], emitted[parent]
                while back is not None and c not in edges[back]:
                    pieces += emitted[back]
                    back = failure[back]
                if back is not None:
                    failure[node] = edges[back][c]
                    emitted[node] = pieces
        level = children
    return failure, emitted


# %% book/wordpiece.md#in-linear-time b5d5d431
class LinearWordPiece(WordPiece):
    """`WordPiece` in linear time (Song et al. 2021, algorithm 1).

    Same arguments, same pieces. Building the trie takes a moment and some
    memory, which pays off on long words.
    """

    def __init__(self, vocab: dict[str, int], *args, **kwargs):
        super().__init__(vocab, *args, **kwargs)
        prefix = self.continuing_subword_prefix
        self._edges, piece_at = _trie(vocab, prefix)
        self._failure, self._emitted = _failures(self._edges, piece_at)

    def tokenize(self, word: str) -> list[str]:
        """The pieces of `word`, as `WordPiece` cuts them."""
        if len(word) > self.max_input_chars_per_word:
            return [self.unk_token]
        node, pieces = _START, []
        for c in word:
            while c not in self._edges[node]:
                pieces += self._emitted[node]
                node = self._failure[node]
                if node is None:
                    return [self.unk_token]
            node = self._edges[node][c]
        while node not in (_START, _CONTINUE):
            pieces += self._emitted[node]
            node = self._failure[node]
            if node is None:
                return [self.unk_token]
        return pieces
