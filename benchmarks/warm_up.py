"""Does a deep stack learn without warm-up? The encoder chapter's task.

    python benchmarks/warm_up.py [SEEDS]

Runs `learn_to_reverse`, as it stands in book/encoder.md, for SEEDS seeds
(8) and each place of the norms, and writes book/results/warm_up.json.
"""

import sys
from pathlib import Path

import torch

from bertbook.chapters import parse_chapter, parser_config, read_source
from bertbook.reproducibility import record_run

ROOT = Path(__file__).resolve().parent.parent
PAGE = "book/encoder.md"
STEPS = 400
EVERY = 10  # steps whose mean loss is one point of a curve
RUNS = {
    "post-LN": ("post", 0),
    "post-LN, warm-up": ("post", 200),
    "pre-LN": ("pre", 0),
}


def page_functions():
    """The exported code of the page and the two functions of the task."""
    chapter = parse_chapter(
        PAGE, read_source(ROOT, PAGE), parser_config(ROOT)
    )
    space = {"__name__": "encoder", "torch": torch}
    for cell in chapter.cells:
        if "tangle" in cell.options:
            exec(cell.text, space)
        for name in ("fresh_encoder", "learn_to_reverse"):
            if cell.text.startswith(f"def {name}("):
                definition = cell.text.partition("\n\n\n")[0]
                exec(definition, space)
    return space


def main():
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    learn = page_functions()["learn_to_reverse"]
    curves, first = {}, {}
    for name, options in RUNS.items():
        runs = torch.tensor(
            [
                learn(*options, seed=seed, steps=STEPS)
                for seed in range(seeds)
            ]
        )
        first[name] = runs[0, :5].tolist()
        means = runs.unflatten(1, (-1, EVERY)).mean(-1)
        curves[name] = [
            [round(loss, 3) for loss in curve] for curve in means.tolist()
        ]
        print(name, [curve[-1] for curve in curves[name]], flush=True)
    metrics = {"steps": STEPS, "every": EVERY, "seeds": seeds}
    metrics |= {"curves": curves, "first losses of seed 0": first}
    record_run(ROOT / "book" / "results" / "warm_up.json", metrics)


if __name__ == "__main__":
    main()
