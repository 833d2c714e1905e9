"""Five tasks to call

Fills masks, classifies texts, tags words, answers questions and turns texts
into vectors: five classes that take one text or a stream of them.

The page: https://bertbook.github.io/bertbook/book/inference.html
"""

# Tangled from book/inference.md (9ac7043a): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Classifier",
    "Embedder",
    "FillMask",
    "QuestionAnswerer",
    "Tagger",
    "fill_in",
    "mean_states",
    "probabilities",
    "saved_threshold",
]


# %% book/inference.md#vectors aaf253d8
import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bertbook.batching import Predictor, encode_rows, own_rows
from bertbook.model import BertModel


# %% book/inference.md#vectors f1df7444
def mean_states(
    states: Float[Tensor, "batch seq hidden"], mask: Tensor
) -> Float[Tensor, "batch hidden"]:
    """The mean of each row's states where `mask`, (batch, seq), is 1."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


# %% book/inference.md#vectors faecadfb
class Embedder(Predictor):
    """One vector for each text, float32: the mean of its last states.

    With `pooling` "cls" the first state. `normalize` makes the length 1.
    Many texts give an array (texts, hidden). Long texts are cut.
    """

    model_class = BertModel
    changes = {"add_pooling_layer": False}

    def __init__(
        self, model, tokenizer, *, pooling="mean", normalize=True, **options
    ):
        model = getattr(model, "bert", model)  # no head is needed
        super().__init__(model, tokenizer, **options)
        if pooling not in ("mean", "cls"):
            raise ValueError(
                f"pooling={pooling!r} is not known; give 'mean' or 'cls'"
            )
        self.pooling, self.normalize = pooling, normalize

    def rows(self, texts):
        """One row for each text."""
        return encode_rows(self.tokenizer, texts, self.max_length)

    def scores(self, batch, rows):
        """The vectors of a batch."""
        states = self.model(**batch).last_hidden_state.float()
        vectors = states[:, 0]
        if self.pooling == "mean":
            vectors = mean_states(states, batch["attention_mask"])
        if self.normalize:
            vectors = F.normalize(vectors, dim=-1)
        return list(vectors.cpu().numpy())

    def result(self, text, rows, scores):
        """The vector of the only row."""
        return scores[0]

    def __call__(self, texts, **options):
        """The vector of one text, or an array of many."""
        found = super().__call__(texts, **options)
        if isinstance(texts, str):
            return found
        size = self.model.config.hidden_size
        return np.array(found, dtype=np.float32).reshape(-1, size)


# %% book/inference.md#classes 38c719a1
from bertbook.heads import BertForSequenceClassification


def probabilities(
    logits: Float[Tensor, "batch classes"], problem_type: str | None = None
) -> Float[Tensor, "batch classes"]:
    """Softmax; logistic where several may hold; a rating as it is."""
    if problem_type == "multi_label_classification":
        return logits.sigmoid()
    return logits if logits.shape[-1] == 1 else logits.softmax(-1)


# %% book/inference.md#classes 8c201f84
class Classifier(Predictor):
    """The class of a text or of a pair: `label`, `score`, all `scores`.

    `long` texts are cut ("truncate"), or read in windows that share
    `stride` tokens, whose answers are averaged ("average").
    """

    model_class = BertForSequenceClassification
    pairs = None

    def __init__(
        self, model, tokenizer, *, long="truncate", stride=0, **options
    ):
        super().__init__(model, tokenizer, **options)
        if long not in ("truncate", "average"):
            raise ValueError(
                f"long={long!r} is not known; give 'truncate' or 'average'"
            )
        self.stride = stride if long == "average" else None
        self.labels = list(model.config.id2label.values())

    def rows(self, texts):
        """One row for each text, or its windows."""
        how = self.max_length, True, self.stride
        return encode_rows(self.tokenizer, texts, *how)

    def scores(self, batch, rows):
        """The probabilities of a batch."""
        logits = self.model(**batch).logits.float()
        kind = self.model.config.problem_type
        return list(probabilities(logits, kind).cpu().numpy())

    def result(self, text, rows, scores):
        """The mean over windows, each with the weight of its tokens."""
        sizes = [len(row["input_ids"]) for row in rows]
        mean = np.average(scores, axis=0, weights=sizes)
        named = dict(zip(self.labels, mean.tolist()))
        best = max(named, key=named.get)
        return {"label": best, "score": named[best], "scores": named}


# %% book/inference.md#masks fcf61832
from bertbook.heads import BertForMaskedLM


def fill_in(text: str, mask: str, place: int, token: str) -> str:
    """`text` with `token` for its mask number `place`, from 0.

    A token that continues a word is joined to what stands before it.
    """
    parts = text.split(mask)
    left = mask.join(parts[: place + 1])
    right = mask.join(parts[place + 1 :])
    if token.startswith("##"):
        left, token = left.rstrip(), token[2:]
    return left + token + right


# %% book/inference.md#masks 95ebc8b6
def _check_masks(predictor, text, ids):
    """Refuse a text without a mask, or too long to be read whole."""
    mask, most = predictor.tokenizer.mask_token, predictor.max_length
    if predictor.tokenizer.mask_token_id not in ids:
        raise ValueError(
            f"{text[:50]!r} holds no {mask}, and there is nothing to "
            f"guess; write {mask} where a word is missing"
        )
    if len(ids) > most:
        raise ValueError(
            f"{text[:50]!r} has {len(ids)} tokens, and {most} are read; "
            "shorten it around its mask"
        )


# %% book/inference.md#masks 38e8950a
def _guesses(tokenizer, text, place, scores, ids):
    """The best tokens for one mask of a text."""
    mask = tokenizer.mask_token
    return [
        {
            "token": token,
            "score": score,
            "text": fill_in(text, mask, place, token),
        }
        for token, score in zip(
            tokenizer.convert_ids_to_tokens(ids), scores
        )
    ]


# %% book/inference.md#masks bf8cdc0d
class FillMask(Predictor):
    """The best tokens for each [MASK]: `token`, `score`, filled `text`.

    A list of them, best first; of such lists if a text has several masks,
    which are guessed one by one. The option of a call is `top_k=5`.
    """

    model_class = BertForMaskedLM

    def rows(self, texts):
        """One row for each text. Raises ValueError without a mask."""
        rows = encode_rows(
            self.tokenizer, texts, self.max_length, truncation=False
        )
        for text, row in zip(texts, rows):
            _check_masks(self, text, row["input_ids"])
        return rows

    def scores(self, batch, rows, top_k=5):
        """For each row the probabilities and ids at its masks."""
        if top_k < 1:
            raise ValueError(f"top_k={top_k} is no guess; give 1 or more")
        masked = batch["input_ids"] == self.tokenizer.mask_token_id
        hidden = self.model.bert(**batch).last_hidden_state[masked]
        table = self.model.bert.embeddings.tokens.weight
        logits = self.model.mlm_head(hidden, table).float()
        ids = sorted(self.tokenizer.get_vocab().values())
        ids = batch["input_ids"].new_tensor(ids)  # of tokens
        ids = ids[ids < len(table)]  # that have a row
        best = logits.softmax(-1)[:, ids].topk(min(top_k, len(ids)))
        counts = masked.sum(1).tolist()
        both = best.values.cpu(), ids[best.indices].cpu()
        return list(zip(*(each.split(counts) for each in both)))

    def result(self, text, rows, scores):
        """Dicts for one mask, lists of them for several."""
        best = zip(*(each.tolist() for each in scores[0]))
        found = [
            _guesses(self.tokenizer, text, place, *both)
            for place, both in enumerate(best)
        ]
        return found[0] if len(found) == 1 else found


# %% book/inference.md#entities 265c4acd
from bertbook.heads import BertForTokenClassification
from bertbook.losses import IGNORED
from bertbook.token_tagging import decode_entities, split_words, window_rows


class Tagger(Predictor):
    """The entities of a text: `entity`, `text`, `start`, `end`, `score`.

    Long texts are read in windows that share `stride` tokens, by default
    a quarter of `max_length`.
    """

    model_class = BertForTokenClassification

    def __init__(self, model, tokenizer, *, stride=None, **options):
        super().__init__(model, tokenizer, **options)
        self.stride = self.max_length // 4 if stride is None else stride
        self.labels = list(model.config.id2label.values())

    def rows(self, texts):
        """The windows of the words of each text."""
        words = [[t[a:b] for a, b in split_words(t)] for t in texts]
        rows = window_rows(
            self.tokenizer, words, self.max_length, self.stride
        )
        return own_rows(rows, [row["example"] for row in rows])

    def scores(self, batch, rows):
        """For each row its words, with their best tags."""
        chances = self.model(**batch).logits.float().softmax(-1)
        score, tag = (each.tolist() for each in chances.max(-1))
        found = zip((row["words"] for row in rows), score, tag)
        return [
            [word for word in zip(*row) if word[0] != IGNORED]
            for row in found
        ]

    def result(self, text, rows, scores):
        """What `decode_entities` makes of all windows together."""
        spans = split_words(text)
        tags, sure = ["O"] * len(spans), [0.0] * len(spans)
        for word, score, tag in (each for row in scores for each in row):
            tags[word], sure[word] = self.labels[tag], score
        return decode_entities(text, spans, tags, sure)


# %% book/inference.md#answers 97a088dc
from bertbook.checkpoint_files import find_checkpoint
from bertbook.heads import BertForQuestionAnswering
from bertbook.question_answering import (
    answer_windows,
    rank_guesses,
    window_spans,
)
from bertbook.tokenizer_files import read_object


def saved_threshold(source) -> float:
    """The threshold in the folder of a trained reader; else minus infinity.

    Raises ValueError where `held_out.json` is damaged.
    """
    path = find_checkpoint(source) / "held_out.json"
    if not path.is_file():
        return -np.inf
    found = read_object(path).get("threshold", -np.inf)
    if not isinstance(found, (float, int)) or np.isnan(found):
        raise ValueError(
            f"{path} has the threshold {found!r:.40}, and a number is "
            "expected; delete the file, and give a threshold"
        )
    return found


# %% book/inference.md#answers 5e3cb0f0
def _best_of_all(context, scores, threshold):
    """The best span of all windows, or "" if its margin is too small."""
    (best,) = rank_guesses(context, scores)
    if best.margin <= threshold:
        best = best._replace(text="", start=0, end=0)
    return dict(zip(("answer", "start", "end", "score"), best))


# %% book/inference.md#answers 8949dcd4
class QuestionAnswerer(Predictor):
    """`answer`, `start`, `end` and `score` for (question, context).

    An answer of at most `longest` tokens, "" where its score is not above
    the `threshold`, which `from_pretrained` finds. Long contexts are read
    in windows that share `stride` tokens (default: `max_length // 4`).
    """

    model_class = BertForQuestionAnswering
    pairs = True

    def __init__(
        self,
        model,
        tokenizer,
        *,
        stride=None,
        longest=30,
        threshold=-np.inf,
        **options,
    ):
        super().__init__(model, tokenizer, **options)
        self.stride = self.max_length // 4 if stride is None else stride
        self.longest, self.threshold = longest, threshold

    @classmethod
    def from_pretrained(cls, source, **options):
        """As of any `Predictor`, with the `saved_threshold`."""
        options.setdefault("threshold", saved_threshold(source))
        return super().from_pretrained(source, **options)

    def rows(self, texts):
        """The windows of each context beside its question."""
        how = self.tokenizer, self.max_length, self.stride
        windows = answer_windows(*zip(*texts), *how)
        return own_rows(windows, [each.example for each in windows])

    def scores(self, batch, rows):
        """For each window what no answer scores, and the best span."""
        output = self.model(**batch)
        ends = output.start_logits.float(), output.end_logits.float()
        ends = (each.cpu() for each in ends)
        return window_spans(rows, *ends, self.longest)

    def result(self, text, rows, scores):
        """The best span of all windows, or none."""
        return _best_of_all(text[1], scores, self.threshold)
