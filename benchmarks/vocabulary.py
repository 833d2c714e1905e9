"""Train 8,192 pieces on the IMDb reviews with each score, and time it.

    python benchmarks/vocabulary.py

One process, one thread (RAYON_NUM_THREADS holds `tokenizers` to one), CPU
seconds, the best of three. Writes book/results/vocabulary.json.
"""

import os
import time
from functools import partial
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"

from tokenizers import (  # noqa: E402  # noqa: E402
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from bertbook.corpora import load_corpus  # noqa: E402
from bertbook.reproducibility import record_run  # noqa: E402
from bertbook.vocabulary import (  # noqa: E402
    SCORES,
    SPECIAL_TOKENS,
    count_words,
    train_wordpiece,
)

SIZE = 8192
RESULT = Path(__file__).resolve().parent.parent / "book/results"


def best_of_three(work):
    seconds = []
    for _ in range(3):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return round(min(seconds), 2), result


def reference(texts):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=SIZE,
            min_frequency=2,
            show_progress=False,
            special_tokens=list(SPECIAL_TOKENS),
        ),
    )
    return tokenizer.get_vocab()


def main():
    texts = load_corpus("imdb", "train")["text"]
    metrics = {
        "reviews": len(texts),
        "characters": sum(map(len, texts)),
        "vocab_size": SIZE,
    }
    counting, words = best_of_three(lambda: count_words(texts))
    metrics["words"], metrics["distinct_words"] = words.total(), len(words)
    metrics["count_words_seconds"] = counting
    print(f"count words     {counting:6.2f} s")
    for score in SCORES:
        seconds, pieces = best_of_three(
            partial(
                train_wordpiece,
                words,
                SIZE,
                score=score,
                show_progress=False,
            )
        )
        assert len(pieces) == SIZE
        metrics[f"{score}_seconds"] = seconds
        print(
            f"{score:15} {seconds:6.2f} s, with counting "
            f"{counting + seconds:6.2f} s"
        )
    seconds, pieces = best_of_three(lambda: reference(texts))
    metrics["tokenizers_seconds"] = seconds
    ratio = (counting + metrics["frequency_seconds"]) / seconds
    print(
        f"tokenizers      {seconds:6.2f} s, with counting, "
        f"and frequency {ratio:.2f} times that"
    )
    RESULT.mkdir(exist_ok=True)
    record_run(RESULT / "vocabulary.json", metrics)


if __name__ == "__main__":
    main()
