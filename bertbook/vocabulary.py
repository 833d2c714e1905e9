"""Training a vocabulary

Learns the pieces that WordPiece cuts words into. The trainer starts from
characters and merges neighbouring pieces, by frequency or by likelihood,
until the vocabulary is full. The same words give the same vocabulary, in
whatever order they come.

The page: https://bertbook.github.io/bertbook/book/vocabulary.html
"""

# Tangled from book/vocabulary.md (c64e3a70): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Merge",
    "PairTable",
    "SCORES",
    "SPECIAL_TOKENS",
    "count_words",
    "find_alphabet",
    "learn_merges",
    "merge_pair",
    "train_wordpiece",
    "trained_vocabulary",
]


# %% book/vocabulary.md#counting-words d8f7f602
import re
from collections import Counter
from collections.abc import Iterable

from bertbook.wordpiece import BasicTokenizer

# A word or a punctuation mark, where all characters are printable ASCII.
_PLAIN = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
# Between ASCII spaces: a stretch with some other character in it.
_OTHER = re.compile(r"[^ -~\t\n\r]")
_STRETCH = re.compile(r"[^ \t\n\r]*[^ -~\t\n\r][^ \t\n\r]*")


# %% book/vocabulary.md#counting-words d2c5786f
def count_words(
    texts: Iterable[str], *, do_lower_case: bool = True
) -> Counter[str]:
    """How often each word of `BasicTokenizer` occurs in `texts`.

    Arguments: the texts; whether to lower the case and strip accents, as
    uncased models do. Returns a Counter from word to count. Raises
    ValueError if `texts` is one string.
    """
    if isinstance(texts, str):
        raise ValueError("texts is one string, not a list; write [text]")
    plain, stretches = Counter(), Counter()
    for text in texts:
        if _OTHER.search(text):
            stretches.update(_STRETCH.findall(text))
            text = _STRETCH.sub(" ", text)
        text = text.lower() if do_lower_case else text
        plain.update(_PLAIN.findall(text))
    tokenizer = BasicTokenizer(do_lower_case=do_lower_case)
    for stretch, count in stretches.items():
        for word in tokenizer.tokenize(stretch):
            plain[word] += count
    return plain


# %% book/vocabulary.md#where-the-second-score-comes-from b88cc055
import math


def _frequency(pair: int, left: int, right: int, total: int) -> float:
    return pair


def _likelihood(pair: int, left: int, right: int, total: int) -> float:
    return pair / (left * right)


# %% book/vocabulary.md#where-the-second-score-comes-from e4debf97
def _gain(pair: int, left: int, right: int, total: int) -> float:
    return pair * (math.log(pair * total / (left * right)) - 1)


# From the counts of the pair, of its two pieces and of all pieces.
SCORES = {"frequency": _frequency, "likelihood": _likelihood, "gain": _gain}


# %% book/vocabulary.md#the-loop-that-counts-again 5bcca20c
from collections.abc import Mapping


def find_alphabet(
    word_counts: Mapping[str, int],
    limit_alphabet: int | None = None,
    initial_alphabet: Iterable[str] = (),
) -> list[str]:
    """The single characters that every other piece is built from.

    Keeps `limit_alphabet` characters (all, if None): first those in
    `initial_alphabet`, then the most frequent, of equally frequent ones
    those with smaller code points. Returns them sorted, then with `##`
    those seen inside a word or asked for.
    """
    inside = set(initial_alphabet)
    seen = Counter(dict.fromkeys(inside, math.inf))
    for word, count in word_counts.items():
        inside.update(word[1:])
        for character in word:
            seen[character] += count
    kept = sorted(sorted(seen), key=seen.get, reverse=True)
    kept = sorted(kept[:limit_alphabet])
    return kept + ["##" + c for c in kept if c in inside]


# %% book/vocabulary.md#the-loop-that-remembers 8b0b2b02
from collections import defaultdict
from itertools import pairwise

_Pair = tuple[int, int]


def _replace(word: list[int], pair: _Pair, new: int) -> list[int]:
    left, right = pair
    result: list[int] = []
    for piece in word:
        if piece == right and result and result[-1] == left:
            result[-1] = new
        else:
            result.append(piece)
    return result


# %% book/vocabulary.md#the-loop-that-remembers 3a536691
class PairTable:
    """Counts of pieces and of neighbouring pairs, exact after each merge.

    `words` are lists of piece numbers, `counts` says how often each word
    occurs, `min_frequency` from where on a pair counts as frequent.
    Overlapping pairs all count.
    """

    def __init__(self, words, counts, min_frequency=1):
        self.words, self.counts = words, counts
        self.min_frequency = min_frequency
        self.pieces: Counter[int] = Counter()
        self.pairs: Counter[_Pair] = Counter()
        self.words_with = defaultdict(set)  # pair -> numbers of words
        self.pairs_with = defaultdict(set)  # piece -> frequent pairs
        for index, (word, count) in enumerate(zip(words, counts)):
            for piece in word:
                self.pieces[piece] += count
            for pair in pairwise(word):
                self.pairs[pair] += count
                self.words_with[pair].add(index)
        for pair in self.pairs:
            self.add(pair, 0)
        self.total = self.pieces.total()

    def add(self, pair: _Pair, change: int) -> None:
        """Count `pair` by `change` more, or less."""
        self.pairs[pair] += change
        frequent = self.pairs[pair] >= self.min_frequency
        for piece in pair:
            known = self.pairs_with[piece]
            known.add(pair) if frequent else known.discard(pair)


# %% book/vocabulary.md#the-loop-that-remembers 7a2f03d2
def merge_pair(table: PairTable, pair: _Pair, new: int) -> None:
    """Put the piece `new` where `pair` stands, from left to right."""
    changes, merged = defaultdict(int), 0
    for index in table.words_with.pop(pair):
        before, count = table.words[index], table.counts[index]
        after = table.words[index] = _replace(before, pair, new)
        merged += count * (len(before) - len(after))
        for other in pairwise(before):
            changes[other] -= count
        for other in pairwise(after):
            changes[other] += count
            if new in other:
                table.words_with[other].add(index)
    for other, change in changes.items():
        if change:
            table.add(other, change)
    for piece, change in zip((*pair, new), (-merged, -merged, merged)):
        table.pieces[piece] += change
    table.total -= merged


# %% book/vocabulary.md#the-loop-that-remembers 4c3841dc
import heapq
from collections.abc import Iterator
from typing import NamedTuple


class Merge(NamedTuple):
    """One step of training: `left` and `right` became `piece`."""

    left: str
    right: str
    piece: str
    frequency: int  # how often the pair occurred
    score: float


# %% book/vocabulary.md#the-loop-that-remembers 508b3536
class _BestFirst:
    """Pairs of a table, the best by `score` first, while counts change."""

    def __init__(self, table: PairTable, score: str):
        self.table, self.score = table, SCORES[score]
        self.heap, self.offered = [], {}

    def value(self, pair: _Pair) -> float:
        table, (left, right) = self.table, pair
        n, a, b = table.pairs[pair], table.pieces[left], table.pieces[right]
        if n < table.min_frequency:
            return -math.inf
        return self.score(n, a, b, table.total)

    def offer(self, pairs: Iterable[_Pair]) -> None:
        """Enter the pairs that have no entry as good as their score."""
        for pair in pairs:
            value = self.value(pair)
            if value > self.offered.get(pair, -math.inf):
                self.offered[pair] = value
                heapq.heappush(self.heap, (-value, pair))

    def pop(self) -> tuple[_Pair, float] | None:
        while self.heap:
            negative, pair = heapq.heappop(self.heap)
            if self.offered.get(pair) != -negative:
                continue  # a better entry of this pair was used before
            del self.offered[pair]
            if self.value(pair) == -negative:
                return pair, -negative
            self.offer([pair])
        return None


# %% book/vocabulary.md#the-loop-that-remembers b941fb1a
def _spell(word_counts, place):
    words, counts = [], []
    for word, count in word_counts.items():
        letters = [word[0], *("##" + letter for letter in word[1:])]
        spelled = [place.get(letter) for letter in letters]
        if None not in spelled:  # else the encoder answers [UNK]
            words.append(spelled)
            counts.append(count)
    return words, counts


# %% book/vocabulary.md#the-loop-that-remembers 7be81bc4
def learn_merges(
    word_counts: Mapping[str, int],
    alphabet: list[str],
    *,
    score: str = "frequency",
    min_frequency: int = 2,
) -> Iterator[Merge]:
    """Merge the best pair again and again, until none is frequent enough.

    Words with a character outside `alphabet` are left out. Of equal scores
    the pair whose left piece is older wins, then the one whose right piece
    is; pieces of the alphabet are as old as their place in it. `score` is
    a key of `SCORES`; a pair takes part from `min_frequency` on.
    """
    pieces, place = list(alphabet), {p: i for i, p in enumerate(alphabet)}
    table = PairTable(*_spell(word_counts, place), min_frequency)
    best = _BestFirst(table, score)
    best.offer(table.pairs)
    while found := best.pop():
        (left, right), value = found
        piece = pieces[left] + pieces[right][2:]
        if piece not in place:  # "abc" can be ab + ##c, and a + ##bc later
            place[piece] = len(pieces)
            pieces.append(piece)
        names, new = (pieces[left], pieces[right], piece), place[piece]
        yield Merge(*names, table.pairs[left, right], value)
        merge_pair(table, (left, right), new)
        rising = [new] if score == "frequency" else [left, right, new]
        for changed in rising:
            best.offer(table.pairs_with[changed])


# %% book/vocabulary.md#the-vocabulary 523d8ddc
from tqdm import tqdm

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _require(holds: object, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _check(words, score, min_frequency, special_tokens) -> None:
    _require(words, "the corpus has no words; give texts with at least one")
    odd = next((w for w in words if not w or words[w] < 1), None)
    count = words.get(odd)
    _require(
        odd is None,
        f"the word {odd!r} has the count {count}, but words must be "
        "non-empty and counts at least 1; drop it",
    )
    names = ", ".join(map(repr, SCORES))
    _require(score in SCORES, f"score is {score!r}; give one of {names}")
    least = f"min_frequency is {min_frequency}; give 1 or more"
    _require(min_frequency >= 1, least)
    _require(
        len(set(special_tokens)) == len(special_tokens),
        f"special_tokens has {special_tokens}, but each token needs "
        "an id of its own; drop the duplicates",
    )


# %% book/vocabulary.md#the-vocabulary 02e33df6
def train_wordpiece(
    texts_or_word_counts: Iterable[str] | Mapping[str, int],
    vocab_size: int,
    *,
    score: str = "frequency",
    min_frequency: int = 2,
    limit_alphabet: int | None = None,
    initial_alphabet: str = "",
    special_tokens: Iterable[str] = SPECIAL_TOKENS,
    do_lower_case: bool = True,
    show_progress: bool = True,
) -> dict[str, int]:
    """Learn a vocabulary of `vocab_size` pieces; the ids are its order.

    Arguments: texts, or a mapping from word to count; the size, special
    tokens included; a key of `SCORES`; how often a pair must occur to be
    merged; how many characters to keep, and which ones first; the tokens
    with the first ids; whether to lower-case texts and to show progress.
    Returns fewer pieces only when no pair is frequent enough any more.
    Raises ValueError for input that no vocabulary can be learned from.
    """
    words, special_tokens = texts_or_word_counts, list(special_tokens)
    if not isinstance(words, Mapping):
        words = count_words(words, do_lower_case=do_lower_case)
    _check(words, score, min_frequency, special_tokens)
    alphabet = find_alphabet(words, limit_alphabet, initial_alphabet)
    vocabulary = {}
    for piece in [*special_tokens, *alphabet]:
        vocabulary.setdefault(piece, len(vocabulary))
    _require(
        vocab_size >= len(vocabulary),
        f"vocab_size is {vocab_size}, but {len(special_tokens)} special "
        f"tokens and {len(alphabet)} characters need {len(vocabulary)}; "
        "raise it, or lower limit_alphabet",
    )
    merges = learn_merges(
        words, alphabet, score=score, min_frequency=min_frequency
    )
    with tqdm(total=vocab_size, disable=not show_progress) as bar:
        bar.update(len(vocabulary))
        while len(vocabulary) < vocab_size and (merge := next(merges, 0)):
            new = merge.piece not in vocabulary
            vocabulary.setdefault(merge.piece, len(vocabulary))
            bar.update(new)
    return vocabulary


# %% book/vocabulary.md#trained-once 6d81615d
import hashlib
from importlib.util import find_spec
from pathlib import Path

from bertbook.corpora import load_corpus
from bertbook.reproducibility import kept, write_atomically


def trained_vocabulary(
    corpus: str = "imdb", vocab_size: int = 8192, **options
) -> dict[str, int]:
    """The vocabulary of a corpus's training split, trained on first use.

    `options` are those of `train_wordpiece`. The result is kept as a
    `vocab.txt` where `bertbook.reproducibility.kept` keeps things.
    """
    texts = load_corpus(corpus, "train")["text"][:]
    show_progress = options.pop("show_progress", False)
    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    for module in "bertbook.wordpiece", "bertbook.vocabulary":
        digest.update(Path(find_spec(module).origin).read_bytes())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    name = f"{corpus}-{vocab_size}-{digest.hexdigest()[:16]}.txt"
    path = kept(f"vocabulary/{name}")
    if not path.exists():
        options["show_progress"] = show_progress
        vocabulary = train_wordpiece(texts, vocab_size, **options)
        write_atomically(path, "\n".join(vocabulary))
    pieces = path.read_text(encoding="utf-8").split("\n")
    return {piece: index for index, piece in enumerate(pieces)}
