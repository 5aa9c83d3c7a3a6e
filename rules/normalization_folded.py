"""GL306 normalization-folded: an exporter folded BatchNorm into the layers before it.

What it finds:
    Layers of an ONNX graph that hide a BatchNorm, by what the exporter wrote beside them. In a file without such a record,
    convolutions with a bias that may hide one: those whose weight the exporter computed anew, or all where no norm is left.

Why it matters:
    A folded BatchNorm is an affine map with the statistics of the past; in training it divides by those of the batch, and the
    gradient is another one. The weights are no longer those of the layer: they are scaled by gamma over the standard deviation,
    so nothing can be said of their initialization.

How to fix it:
    Lint the torch module, or export for linting with torch.onnx.export(..., dynamo=True, optimize=False), which keeps every
    norm. The deployed file may stay as it is.

References:
    Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR, 3.2.
    PyTorch documentation, torch.onnx.export: optimize; ONNX Script rewriter rules FuseBatchNormIntoConv and
    FuseBatchNormIntoGemm.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Rule, Severity, Subject

FOLDED, MAYBE = "batch-norm-folded", "batch-norm-may-be-folded"  # notes of the ONNX reader


def _convolutions(note: str | None) -> GraphBuilder:
    builder = GraphBuilder(mode="eval")
    x = builder.input(8, 16, 32, 32)
    for _ in range(3):
        weight = builder.weight(16, 16, 3, 3)
        x = builder.op("conv", x, weights={"weight": weight}, shape=(8, 16, 32, 32), notes=(note,) if note else ())
        x = builder.op("relu", x, shape=(8, 16, 32, 32))
    return builder


class NormalizationFolded(Rule):
    """Layers that hide a BatchNorm."""

    code = "GL306"
    name = "normalization-folded"
    severity = Severity.NOTE
    examples = (
        Example(lambda: _convolutions(FOLDED), fires_on=("conv0", "conv1", "conv2")),
        Example(lambda: _convolutions(MAYBE), fires_on=("conv0", "conv1", "conv2")),
        Example(lambda: _convolutions(None)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where the reader found traces of folding."""
        found = any(node.notes & {FOLDED, MAYBE} for node in subject.graph)
        return None if found else "no layer hides a normalization"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for what is certain, else one for what is possible."""
        folded = [node.id for node in subject.graph if FOLDED in node.notes]
        maybe = [] if folded else [node.id for node in subject.graph if MAYBE in node.notes]
        count = len(folded or maybe)
        layers = f"{count} layer{'s' * (count > 1)}"
        message = f"the exporter folded a BatchNorm into {layers}: the weights are not those that train"
        if maybe:
            message = f"normalization may be folded into {layers}: nothing says where the bias is from"
        if count:
            yield self.finding(
                subject,
                folded or maybe,
                message,
                remedy="lint the torch module, or export with torch.onnx.export(..., dynamo=True, optimize=False)",
                layers=count,
            )
