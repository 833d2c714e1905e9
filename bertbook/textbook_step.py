"""A textbook's step

Builds the step of pretraining as it is usually drawn: a padded sentence a
row, one head after another, scores at every position. Each piece gives the
same numbers as this book's, and costs more.

The page: https://bertbook.github.io/bertbook/book/textbook_step.html
"""

# Tangled from book/textbook_step.md (41a9c61f): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Everywhere",
    "HeadByHead",
    "SentenceRows",
    "TextRows",
    "make_batch_by_rows",
    "real_tokens",
    "take_text",
    "tokenizers",
]


# %% book/textbook_step.md#data-a-row-of-text-or-a-row-of-a-file d6dd7f05
import numpy as np

from bertbook.corpora import split_sentences


class TextRows:
    """A sentence a row, tokenised each time it is asked for."""

    def __init__(self, documents: list[str], tokenizer, seq_length: int):
        self.tokenizer, self.seq_length = tokenizer, seq_length
        self.sentences = [
            sentence
            for document in documents
            for sentence in split_sentences(document)
        ]

    def count(self, epoch: int) -> int:
        """How many sentences there are."""
        return len(self.sentences)

    def rows(
        self, epoch: int, examples: np.ndarray
    ) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask`, (rows, seq)."""
        encoding = self.tokenizer(
            [self.sentences[example] for example in examples],
            padding="max_length",
            truncation=True,
            max_length=self.seq_length,
        )
        names = "input_ids", "attention_mask"
        return {name: np.array(encoding[name]) for name in names}


# %% book/textbook_step.md#data-a-row-of-text-or-a-row-of-a-file 85ba952d
from bertbook.token_files import TokenFiles


class SentenceRows:
    """A sentence a row, padded, from token files."""

    def __init__(self, files: TokenFiles, seq_length: int, tokenizer):
        self.files, self.seq_length = files, seq_length
        self.ends = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.pad = tokenizer.pad_token_id
        counts = [len(shard["sentences"]) - 1 for shard in files.shards]
        self.stops = np.cumsum([0, *counts])

    def count(self, epoch: int) -> int:
        """How many sentences there are."""
        return int(self.stops[-1])

    def rows(
        self, epoch: int, examples: np.ndarray
    ) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask`, (rows, seq)."""
        first, last = self.ends
        shape = len(examples), self.seq_length
        ids = np.full(shape, self.pad, np.int64)
        for row, example in zip(ids, examples):
            pieces = self._sentence(example)
            row[: len(pieces) + 2] = first, *pieces, last
        mask = (ids != self.pad).astype(np.int64)
        return {"input_ids": ids, "attention_mask": mask}

    def _sentence(self, example):
        number = np.searchsorted(self.stops, example, side="right") - 1
        shard = self.files.shards[number]
        at = example - self.stops[number]
        start, stop = shard["sentences"][at : at + 2]
        pieces = shard["ids"][start:stop]
        pieces = pieces[pieces != self.ends[1]]  # a document's end
        return pieces[: self.seq_length - 2]


# %% book/textbook_step.md#data-a-row-of-text-or-a-row-of-a-file ca363451
from bertbook.pretraining_text import learn_tokenizer
from bertbook.tokenizer import BertTokenizer


def tokenizers() -> dict[bool, BertTokenizer]:
    """That of BERT, and one of IMDb, by whether the vocabulary is small."""
    large = BertTokenizer.from_pretrained("all-MiniLM-L6-v2")
    return {False: large, True: learn_tokenizer("imdb")}


# %% book/textbook_step.md#data-a-row-of-text-or-a-row-of-a-file 2c0d3bac
from pathlib import Path

from bertbook.pretraining_text import HELD_OUT, Text, corpus_documents
from bertbook.token_files import write_token_files


def take_text(tokenizer, folder: str | Path, documents: int) -> Text:
    """The first `documents` of IMDb, and a tenth as many held out."""
    counts = {"train": documents, HELD_OUT: max(1, documents // 10)}
    parts = [
        write_token_files(
            list(corpus_documents("imdb", split))[:count],
            tokenizer,
            Path(folder) / f"{split}-{count}",
        )
        for split, count in counts.items()
    ]
    return Text(tokenizer, *parts)


# %% book/textbook_step.md#data-a-row-of-text-or-a-row-of-a-file d16583cd
import torch
from torch import Tensor

from bertbook.objectives import make_batch


def make_batch_by_rows(
    rows, pieces, masking, seed: int, epoch: int, examples: np.ndarray
) -> dict[str, Tensor]:
    """What `make_batch` makes, one row at a time."""
    parts = [
        make_batch(rows, pieces, masking, seed, epoch, examples[at:][:1])
        for at in range(len(examples))
    ]
    return {
        name: torch.cat([part[name] for part in parts]) for name in parts[0]
    }


# %% book/textbook_step.md#attention-one-head-after-another 3970dd91
from torch import nn

from bertbook.attention import SelfAttention, attend


class HeadByHead(nn.Module):
    """The weights of a `SelfAttention`, used one head after another.

    With `stacked`, all projections stay one product; without, each head
    has three of its own. Called like `SelfAttention`, without `lengths`.
    """

    def __init__(self, attention: SelfAttention, stacked: bool):
        super().__init__()
        self.num_heads = attention.num_heads
        self.dropout_prob = attention.dropout_prob
        self.output = attention.output
        whole = attention.query_key_value
        matrices = [whole] if stacked else _cut(whole, 3 * self.num_heads)
        self.projections = nn.ModuleList(matrices)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        lengths: None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, None]:
        """What each position gathers; no weights are returned."""
        dropout_p = self.dropout_prob if self.training else 0.0
        mask = None if mask is None else mask[:, 0]
        size = hidden.shape[-1] // self.num_heads
        parts = [
            part
            for project in self.projections
            for part in project(hidden).split(size, -1)
        ]
        heads = [
            attend(*parts[head :: self.num_heads], mask, dropout_p)[0]
            for head in range(self.num_heads)
        ]
        return self.output(torch.cat(heads, -1)), None


# %% book/textbook_step.md#attention-one-head-after-another ca94bbbb
def _cut(linear, count):
    """The rows of a linear map as `count` smaller maps."""
    pieces = zip(linear.weight.chunk(count), linear.bias.chunk(count))
    cut = []
    for weight, bias in pieces:
        small = nn.Linear(weight.shape[1], len(weight))
        small.weight = nn.Parameter(weight.detach().clone())
        small.bias = nn.Parameter(bias.detach().clone())
        cut.append(small)
    return cut


# %% book/textbook_step.md#scores-where-nobody-asks 8ed914da
from bertbook.masking import MaskedRows, spread_labels
from bertbook.objectives import Objective, summed_loss


class Everywhere(Objective):
    """The objective with scores at every position."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum of losses, as `Objective` returns it."""
        bert = self.model.bert
        hidden = bert(
            batch["input_ids"], batch.get("attention_mask")
        ).last_hidden_state
        scores = self.model.mlm_head(hidden, bert.embeddings.tokens.weight)
        rows = MaskedRows(*(batch[name] for name in MaskedRows._fields))
        labels = spread_labels(rows).flatten()
        return {"mlm": summed_loss(scores.flatten(0, 1), labels)}


# %% book/textbook_step.md#real-tokens 533c2d62
def real_tokens(batch: dict[str, Tensor]) -> int:
    """The tokens of a batch that are not padding."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return batch["input_ids"].numel()
