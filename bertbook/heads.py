"""Heads

Puts a task on top of BERT: guessing masked words, telling whether two
sentences follow each other, and classifying texts, words and spans.

The page: https://bertbook.github.io/bertbook/book/heads.html
"""

# Tangled from book/heads.md (ca222fc8): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertWithHead",
    "HeadOutput",
    "MaskedLMHead",
    "PreTrainingOutput",
    "QuestionAnsweringOutput",
    "masked_lm",
]


# %% book/heads.md#what-they-share 29e62329
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bertbook.checkpoints import PreTrainedModel
from bertbook.config import BertConfig
from bertbook.embeddings import Dropout
from bertbook.encoder import ACTIVATIONS
from bertbook.losses import (
    IGNORED,
    check_labels,
    classification_loss,
    cross_entropy,
    sequence_loss,
)
from bertbook.model import BertModel, BertModelOutput


# %% book/heads.md#what-they-share 57182e88
class BertWithHead(PreTrainedModel):
    """BERT as `bert`, and a head that each subclass defines in `head`."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        **labels: Tensor | None,
    ) -> tuple:
        """The inputs of `BertModel.forward`, and the labels of `head`."""
        outputs = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            output_attentions,
            output_hidden_states,
        )
        return self.head(outputs, **labels)


# %% book/heads.md#what-they-share 3057fa24
class HeadOutput(NamedTuple):
    """What a model with one head returns."""

    loss: Tensor | None  # None without labels
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


# %% book/heads.md#masked-words 61b313a4
class MaskedLMHead(nn.Module):
    """A layer, then scores of every piece by its embedding and a bias."""

    def __init__(self, config: BertConfig):
        super().__init__()
        size = config.hidden_size
        self.dense = nn.Linear(size, size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self,
        hidden: Float[Tensor, "*cases hidden"],
        decoder: Float[Tensor, "vocab hidden"],
    ) -> Float[Tensor, "*cases vocab"]:
        """Scores of the whole vocabulary; `decoder` is the tied matrix."""
        hidden = self.norm(self.activation(self.dense(hidden)))
        return F.linear(hidden, decoder, self.bias)


# %% book/heads.md#masked-words 9025ea36
def masked_lm(
    model: "BertForMaskedLM | BertForPreTraining",
    hidden: Float[Tensor, "batch seq hidden"],
    labels: Tensor | None,
) -> tuple[Float[Tensor, "*cases vocab"], Float[Tensor, ""] | None]:
    """Scores and loss: with labels only where a label stands.

    The scores are then (masked, vocab), in the order of the flattened
    batch; without labels they are (batch, seq, vocab), and no loss.
    """
    decoder = model.bert.embeddings.tokens.weight
    if labels is None:
        return model.mlm_head(hidden, decoder), None
    check_labels(labels, [hidden.shape[:2]], len(decoder))
    chosen = labels != IGNORED
    logits = model.mlm_head(hidden[chosen], decoder)
    return logits, cross_entropy(logits, labels[chosen])


# %% book/heads.md#masked-words 60735e28
class BertForMaskedLM(BertWithHead):
    """Guesses masked pieces (Devlin et al., 2019, section 3.1, task 1)."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.mlm_head = MaskedLMHead(config)
        self.initialise()

    def head(
        self, outputs: BertModelOutput, labels: Tensor | None = None
    ) -> HeadOutput:
        """`labels`, (batch, seq): the masked piece, -100 elsewhere."""
        logits, loss = masked_lm(self, outputs.last_hidden_state, labels)
        return HeadOutput(loss, logits, *outputs[2:])


# %% book/heads.md#next-sentences 895ed921
class BertForNextSentencePrediction(BertWithHead):
    """Tells whether the second segment follows the first (task 2)."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config)
        self.nsp_head = nn.Linear(config.hidden_size, 2)
        self.initialise()

    def head(
        self, outputs: BertModelOutput, labels: Tensor | None = None
    ) -> HeadOutput:
        """`labels`, (batch,): 0 it follows, 1 it is a random one."""
        logits = self.nsp_head(outputs.pooler_output)
        return HeadOutput(
            classification_loss(logits, labels), logits, *outputs[2:]
        )


# %% book/heads.md#next-sentences fe3be2b5
class PreTrainingOutput(NamedTuple):
    """What `BertForPreTraining` returns."""

    loss: Tensor | None  # the sum of both, or of the one with labels
    prediction_logits: Tensor
    seq_relationship_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


# %% book/heads.md#next-sentences 52cdbc9f
class BertForPreTraining(BertWithHead):
    """Both objectives of pretraining (Devlin et al., 2019, section 3.1)."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config)
        self.mlm_head = MaskedLMHead(config)
        self.nsp_head = nn.Linear(config.hidden_size, 2)
        self.initialise()

    def head(
        self,
        outputs: BertModelOutput,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
    ) -> PreTrainingOutput:
        """`labels` as `BertForMaskedLM` takes them; `next_sentence_label`,
        (batch,), is 0 where the second segment follows, else 1."""
        scores, masked = masked_lm(self, outputs.last_hidden_state, labels)
        relation = self.nsp_head(outputs.pooler_output)
        follows = classification_loss(
            relation, next_sentence_label, "next_sentence_label"
        )
        losses = [each for each in (masked, follows) if each is not None]
        loss = sum(losses) if losses else None
        return PreTrainingOutput(loss, scores, relation, *outputs[2:])


# %% book/heads.md#texts 08e1c3b7
def _classifier_dropout(config):
    """Dropout before a classifier: its own, or that of the layers."""
    if config.classifier_dropout is None:
        return Dropout(config.hidden_dropout_prob)
    return Dropout(config.classifier_dropout)


# %% book/heads.md#texts 7efde6f5
class BertForSequenceClassification(BertWithHead):
    """Classifies or rates a text by its pooled vector (section 4.1)."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.initialise()

    def head(
        self, outputs: BertModelOutput, labels: Tensor | None = None
    ) -> HeadOutput:
        """`labels` as `sequence_loss` takes them."""
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = sequence_loss(logits, labels, self.config.problem_type)
        return HeadOutput(loss, logits, *outputs[2:])


# %% book/heads.md#words 82b1d060
class BertForTokenClassification(BertWithHead):
    """Classifies every position (section 5.3)."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.initialise()

    def head(
        self, outputs: BertModelOutput, labels: Tensor | None = None
    ) -> HeadOutput:
        """`labels`, (batch, seq): the class, -100 where none is asked."""
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        return HeadOutput(
            classification_loss(logits, labels), logits, *outputs[2:]
        )


# %% book/heads.md#spans f83daa52
class QuestionAnsweringOutput(NamedTuple):
    """What `BertForQuestionAnswering` returns."""

    loss: Tensor | None  # the mean of the two ends'
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


# %% book/heads.md#spans c66ee0d4
class BertForQuestionAnswering(BertWithHead):
    """Finds the span that answers a question (section 4.2)."""

    def __init__(self, config: BertConfig):
        if config.num_labels != 2:  # here always a start and an end
            config = replace(
                config, num_labels=2, labels=None, problem_type=None
            )
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.span_head = nn.Linear(config.hidden_size, 2)
        self.initialise()

    def head(
        self,
        outputs: BertModelOutput,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> QuestionAnsweringOutput:
        """The first and last position of the answer, (batch,), or -100."""
        start, end = self.span_head(outputs.last_hidden_state).unbind(-1)
        if (start_positions is None) != (end_positions is None):
            raise ValueError(
                "start_positions and end_positions were not both given; "
                "pass both for a loss, or neither"
            )
        loss = None
        if start_positions is not None:
            names = "start_positions", "end_positions"
            first = classification_loss(start, start_positions, names[0])
            last = classification_loss(end, end_positions, names[1])
            loss = (first + last) / 2
        return QuestionAnsweringOutput(loss, start, end, *outputs[2:])
