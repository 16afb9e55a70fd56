"""Show scores and explanations in a notebook. Every piece of text is data, and escaped."""

from html import escape
from typing import Any

_SHOWN = 50  # texts
_BOX = "line-height:1.9;unicode-bidi:plaintext;overflow-wrap:anywhere"
_FOR, _AGAINST = "46,139,87", "205,92,92"


def scores_html(scores: Any) -> str:
    """Return ``Scores`` as a table of texts, each token the darker the less probable it is."""
    rows = []
    for text in scores[:_SHOWN]:
        shown = " ".join(
            _mark(
                token,
                "" if value is None else f"{value:.3f}",
                min(-(value or 0.0) / 12, 1.0),
                _AGAINST,
            )
            for token, value in zip(text.tokens, text.logprobs, strict=True)
        )
        rows.append(
            f'<tr><td style="text-align:left"><div style="{_BOX}">{shown}</div></td>'
            f"<td>{text.count}</td><td>{text.logprob:.3f}</td><td>{text.perplexity:.4g}</td></tr>"
        )
    more = len(scores) - _SHOWN
    caption = f"method {escape(scores.method)}; perplexity of all texts {scores.perplexity:.4g}"
    if more > 0:
        caption += f"; {more:,} more texts"
    return (
        f"<table><caption>{caption}</caption><thead><tr><th>text</th><th>tokens</th>"
        f"<th>log-probability</th><th>perplexity</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def explanation_html(found: Any) -> str:
    """Return an ``Explanation``: its units in green (for) and red (against), and the areas."""
    largest = max((abs(part.contribution) for part in found.parts), default=0.0) or 1.0
    shown = " ".join(
        _mark(
            part.text, f"{part.contribution:+.4f}", abs(part.contribution) / largest,
            _FOR if part.contribution > 0 else _AGAINST,
        )
        for part in found.parts
    )  # fmt: skip
    return (
        f"<div><p><b>{escape(found.target)}</b>: probability {found.probability:.4f}</p>"
        f'<p style="{_BOX}">{shown}</p>'
        f"<p>area under the curve: deletion {found.deletion_area:.4f}, random "
        f"{found.random_area:.4f}, insertion {found.insertion_area:.4f}</p></div>"
    )


def _mark(text: str, title: str, strength: float, colour: str) -> str:
    """Write a piece of text on a ground of some strength, between 0 and 1, for either theme."""
    return (
        f'<span title="{escape(title)}" style="background:rgba({colour},{0.75 * strength:.2f});'
        f'padding:0 .15em;border-radius:.2em">{escape(text)}</span>'
    )
