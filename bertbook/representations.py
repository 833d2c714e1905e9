"""What the layers say

Measures the hidden states of a model layer by layer: how far each layer
moves a vector, how narrow a cone all vectors fill, what separates texts by
topic, and where one word becomes two meanings.

The page: https://bertbook.github.io/bertbook/book/representations.html
"""

# Tangled from book/representations.md (a43ffbaf): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "SENSES",
    "anisotropy",
    "effective_dimension",
    "layer_states",
    "neighbour_accuracy",
    "neighbour_chance",
    "principal_components",
    "self_similarity",
    "sense_cosines",
    "step_cosines",
    "word_states",
]


# %% book/representations.md#the-states-of-every-layer 6d6b38dd
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import evaluating


# %% book/representations.md#the-states-of-every-layer e50296ce
def layer_states(
    model: nn.Module,
    tokenizer: BertTokenizer,
    texts: Sequence[str] | Sequence[list[str]],
    max_length: int = 128,
    batch_size: int = 32,
) -> list[Float[Tensor, "layers _ hidden"]]:
    """The hidden states of each text after every layer, without padding.

    `texts` are strings, or lists of words; what exceeds `max_length` tokens
    is cut off. The first of the `layers` is the embeddings, the first and
    last token are [CLS] and [SEP].
    """
    bert = getattr(model, "bert", model)  # no head is needed
    device = next(bert.parameters()).device
    states = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            list(texts[start : start + batch_size]),
            is_split_into_words=not isinstance(texts[0], str),
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        batch = {name: each.to(device) for name, each in batch.items()}
        with evaluating(bert):
            seen = bert(**batch, output_hidden_states=True)
        by_text = torch.stack(seen.hidden_states, dim=1)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        states += [one[:, :n] for one, n in zip(by_text, lengths)]
    return states


# %% book/representations.md#from-layer-to-layer b7a3219e
def step_cosines(
    states: Float[Tensor, "layers n hidden"],
) -> Float[Tensor, "steps n"]:
    """The cosine of each vector with itself one layer earlier.

    There is one step less than there are layers.
    """
    return F.cosine_similarity(states[:-1], states[1:], dim=-1)


# %% book/representations.md#a-narrow-cone 2b33835b
def anisotropy(
    vectors: Float[Tensor, "*layers n hidden"],
) -> Float[Tensor, "*layers"]:
    """The mean cosine over all pairs of vectors (Ethayarajh 2019, 3.4).

    0 for directions without preference, 1 if all point the same way.
    """
    n = vectors.shape[-2]
    total = F.normalize(vectors, dim=-1).sum(dim=-2)
    return (total.square().sum(dim=-1) - n) / (n * (n - 1))


# %% book/representations.md#a-narrow-cone da5c90ac
def effective_dimension(
    vectors: Float[Tensor, "*layers n hidden"],
) -> Float[Tensor, "*layers"]:
    """The participation ratio of the variances along principal axes.

    Between 1 and `hidden`; NaN if all vectors are equal.
    """
    centred = vectors - vectors.mean(dim=-2, keepdim=True)
    scatter = centred.mT @ centred
    trace = scatter.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return trace.square() / scatter.square().sum(dim=(-2, -1))


# %% book/representations.md#the-way-of-cls 70f63a63
def principal_components(
    vectors: Float[Tensor, "n hidden"], count: int = 2
) -> tuple[Float[Tensor, "n count"], Float[Tensor, " count"]]:
    """Coordinates along the first principal components, and their shares.

    A component's largest entry is positive, so that signs are the same on
    every machine. Raises ValueError where there are fewer components.
    """
    if count > min(vectors.shape):
        raise ValueError(
            f"{count} principal components were asked of "
            f"{vectors.shape[0]} vectors of {vectors.shape[1]} numbers, "
            "which have no more than the smaller number; ask for fewer"
        )
    centred = vectors - vectors.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = axes * largest.sign()
    shares = sizes.square() / sizes.square().sum()
    return centred @ axes[:count].T, shares[:count]


# %% book/representations.md#the-way-of-cls d5b152f0
def neighbour_accuracy(
    vectors: Float[Tensor, "n hidden"], labels: Int[Tensor, " n"]
) -> float:
    """How often the nearest other vector has the same label.

    Neighbours that are equally near, up to rounding, count in part.
    """
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(vectors, vectors, compute_mode=exact)
    distances.fill_diagonal_(float("inf"))
    rounding = 1e-5 * vectors.norm(dim=-1).mean()
    nearest = distances.min(dim=1, keepdim=True).values + rounding
    votes = (distances <= nearest).float()
    same = labels[:, None] == labels
    return ((votes * same).sum(dim=1) / votes.sum(dim=1)).mean().item()


# %% book/representations.md#the-way-of-cls 82c177e9
def neighbour_chance(labels: Int[Tensor, " n"]) -> float:
    """How often any other vector has the same label, on average."""
    counts, n = labels.bincount(), len(labels)
    return ((counts * (counts - 1)).sum() / (n * (n - 1))).item()


# %% book/representations.md#one-word-two-meanings da5e06cf
SENSES = {
    "bank": {
        "money": [
            "The bank refused to lend him any more money.",
            "She opened an account at the bank on Friday.",
            "Two men robbed a bank near the station.",
            "My bank charges a fee for every transfer.",
            "His father worked for a large bank in Frankfurt.",
            "The central bank raised interest rates again.",
        ],
        "river": [
            "We sat on the bank and watched the boats.",
            "Reeds grow along the muddy bank of the stream.",
            "He pulled the canoe up onto the bank.",
            "The flood washed away part of the bank.",
            "An otter slept on the grassy bank below the bridge.",
            "They fished from the bank until it grew dark.",
        ],
    },
    "bat": {
        "animal": [
            "A bat flew out of the cave at dusk.",
            "The bat hangs upside down while it sleeps.",
            "This tiny bat feeds on moths and mosquitoes.",
            "They found a wounded bat in the attic.",
            "A bat finds its prey by the echo of its cries.",
            "The wings of a bat are made of thin skin.",
        ],
        "sport": [
            "He swung the bat and missed the ball.",
            "The batsman raised his bat to the crowd.",
            "She bought a new bat for the cricket season.",
            "His bat broke on the first pitch.",
            "The coach showed her how to grip the bat.",
            "A wooden bat must be oiled before it is used.",
        ],
    },
}


# %% book/representations.md#one-word-two-meanings b37dbb70
SENSES |= {
    "spring": {
        "season": [
            "The garden looks lovely in spring.",
            "Last spring we planted three apple trees.",
            "Birds return from the south every spring.",
            "A cold spring delayed the harvest.",
            "Exams are held in spring and in autumn.",
            "The snow melts when spring comes.",
        ],
        "coil": [
            "The spring in the lock has snapped.",
            "A steel spring pushes the lever back.",
            "Each spring of the mattress is wrapped in cloth.",
            "He stretched the spring until it lost its shape.",
            "The toy jumps because of a hidden spring.",
            "Compress the spring and then release the catch.",
        ],
    },
    "light": {
        "lamp": [
            "The light in the kitchen was still on.",
            "Bright light poured through the window.",
            "Please switch off the light before you leave.",
            "Plants need light to make sugar.",
            "A beam of light crossed the dark stage.",
            "The lens bends the light towards its focus.",
        ],
        "weight": [
            "The suitcase was light enough to carry.",
            "He packed a light tent for the climb.",
            "A light bicycle is faster uphill.",
            "Her new laptop is thin and light.",
            "Feathers are so light that they float.",
            "The frame is strong but very light.",
        ],
    },
}


# %% book/representations.md#one-word-two-meanings 53f93aab
SENSES |= {
    "pitch": {
        "field": [
            "Fans ran onto the pitch after the final whistle.",
            "The players left the pitch in heavy rain.",
            "A new pitch was laid at the stadium in June.",
            "The referee inspected the frozen pitch at noon.",
            "He was carried off the pitch with a broken leg.",
            "Both teams walked around the pitch to thank the crowd.",
        ],
        "sound": [
            "The pitch of her voice rose as she spoke.",
            "A string that is tighter has a higher pitch.",
            "He cannot sing a note at the right pitch.",
            "The pitch of the siren fell as it passed us.",
            "Dogs hear sounds of a very high pitch.",
            "Tune the piano to the pitch of the oboe.",
        ],
    },
    "seal": {
        "animal": [
            "A seal lay on the rocks in the sun.",
            "The seal dived under the ice to catch fish.",
            "We saw a grey seal swimming in the harbour.",
            "A mother seal knows her pup by its smell.",
            "The bear waited for a seal to come up for air.",
            "Every seal in the colony had moved to the beach.",
        ],
        "stamp": [
            "The letter carried the seal of the king.",
            "A broken seal means that the jar was opened.",
            "Press the seal into the hot wax.",
            "The notary put her seal on the contract.",
            "Check the rubber seal around the door for leaks.",
            "The document bears the seal of the ministry.",
        ],
    },
}


# %% book/representations.md#one-word-two-meanings 7660d66d
def word_states(
    model: nn.Module,
    tokenizer: BertTokenizer,
    texts: Sequence[str],
    word: str,
) -> Float[Tensor, "layers texts hidden"]:
    """The hidden states of `word` in each text after every layer.

    Raises ValueError where the word, as one token, is not in a text exactly
    once.
    """
    found = []
    for text, states in zip(texts, layer_states(model, tokenizer, texts)):
        tokens = tokenizer.tokenize(text)
        if tokens.count(word) != 1:
            raise ValueError(
                f"{text!r} has the token {word!r} {tokens.count(word)} "
                "times, and once is expected; choose another text"
            )
        found.append(states[:, 1 + tokens.index(word)])  # after [CLS]
    return torch.stack(found, dim=1)


# %% book/representations.md#one-word-two-meanings 79cc549e
def self_similarity(
    occurrences: Float[Tensor, "*layers n hidden"],
    vectors: Float[Tensor, "*layers m hidden"],
) -> Float[Tensor, "*layers"]:
    """Mean cosine between occurrences of a word, less the anisotropy.

    `vectors` are tokens of many texts. Ethayarajh (2019), 3.3 and 3.4.
    """
    return anisotropy(occurrences) - anisotropy(vectors)


# %% book/representations.md#one-word-two-meanings f50d2582
def sense_cosines(
    vectors: Float[Tensor, "*layers n hidden"], senses: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "*layers"], Float[Tensor, "*layers"]]:
    """The mean cosine of pairs within a sense, and of pairs across."""
    unit = F.normalize(vectors, dim=-1)
    cosines = unit @ unit.mT
    same = senses[:, None] == senses
    within = same & ~torch.eye(len(senses), dtype=torch.bool)
    return cosines[..., within].mean(-1), cosines[..., ~same].mean(-1)
