"""GL404 attention-logits-unscaled: attention logits lie so far apart at the start that each softmax picks single tokens.

What it finds:
    Attention of untrained weights whose logits have a standard deviation, predicted or measured, of 1.5 times sqrt(2 ln T) or
    more over T keys. That is what becomes of queries and keys of unit variance when their product is not divided by the root of
    their width, and of weights that are drawn too large in spite of it.

Why it matters:
    Above sqrt(2 ln T) a softmax of independent normal logits freezes: a handful of its weights are all there is, so that each
    token copies one other at random instead of averaging. The gradient of a softmax, A (g - sum A g), is then next to nothing for
    most tokens and large for the few whose two best keys happen to tie: with deviation 8 over 32 keys a tenth of the queries
    gets two thirds of the gradient, and all of them together 70 times that of scaled logits. Learning is slow and noisy at
    once, and clipping meets the ties.

How to fix it:
    Multiply queries by 1/sqrt(d), d being the width of a head, as scaled_dot_product_attention does unless told otherwise. Or
    normalize queries and keys before their product, or draw their projections smaller.

References:
    Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762, 3.2.1 (why the product is scaled).
    Derrida 1981, Random-energy model: An exactly solvable model of disordered systems, Phys. Rev. B 24, 2613 (freezing).
    Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy Collapse, arXiv 2303.06296.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Kind, Rule, Severity, Subject, kind_of

FROZEN = 1.5  # times sqrt(2 ln T): of 111 standard architectures at default initialization the largest has 1.23 (SwinV2, T = 16)


def _attention(gain: float, scale: float | None, *, fused: bool = True, measured: float | None = None) -> GraphBuilder:
    """Attention over 16 tokens of width 64 on an input of unit variance."""
    builder = GraphBuilder()
    x = builder.input(8, 16, 64)
    q, k, v = (builder.linear(x, gain=gain) for _ in range(3))
    if fused:
        mixed = builder.op("attention", q, k, v, scale=scale)
    else:
        logits = builder.op("matmul", q, k, shape=(8, 16, 16), equation="bik,bjk->bij")
        logits = logits if scale is None else builder.op("mul", logits, None, constant=scale)
        mixed = builder.op("matmul", builder.op("softmax", logits, dim=-1), v, shape=(8, 16, 64), equation="bij,bjk->bik")
    builder.linear(mixed)
    if measured is not None:
        for node in (q, k):
            builder.gains(node, 0.0, measured)
    return builder


class AttentionLogitsUnscaled(Rule):
    """Attention that is frozen from the start."""

    code = "GL404"
    name = "attention-logits-unscaled"
    severity = Severity.WARNING
    examples = (
        Example(lambda: _attention(1.0, 1.0), fires_on=("attention0",)),
        Example(lambda: _attention(1.0, None, fused=False), fires_on=("softmax0",)),
        Example(lambda: _attention(0.1, None, measured=0.5), fires_on=("attention0",)),
        Example(lambda: _attention(2.0, None), fires_on=("attention0",)),
        Example(lambda: _attention(0.65, 1.0)),
        Example(lambda: _attention(1.0, None)),
        Example(lambda: _attention(1.0, 1 / 8, fused=False)),
        Example(lambda: _attention(1.0, 1.0, measured=-1.0)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there is attention, and weights are as they were drawn: training may sharpen it on purpose."""
        signal = subject.structure.signal
        if not any(kind_of(subject.graph[node]) in {Kind.ATTENTION, Kind.SOFTMAX} for node in signal):
            return "no attention in the graph"
        return None if subject.is_initialized(signal) else "the weights look trained, and training may sharpen attention"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all attention that is frozen."""
        frozen = {logits.node: logits for logits in subject.logits() if logits.concentration >= FROZEN}
        if not frozen:
            return
        worst = max(frozen.values(), key=lambda logits: logits.concentration)
        yield self.finding(
            subject,
            list(frozen),
            f"attention logits have deviation {worst.deviation:.3g} over {worst.keys} keys: above "
            f"{math.sqrt(2.0 * math.log(worst.keys)):.1f} a softmax picks single tokens, and only ties pass a gradient",
            remedy="multiply the queries by 1/sqrt(d), d the width of a head; or normalize queries and keys",
            confidence=Confidence.PREDICTED if subject.measurement is None else Confidence.MEASURED,
            deviation=worst.deviation,
            keys=worst.keys,
            attentions=len(frozen),
        )
