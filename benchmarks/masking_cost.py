"""What masking a row costs, by unit and by way of counting.

    python benchmarks/masking_cost.py [REPEATS]

Masks batches of 64 rows of 64 IMDb pieces on one thread, REPEATS times
(200) each, beside the collator of transformers, and writes the median and
the least microseconds a row to book/results/masking_cost.json.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bertbook.corpora import load_corpus
from bertbook.masking import Masking, Pieces, draw_numbers, mask_rows
from bertbook.reproducibility import record_run
from bertbook.tokenizer import BertTokenizer
from bertbook.vocabulary import trained_vocabulary

ROOT = Path(__file__).resolve().parent.parent
ROWS, SEQ = 64, 64


def timed(function, repeats):
    """Microseconds a row: the median and the least of some batches."""
    spent = []
    for number in range(repeats + 5):
        start = time.perf_counter()
        function(number)
        spent.append((time.perf_counter() - start) / ROWS * 1e6)
    spent = spent[5:]
    return {
        "median": round(statistics.median(spent), 1),
        "least": round(min(spent), 1),
    }


def main(repeats=200):
    """Time everything once."""
    torch.set_num_threads(1)
    tokenizer = BertTokenizer(trained_vocabulary("imdb", 8192))
    pieces = Pieces.of(tokenizer)
    text = " ".join(load_corpus("imdb", "validation")["text"][:40])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor(ids[: ROWS * (SEQ - 2)]).view(ROWS, SEQ - 2)
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    first, last = (torch.full((ROWS, 1), number) for number in ends)
    ids, examples = torch.cat([first, ids, last], 1), np.arange(ROWS)
    found = {}
    for unit in ("piece", "word", "span"):
        for count in ("exact", "independent"):
            masking = Masking(0.15, unit, count)

            def mask(epoch, masking=masking):
                mask_rows(ids, pieces, masking, 0, epoch, examples)

            found[f"{unit}, {count}"] = timed(mask, repeats)
    found["numbers alone"] = timed(
        lambda n: draw_numbers(0, n, examples, SEQ), repeats
    )
    from transformers import BertTokenizer as Theirs
    from transformers import DataCollatorForLanguageModeling

    collator = DataCollatorForLanguageModeling(
        Theirs(vocab=tokenizer.get_vocab()), seed=0
    )
    known = [{"input_ids": row} for row in ids.tolist()]
    for row, special in zip(known, pieces.special[ids].int().tolist()):
        row["special_tokens_mask"] = special
    bare = [{"input_ids": row["input_ids"]} for row in known]
    for name, rows in (("", known), (", finds special tokens", bare)):

        def collate(epoch, rows=rows):
            collator([dict(row) for row in rows])

        found[f"transformers{name}"] = timed(collate, repeats)
    metrics = {"rows": ROWS, "seq": SEQ, "microseconds a row": found}
    record_run(ROOT / "book" / "results" / "masking_cost.json", metrics)
    print(
        *(f"{name:36} {value}" for name, value in found.items()), sep="\n"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
