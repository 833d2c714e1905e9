"""Characters a second of each tokenizer, one thread, the same texts.

    python benchmarks/tokenizer.py [TEXTS [RECORD]]

Each engine encodes batches of 32 texts and drops the result, as a data
loader does. Ours begins every round with empty caches; the best of three
rounds counts. Time is the process's CPU time, so a busy machine disturbs
little. TEXTS limits the number of texts; with RECORD the numbers go there,
otherwise a full run writes book/results/tokenizer_speed.json.
"""

import logging
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import sphinx  # noqa: E402
from babel.messages.pofile import read_po  # noqa: E402
from transformers import BertTokenizerFast  # noqa: E402
from transformers.models.bert.tokenization_bert_legacy import (  # noqa: E402
    BertTokenizerLegacy,
)

from bertbook.corpora import load_corpus  # noqa: E402
from bertbook.reproducibility import record_run  # noqa: E402
from bertbook.tokenizer import BertTokenizer  # noqa: E402
from bertbook.wordpiece import LinearWordPiece, WordPiece  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "results" / "tokenizer_speed.json"
BATCH = 32
ROUNDS = 3
SLOW_SHARE = 10  # the slow reference gets every tenth batch


def translations():
    """Sphinx's messages in its 60 languages, ten messages a text."""
    texts = []
    for path in sorted(Path(sphinx.__path__[0], "locale").rglob("*.po")):
        with open(path, "rb") as file:
            catalogue = read_po(file)
        messages = [m.string for m in catalogue if m.id and m.string]
        messages = [m for m in messages if isinstance(m, str)]
        lines = [m for m in messages if not m.isascii()]
        for start in range(0, len(lines), 10):
            texts.append("\n".join(lines[start : start + 10]))
    random.Random(0).shuffle(texts)
    return texts


def sources(limit):
    reviews = list(load_corpus("imdb", "train")["text"])
    return {
        "english": reviews[:limit],
        "accented": [r for r in reviews if not r.isascii()][:limit],
        "translations": translations()[:limit],
    }


def engines():
    """For each name a function that makes the engine, caches empty."""
    vocab = BertTokenizer.from_pretrained("all-MiniLM-L6-v2").get_vocab()
    reference = BertTokenizerFast(vocab=vocab)
    rust = reference._tokenizer
    with tempfile.TemporaryDirectory() as folder:
        files = BertTokenizer(vocab).save_pretrained(folder)
        slow = BertTokenizerLegacy(files[0])

    def ours(**options):
        encode = BertTokenizer(vocab).encoder.encode_batch
        return lambda texts: encode(texts, **options)

    def engine(method, *fields):
        encode = getattr(rust, method)
        return lambda texts: [
            [getattr(found, field) for field in fields]
            for found in encode(texts, add_special_tokens=False)
        ]

    def old(texts):
        return [
            slow.convert_tokens_to_ids(slow.tokenize(text))
            for text in texts
        ]

    return {
        "ours, ids": ours,
        "ours, ids and offsets": lambda: ours(offsets=True),
        "ours, whole call": lambda: BertTokenizer(vocab),
        "tokenizers, ids": lambda: engine("encode_batch", "ids"),
        "tokenizers, ids (encode_batch_fast)": lambda: engine(
            "encode_batch_fast", "ids"
        ),
        "tokenizers, ids and offsets": lambda: engine(
            "encode_batch", "ids", "offsets"
        ),
        "transformers fast, whole call": lambda: reference,
        "transformers slow, ids": lambda: old,
    }


def speed(make, batches):
    """Millions of characters a second, the best round of three."""
    characters = sum(len(text) for batch in batches for text in batch)
    best = 0.0
    for _ in range(ROUNDS):
        encode = make()
        start = time.process_time()
        for batch in batches:
            encode(batch)
        seconds = time.process_time() - start
        best = max(best, characters / seconds / 1e6)
    return best


def differences(texts, made):
    """How many texts get other ids or offsets than the engine's."""
    ours = made["ours, ids and offsets"]()
    engine = made["tokenizers, ids and offsets"]()
    return sum(
        [mine["ids"], mine["offsets"]] != theirs
        for mine, theirs in zip(ours(texts), engine(texts))
    )


def anatomy(texts):
    """Where our time goes: cutting, looking up, and what is computed."""
    vocab = BertTokenizer.from_pretrained("all-MiniLM-L6-v2").get_vocab()
    encoder = BertTokenizer(vocab).encoder
    cut, look = encoder._parts.findall, encoder._ids.__getitem__
    seconds = {}

    def measure(name, function):
        start = time.process_time()
        for text in texts:
            function(text)
        seconds[name] = time.process_time() - start

    measure("cold", encoder.encode)
    measure("warm", encoder.encode)
    measure("cut", cut)
    measure("look up", lambda text: sum(1 for _ in map(look, cut(text))))
    return {
        "cutting the text into parts": seconds["cut"] / seconds["cold"],
        "looking parts up, collecting ids": (
            seconds["warm"] - seconds["cut"]
        )
        / seconds["cold"],
        "computing the pieces of new parts": (
            seconds["cold"] - seconds["warm"]
        )
        / seconds["cold"],
        "parts": sum(len(cut(text)) for text in texts),
        "new parts": len(encoder._ids),
    }


def matchers(texts):
    """Microseconds a word of greedy and linear matching, uncached."""
    tokenizer = BertTokenizer.from_pretrained("all-MiniLM-L6-v2")
    vocab, basic = tokenizer.get_vocab(), tokenizer.encoder.basic
    english = {w for text in texts[:2000] for w in basic.tokenize(text)}
    hostile = ["a" * n + "b" * (100 - n) + "\u2603" for n in range(100)]
    hostile = [word[-100:] for word in hostile]
    found = {}
    for kind, words in (("english", sorted(english)), ("hostile", hostile)):
        for matcher in (WordPiece(vocab), LinearWordPiece(vocab)):
            start = time.process_time()
            for word in words:
                matcher.tokenize(word)
            seconds = time.process_time() - start
            name = f"{type(matcher).__name__}, {kind}"
            found[name] = seconds / len(words) * 1e6
    return found


def main():
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else None
    metrics = {"batch": BATCH, "rounds": ROUNDS}
    made, texts_of = engines(), sources(limit)
    for source, texts in texts_of.items():
        batches = [
            texts[start : start + BATCH]
            for start in range(0, len(texts), BATCH)
        ]
        speeds = {}
        for name, make in made.items():
            some = batches[::SLOW_SHARE] if "slow" in name else batches
            speeds[name] = speed(make, some)
        characters = sum(map(len, texts))
        beyond = sum(not c.isascii() for text in texts for c in text)
        metrics[source] = {
            "texts": len(texts),
            "characters": characters,
            "share not ASCII": beyond / characters,
            "differences": differences(texts, made),
            "million characters a second": speeds,
        }
        print(
            f"{source}: {len(texts)} texts, {characters} characters, "
            f"{metrics[source]['differences']} differ"
        )
        for name, value in speeds.items():
            rust = value / speeds["tokenizers, ids"]
            slow = value / speeds["transformers slow, ids"]
            print(
                f"  {name:38} {value:6.2f} M/s {rust:6.2f} x tokenizers "
                f"{slow:6.2f} x slow"
            )
    metrics["anatomy"] = anatomy(texts_of["english"])
    metrics["microseconds a word"] = matchers(texts_of["english"])
    print(metrics["anatomy"])
    print(metrics["microseconds a word"])
    if len(sys.argv) > 2:
        record_run(sys.argv[2], metrics)
    elif limit is None:
        record_run(RECORD, metrics)


if __name__ == "__main__":
    main()
