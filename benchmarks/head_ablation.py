"""Switch off each head of all-MiniLM-L6-v2, and more and more of them.

    python benchmarks/head_ablation.py

The task is to find the first sentence of each BBC News article by its
title. Single heads are switched off on the validation articles. The order
by their cost there is then followed on the test articles, a few heads more
at each step, beside random orders. Writes book/results/head_ablation.json.
"""

from pathlib import Path

import torch

from bertbook.attention_heads import (
    ablate_heads,
    matching_losses,
    mean_vectors,
)
from bertbook.corpora import load_corpus
from bertbook.model import BertModel
from bertbook.reproducibility import record_run
from bertbook.tokenizer import BertTokenizer

NAME = "all-MiniLM-L6-v2"
RESULT = Path(__file__).resolve().parent.parent / "book/results"
STEPS = [0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 66, 72]
RANDOM_ORDERS = 3


def articles(split):
    news = load_corpus("bbc_news", split)[:210]
    return news["title"], [parts[0][0] for parts in news["sentences"]]


def by_layer(heads):
    grouped = {}
    for layer, head in heads:
        grouped.setdefault(layer, []).append(head)
    return grouped


def losses_without(model, tokenizer, pairs, heads):
    titles, firsts = pairs
    with ablate_heads(model, by_layer(heads)):
        vectors = mean_vectors(model, tokenizer, [*titles, *firsts])
    return matching_losses(vectors[: len(titles)], vectors[len(titles) :])


def interval(differences, rounds=2000):
    generator = torch.Generator().manual_seed(0)
    shape = rounds, len(differences)
    drawn = torch.randint(len(differences), shape, generator=generator)
    means = differences[drawn].mean(1)
    return torch.quantile(means, torch.tensor([0.025, 0.975])).tolist()


def rounded(values):
    return [round(value, 4) for value in values]


def single_heads(model, tokenizer, pairs):
    intact = losses_without(model, tokenizer, pairs, [])
    heads = []
    for layer in range(model.config.num_hidden_layers):
        for head in range(model.config.num_attention_heads):
            losses = losses_without(
                model, tokenizer, pairs, [(layer, head)]
            )
            change = losses - intact
            low, high = interval(change)
            found = rounded([change.mean().item(), low, high])
            heads.append({"layer": layer, "head": head, "change": found})
            print(layer, head, *found, flush=True)
    return {"intact": round(intact.mean().item(), 4), "heads": heads}


def more_and_more(model, tokenizer, pairs, order):
    return rounded(
        losses_without(model, tokenizer, pairs, order[:step]).mean().item()
        for step in STEPS
    )


def main():
    torch.manual_seed(0)
    model = BertModel.from_pretrained(NAME)
    tokenizer = BertTokenizer.from_pretrained(NAME)
    validation, test = articles("validation"), articles("test")
    metrics = {"articles": len(validation[0]), "steps": STEPS}
    metrics |= single_heads(model, tokenizer, validation)
    cheapest = sorted(metrics["heads"], key=lambda row: row["change"][0])
    order = [(row["layer"], row["head"]) for row in cheapest]
    metrics["cheapest_first"] = more_and_more(model, tokenizer, test, order)
    metrics["dearest_first"] = more_and_more(
        model, tokenizer, test, order[::-1]
    )
    metrics["random_orders"] = []
    for seed in range(RANDOM_ORDERS):
        generator = torch.Generator().manual_seed(seed)
        mixed = [order[i] for i in torch.randperm(72, generator=generator)]
        metrics["random_orders"].append(
            more_and_more(model, tokenizer, test, mixed)
        )
    print(metrics["cheapest_first"], metrics["random_orders"])
    record_run(RESULT / "head_ablation.json", metrics)


if __name__ == "__main__":
    main()
