"""Recognize operators that an exporter decomposed: norms, softmax, attention and activations such as GELU and SiLU.

A recognized pattern becomes one node. It has the id and the output of the pattern's last node. The other nodes are removed, so
no node outside the pattern may read them. Matching starts at the rarest operator of each pattern and has bounded cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from gradlint.frontends.onnx.matching import Match, View, refs_of, signal_of
from gradlint.frontends.onnx.pointwise import ANCHORS, known_function
from gradlint.frontends.onnx.softmax import log_of_softmax, log_sum_exp, softmax
from gradlint.graph import Node, Ref

Matcher = Callable[[View, Node], Match | None]

_DEEPEST = 12  # the most pointwise nodes of a decomposed activation
_ON_LOGITS = ("matmul", "mul", "div", "add", "cast", "slice")  # a mask is added, or applied by Where (a "slice")
_POINTWISE = ANCHORS | {"add", "sub", "mul", "div", "pow", "neg", "exp", "log"}


def recognize(nodes: Sequence[Node], outputs: Iterable[Ref | None]) -> list[Node]:
    """Return the nodes in order, with every pattern replaced by one node. `outputs` are the outputs of the graph."""
    returned = tuple(outputs)
    for matchers in (_SOFTMAXES, _MATCHERS):  # softmax first, because attention is found at its softmax
        nodes = _pass(nodes, returned, matchers)
    return list(nodes)


def _pass(nodes: Sequence[Node], outputs: Sequence[Ref | None], matchers: Mapping[str, tuple[Matcher, ...]]) -> Sequence[Node]:
    view = View(nodes, outputs)
    gone: set[str] = set()
    last: dict[str, Match] = {}
    for node in nodes:
        for matcher in matchers.get(node.op, ()):
            match = matcher(view, node)
            members = {item.id for item in (match.last, *match.inner)} if match else set()
            if match and members.isdisjoint(gone) and members.isdisjoint(last) and view.is_closed(match, members):
                gone.update(members - {match.last.id})
                last[match.last.id] = match
                break
    return [_replaced(last[node.id]) if node.id in last else node for node in nodes if node.id not in gone]


def _replaced(match: Match) -> Node:
    attrs = {"name": str(match.last.attrs.get("name", "")), **match.attrs}
    notes = match.last.notes.union(*(node.notes for node in match.inner))
    return replace(match.last, op=match.op, inputs=match.inputs, weights=match.weights, attrs=attrs, notes=notes)


# norms ------------------------------------------------------------------------------------------------------------------


def _norm(view: View, root: Node) -> Match | None:
    """Match LayerNorm (x - m) / sqrt(var + eps) or RMSNorm x / sqrt(mean x^2 + eps), starting at the square root."""
    inner = [root]
    shifted = view.before(root, "add")
    eps = shifted.attrs.get("constant") if shifted is not None else None
    if shifted is not None and isinstance(eps, float) and len(refs_of(shifted)) == 1:
        inner.append(shifted)
    else:
        shifted, eps = root, 0.0
    mean = view.before(shifted, "mean")
    square = view.before(mean, "pow", "mul")
    inverted = view.reader(root, "reciprocal", "div", "mul")
    if mean is None or square is None or inverted is None or not _squares(square):
        return None
    inner += [mean, square]
    if inverted.op == "reciprocal" or (inverted.op == "div" and inverted.attrs.get("constant") == 1.0):
        inner.append(inverted)
        last = view.reader(inverted, "mul")
    else:
        last = inverted if inverted.op == "div" or root.op == "rsqrt" else None
    if last is None or len(refs_of(last)) != 2 or (last.op == "div" and last.inputs[0] == Ref(root.id)):
        return None
    known = {node.id for node in inner}
    signal = next((ref for ref in refs_of(last) if ref.node not in known), None)
    squared = refs_of(square)[0]
    op: str = "rms_norm"
    source = signal
    centered = [node for ref in dict.fromkeys((signal, squared)) if (node := _centered(view, ref, mean)) is not None]
    if centered and len(centered) == len({signal, squared}) and len({node.inputs[0] for node in centered}) == 1:
        op, source = "layer_norm", centered[0].inputs[0]
        inner += [*centered, *(m for node in centered if (m := view.producer(node.inputs[1], "mean")) is not None)]
    elif signal != squared:
        return None
    return _with_affine(view, Match(last, op, (source,), tuple(inner), {}, {"eps": eps, "axes": mean.attrs.get("axes")}))


def _squares(node: Node) -> bool:
    refs = refs_of(node)
    return node.attrs.get("constant") == 2.0 if node.op == "pow" else len(refs) == 2 and refs[0] == refs[1]


def _centered(view: View, ref: Ref | None, mean: Node) -> Node | None:
    """Return the node that produces `ref` if it is x - mean(x) over the axes of `mean`; otherwise None."""
    sub = view.producer(ref, "sub")
    own = view.producer(sub.inputs[1], "mean") if sub is not None and len(refs_of(sub)) == 2 else None
    same = sub is not None and own is not None and own.inputs[:1] == sub.inputs[:1]
    return sub if same and own is not None and own.attrs.get("axes") == mean.attrs.get("axes") else None


def _with_affine(view: View, match: Match) -> Match:
    """Extend the match by a scale and a bias that follow it, if any."""
    for op, role in (("mul", "scale"), ("add", "bias")):
        after = view.reader(match.last, op, "cast")
        behind = view.reader(after, op) if after is not None and after.op == "cast" else after
        weight = behind.weights.get(role) if behind is not None and len(refs_of(behind)) == 1 else None
        if behind is None or weight is None:
            continue
        passed = [node for node in (match.last, after) if node is not None and node is not behind]
        weights = {**match.weights, role: weight}
        match = replace(match, last=behind, inner=(*match.inner, *passed), weights=weights)
    return match


def _group_norm(view: View, norm: Node) -> Match | None:
    """Match GroupNorm as torch exports it: reshape to groups, InstanceNormalization, reshape back.

    There may be casts and further reshapes in between.
    """
    scale = norm.weights.get("scale")
    inner = [norm]
    top = norm
    while (before := view.before(top, "reshape", "cast")) is not None and view.reader(before, "reshape", "cast", norm.op):
        inner.append(before)
        top = before
    grouped = view.before(norm, "reshape")
    last = norm
    while (after := view.reader(last, "reshape", "cast")) is not None:
        inner.append(last)
        last = after
    if grouped is None or scale is None or last is norm or top.op == norm.op or signal_of(top) is None:
        return None
    if grouped.shape is None or len(grouped.shape) != 3:
        return None
    attrs = {"eps": norm.attrs.get("epsilon", 1e-5), "num_groups": scale.size}
    return _with_affine(
        view, Match(last, "group_norm", (signal_of(top),), tuple({node.id: node for node in inner}.values()), {}, attrs)
    )


# attention --------------------------------------------------------------------------------------------------------------


def _attention(view: View, softmax: Node) -> Match | None:
    """Match attention, softmax(scale q k' + mask) v, starting at the softmax."""
    inner = [softmax]
    mixed = _guarded(view, inner)
    while mixed is not None and mixed.op in {"dropout", "cast"}:
        inner.append(mixed)
        mixed = view.reader(mixed, "matmul", "dropout", "cast")
    logits = _logits(view, softmax)
    if mixed is None or logits is None or len(refs_of(mixed)) != 2 or mixed.inputs[0] != Ref(inner[-1].id):
        return None
    product, passed, masks, scale = logits
    inner += passed
    sides = []
    for ref, role in zip(refs_of(product), "qk", strict=True):
        found, moved, factor = _side(view, ref, transposed=role == "k")
        sides.append(found)
        inner += moved
        scale *= factor
    inputs = (*sides, mixed.inputs[1], *masks)
    return Match(mixed, "attention", inputs, tuple(inner), {}, {"scale": scale})


def _guarded(view: View, inner: list[Node]) -> Node | None:
    """Return the only reader of the softmax, which is the last node of `inner`.

    If where(isnan(p), 0, p) comes in between, its nodes are appended to `inner`.
    """
    readers = view.readers(inner[-1])
    tests = [node for node in readers if node.attrs.get("name") == "IsNaN"]
    choices = [node for node in readers if node.attrs.get("name") == "Where"]
    if len(readers) == 2 and len(tests) == len(choices) == 1 and view.reader(tests[0], "slice") is choices[0]:
        inner += [tests[0], choices[0]]
    return view.reader(inner[-1], "matmul", "dropout", "cast") if len(readers) == 1 or len(inner) > 1 else None


def _logits(view: View, softmax: Node) -> tuple[Node, list[Node], list[Ref], float] | None:
    """Return the product q k' before a softmax, the nodes in between, the masks that they add, and the scale."""
    passed: list[Node] = []
    masks: list[Ref] = []
    scale, ref = 1.0, signal_of(softmax)
    while (node := view.producer(ref, *_ON_LOGITS)) is not None and node.op != "matmul":
        products = [item for item in refs_of(node) if _leads_to_product(view, item)]
        hides = node.op == "add" or node.attrs.get("name") == "Where"
        if len(products) != 1 or (node.op == "slice" and not hides) or (len(refs_of(node)) > 1 and not hides) or len(passed) > 6:
            return None
        masks += [item for item in refs_of(node) if item != products[0]]
        scale *= _factor(node)
        passed.append(node)
        ref = products[0]
    if node is None or len(refs_of(node)) != 2 or node.weights:
        return None
    return node, [*passed, node], masks, scale


def _leads_to_product(view: View, ref: Ref) -> bool:
    """Return whether a tensor is a product of two activations, followed by nodes that scale and mask it."""
    for _ in range(_DEEPEST):
        node = view.producer(ref, *_ON_LOGITS)
        if node is None or node.op == "matmul":
            return node is not None and len(refs_of(node)) == 2
        refs = refs_of(node)[-2:] if node.attrs.get("name") == "Where" else refs_of(node)
        made = [item for item in refs if view.producer(item, *_ON_LOGITS)]
        if not made:
            return False
        ref = made[0]
    return False


def _factor(node: Node) -> float:
    """Return the scalar that a node multiplies by; 1 for other nodes."""
    constant = node.attrs.get("constant")
    if node.op not in {"mul", "div"} or not isinstance(constant, (int, float)) or constant == 0:
        return 1.0
    return float(constant) if node.op == "mul" else 1.0 / float(constant)


def _side(view: View, ref: Ref, *, transposed: bool) -> tuple[Ref, list[Node], float]:
    """Return the source of q or k before it is scaled and transposed, the nodes that do that, and the scale."""
    passed: list[Node] = []
    scale = 1.0
    while (node := view.producer(ref, "mul", "div", "reshape")) is not None and view.reader(
        node, "matmul", "mul", "div", "reshape"
    ):
        below = signal_of(node)
        scales = node.op != "reshape" and isinstance(node.attrs.get("constant"), (int, float)) and not node.weights
        swaps = transposed and _swaps_last(node) and not any(_swaps_last(other) for other in passed)
        if below is None or not (scales or swaps) or (node.op == "div" and node.inputs[0] is None):
            break
        scale *= _factor(node)
        passed.append(node)
        ref = below
    return ref, passed, scale


def _swaps_last(node: Node) -> bool:
    """Return whether a node transposes exactly the last two axes."""
    order = node.attrs.get("perm")
    return isinstance(order, tuple) and len(order) > 1 and order == (*range(len(order) - 2), len(order) - 1, len(order) - 2)


# activations ------------------------------------------------------------------------------------------------------------


def _activation(view: View, anchor: Node) -> Match | None:
    """Match a function of one tensor that includes `anchor` and has the values of a known activation, in any decomposition."""
    ends = [anchor]
    while len(ends) < 5 and (after := view.reader(ends[-1], "mul", "div", "add", "sub", "neg")) is not None:
        ends.append(after)
    for end in reversed(ends[1:]):
        for start in _starts(view, anchor):
            region = _region(view, end, start)
            if region is None or anchor not in region:
                continue
            name = known_function(region, start)
            if name is not None:
                inner = tuple(node for node in region if node is not end)
                return Match(end, name, (start,), inner)
    return None


def _starts(view: View, anchor: Node) -> Iterator[Ref]:
    """Yield the tensors before the anchor that may be the argument of the function, the nearest first."""
    queue, seen = list(dict.fromkeys(refs_of(anchor))), set[Ref]()
    while queue and len(seen) < _DEEPEST:
        ref = queue.pop(0)
        if ref in seen:
            continue
        seen.add(ref)
        yield ref
        producer = view.producer(ref, *_POINTWISE)
        queue += refs_of(producer) if producer is not None else []


def _region(view: View, end: Node, start: Ref) -> list[Node] | None:
    """Return the pointwise nodes from `start` to `end`, in order; None if they read any other activation."""
    found: dict[str, Node] = {}

    def visit(node: Node) -> bool:
        if node.id in found:
            return True
        if len(found) > _DEEPEST or node.weights or not refs_of(node):
            return False
        for ref in refs_of(node):
            producer = None if ref == start else view.producer(ref, *_POINTWISE)
            if ref != start and (producer is None or not visit(producer)):
                return False
        found[node.id] = node
        return True

    return list(found.values()) if visit(end) else None


_SOFTMAXES: dict[str, tuple[Matcher, ...]] = {"exp": (softmax,), "sum": (log_sum_exp,), "softmax": (log_of_softmax,)}
_MATCHERS: dict[str, tuple[Matcher, ...]] = {
    "sqrt": (_norm,),
    "rsqrt": (_norm,),
    "instance_norm": (_group_norm,),
    "softmax": (_attention,),
    **dict.fromkeys(ANCHORS, (_activation,)),
}
