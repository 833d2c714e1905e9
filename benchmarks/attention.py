"""Time of attention's two paths against the sequence length.

    python benchmarks/attention.py [ROUNDS]

One self-attention layer (hidden size 256, 4 heads), no dropout, forward and
backward, 4,096 tokens at a time in sequences of each length, one thread.
The paths take turns; the best of ROUNDS (5) counts, in CPU time. Writes
book/results/attention_cost.json.
"""

import sys
import time
from pathlib import Path

import torch

from bertbook.attention import SelfAttention
from bertbook.config import BertConfig
from bertbook.reproducibility import record_run

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "results" / "attention_cost.json"
LENGTHS = (64, 128, 256, 512, 1024, 2048)
TOKENS = 4096


def seconds(layer, hidden):
    """CPU seconds of one forward and backward pass."""
    layer.zero_grad()
    start = time.process_time()
    layer(hidden)[0].sum().backward()
    return time.process_time() - start


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = SelfAttention(
        BertConfig(
            hidden_size=256,
            num_attention_heads=4,
            attention_probs_dropout_prob=0.0,
        )
    )
    times = {"explicit": [], "fused": []}
    for length in LENGTHS:
        hidden = torch.randn(TOKENS // length, length, 256)
        best = dict.fromkeys(times, float("inf"))
        for turn in range(rounds + 1):
            for name in times:
                layer.explicit = name == "explicit"
                taken = seconds(layer, hidden)
                if turn:  # the first turn warms up
                    best[name] = min(best[name], taken)
        for name, taken in best.items():
            times[name].append(taken / TOKENS * 1e6)
        print(length, {name: times[name][-1] for name in times}, flush=True)
    record_run(
        RECORD,
        {
            "hidden size": 256,
            "heads": 4,
            "tokens": TOKENS,
            "rounds": rounds,
            "lengths": LENGTHS,
            "microseconds a token": times,
        },
    )


if __name__ == "__main__":
    main()
