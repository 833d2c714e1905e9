"""Looking inside

Records what a model computes on a text, every attention weight and every
hidden state, and leaves the model as it was. Shows the weights of each head
on a page.

The page: https://bertbook.github.io/bertbook/book/inspection.html
"""

# Tangled from book/inspection.md (d3471208): edit it there and run
# `make tangle`, or edit it here and run `make sync`.

__all__ = [
    "Captured",
    "HeadBrowser",
    "capture",
    "head_browser",
]


# %% book/inspection.md#looking-changes-what-you-see c14784cc
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bertbook.tokenizer import BertTokenizer
from bertbook.training_loop import evaluating


class Captured(NamedTuple):
    """What a model computed on a batch of texts, padding included."""

    tokens: list[list[str]]  # for each text, one string a position
    input_ids: Tensor  # (batch, seq)
    mask: Tensor  # (batch, seq), true at tokens, false at padding
    attentions: Tensor  # (layers, batch, heads, queries, keys)
    hidden_states: Tensor  # (layers + 1, batch, seq, hidden)


# %% book/inspection.md#looking-changes-what-you-see 574e4d7a
def _inputs(tokenizer, text, text_pair, device):
    if not isinstance(text, Mapping):
        single = isinstance(text, str)
        texts = [text] if single else list(text)
        pairs = [text_pair] if isinstance(text_pair, str) else text_pair
        text = tokenizer(texts, pairs, padding=True, return_tensors="pt")
    names = ("input_ids", "attention_mask", "token_type_ids")
    found = {name: text[name] for name in names if name in text}
    if not isinstance(found.get("input_ids"), Tensor):
        raise TypeError(
            "the batch holds no tensor of input_ids; call the tokenizer "
            'with return_tensors="pt", or hand over the texts themselves'
        )
    return {name: column.to(device) for name, column in found.items()}


# %% book/inspection.md#looking-changes-what-you-see eba5b19f
def capture(
    model: nn.Module,
    tokenizer: BertTokenizer,
    text: str | list[str] | Mapping,
    text_pair: str | list[str] | None = None,
) -> Captured:
    """All attention weights and hidden states of `model` on `text`.

    `model` is a `BertModel` or has one as `model.bert`; it is in the end
    what it was. `text` is a text, a list of texts, or a batch of tensors
    that `tokenizer` returned. Raises TypeError where such a batch holds
    lists, and ValueError where a text is longer than the positions.
    """
    bert = getattr(model, "bert", model)
    device = next(bert.parameters()).device
    inputs = _inputs(tokenizer, text, text_pair, device)
    with evaluating(bert):
        seen = bert(
            **inputs, output_attentions=True, output_hidden_states=True
        )
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    return Captured(
        [tokenizer.convert_ids_to_tokens(row) for row in ids],
        ids,
        mask,
        torch.stack(seen.attentions),
        torch.stack(seen.hidden_states),
    )


# %% book/inspection.md#a-head-browser 0f4ee4df
import json
from dataclasses import dataclass, field
from html import escape


def _cell(weight):
    percent = (weight + 5) // 10 or ""
    shade = round((weight / 1000) ** 0.5, 3)
    return f'<td style="--shade:{shade}">{percent}</td>'


def _table(tokens, weights):
    words = [escape(token) for token in tokens]
    across = "".join(
        f'<th scope="col"><span>{word}</span></th>' for word in words
    )
    size = len(words)
    rows = "".join(
        f'<tr><th scope="row">{word}</th>'
        + "".join(map(_cell, weights[i * size : (i + 1) * size]))
        + "</tr>"
        for i, word in enumerate(words)
    )
    return (
        '<div class="hb-scroll" tabindex="0" role="group" '
        'aria-label="Attention weights, in per cent"><table><thead><tr>'
        f"<td></td>{across}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


# %% book/inspection.md#a-head-browser ddb3b3c9
def _buttons(layers, heads):
    def button(layer, head):
        chosen = layer == head == 0
        return (
            f'<button type="button" role="radio" tabindex="{chosen - 1}" '
            f'aria-checked="{str(chosen).lower()}" '
            f'aria-label="layer {layer}, head {head}"></button>'
        )

    numbers = "".join(
        f'<span aria-hidden="true">{head}</span>' for head in range(heads)
    )
    rows = "".join(
        f'<span aria-hidden="true">{layer}</span>'
        + "".join(button(layer, head) for head in range(heads))
        for layer in range(layers)
    )
    return (
        '<div class="hb-heads" role="radiogroup" aria-label="Layer and '
        f'head; arrow keys move" style="--heads:{heads}">'
        f'<span aria-hidden="true"></span>{numbers}{rows}</div>'
    )


# %% book/inspection.md#a-head-browser b4606555
_STYLE = """<style>
.head-browser { font-size: .8rem; margin: 1rem 0; }
:has(> .head-browser) { background: none !important;
  color: var(--pst-color-text-base, inherit) !important; }
.hb-heads { display: grid; gap: 3px; align-items: center;
  width: max-content;
  grid-template-columns: 1.2rem repeat(var(--heads), 30px); }
.hb-heads span { text-align: center; }
.hb-heads button { width: 30px; height: 30px; padding: 1px; cursor: pointer;
  color: inherit; background: none;
  border: 1px solid rgba(128, 128, 128, .6); }
.hb-heads button[aria-checked=true] { outline: 3px solid currentColor; }
.hb-heads button:focus-visible { outline: 3px dashed currentColor; }
.hb-heads canvas { width: 100%; height: 100%; display: block;
  image-rendering: pixelated; }
.hb-chosen { display: block; margin: .6rem 0; font-weight: 600; }
.hb-scroll { overflow-x: auto; }
.head-browser table { border-collapse: collapse; width: auto; margin: 0;
  border: 0; color: inherit; font-size: inherit; }
.head-browser tbody tr, .head-browser tbody tr:hover { background: none; }
.head-browser th, .head-browser td { padding: .1rem .2rem; color: inherit;
  border: 0; font-weight: 400; white-space: nowrap; text-align: right; }
.head-browser thead th { vertical-align: bottom; text-align: center; }
.head-browser thead span { writing-mode: vertical-rl; rotate: 180deg; }
.head-browser tbody td { min-width: 2rem; height: 1.6rem;
  text-align: center; border: 1px solid rgba(128, 128, 128, .3);
  background: rgba(60, 130, 246, calc(.6 * var(--shade))); }
</style>"""


# %% book/inspection.md#a-head-browser 1668b138
_SCRIPT = """<script>
for (const root of document.querySelectorAll(
    ".head-browser:not([data-ready])")) {
  root.dataset.ready = "";
  const read = root.querySelector("[type='application/json']").textContent;
  const { tokens, heads, weights } = JSON.parse(read);
  const buttons = [...root.querySelectorAll("[role=radio]")];
  const cells = [...root.querySelectorAll("tbody td")];
  const n = tokens.length;
  const choose = (chosen) => {
    buttons.forEach((button, i) => {
      button.setAttribute("aria-checked", i === chosen);
      button.tabIndex = i === chosen ? 0 : -1;
    });
    const table = weights[chosen];
    cells.forEach((cell, i) => {
      cell.textContent = Math.floor((table[i] + 5) / 10) || "";
      cell.style.setProperty("--shade", Math.sqrt(table[i] / 1000));
    });
    const most = table.indexOf(table.reduce((a, b) => Math.max(a, b)));
    const from = tokens[Math.floor(most / n)], to = tokens[most % n];
    const name = buttons[chosen].getAttribute("aria-label");
    root.querySelector("output").textContent =
      `${name}; strongest: ${from} to ${to}, ${cells[most].textContent} %`;
  };
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -heads,
                  ArrowDown: heads };
  buttons.forEach((button, i) => {
    const canvas = button.appendChild(document.createElement("canvas"));
    canvas.width = canvas.height = n;
    const pen = canvas.getContext("2d");
    weights[i].forEach((weight, k) => {
      pen.fillStyle = `rgba(60, 130, 246, ${Math.sqrt(weight / 1000)})`;
      pen.fillRect(k % n, Math.floor(k / n), 1, 1);
    });
    button.onclick = () => choose(i);
    button.onkeydown = (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      const next = buttons[i + steps[event.key]];
      if (next) { next.focus(); next.click(); }
    };
  });
  choose(0);
}
</script>"""


# %% book/inspection.md#a-head-browser eed40405
@dataclass(frozen=True)
class HeadBrowser:
    """A piece of a web page that shows the heads of a model, one a time.

    A notebook displays it; `html` is the text for other pages. It asks
    nothing of the network, and may stand beside others.
    """

    html: str = field(repr=False)
    layers: int
    heads: int
    tokens: int

    def _repr_html_(self):
        return self.html


# %% book/inspection.md#a-head-browser 55d8d4b0
def head_browser(captured: Captured, text: int = 0) -> HeadBrowser:
    """A browser of all attention tables of one text, without its padding.

    `text` is the text's place in the batch. Raises IndexError where the
    batch is shorter.
    """
    real = captured.mask[text]
    tables = captured.attentions[:, text][:, :, real][..., real]
    thousandths = (tables.float() * 1000).round().int()
    layers, heads, _, size = tables.shape
    tokens = [t for t, keep in zip(captured.tokens[text], real) if keep]
    weights = thousandths.flatten(0, 1).flatten(1).tolist()
    data = {"tokens": tokens, "heads": heads, "weights": weights}
    body = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    html = (
        '<div class="head-browser" role="group" aria-label="Head browser">'
        f"{_STYLE}{_buttons(layers, heads)}"
        '<output class="hb-chosen">layer 0, head 0</output>'
        f"{_table(tokens, weights[0])}"
        f'<script type="application/json">{body}</script>{_SCRIPT}</div>'
    )
    return HeadBrowser(html, layers, heads, size)
