"""Spine, residual sums, depth, recurrence, levels and trunk, on small graphs and on random ones."""

from __future__ import annotations

import itertools

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlint.graph import Graph, Node, Ref
from gradlint.rule import GraphBuilder
from gradlint.structure import ResidualSum, Structure, block_name

# spine ------------------------------------------------------------------------------------------------------------------


@st.composite
def dags(draw: st.DrawFn) -> Graph:
    """A random graph: one or two inputs, then operators that read one to three earlier tensors; one or two outputs."""
    inputs = draw(st.integers(1, 2))
    nodes = [Node(f"x{index}", "input", shape=(4,), dtype="float32") for index in range(inputs)]
    for index in range(draw(st.integers(1, 25))):
        parents = draw(st.lists(st.sampled_from([node.id for node in nodes]), min_size=1, max_size=3))
        op = "relu" if len(parents) == 1 else draw(st.sampled_from(["concat", "add", "mul"]))
        nodes.append(Node(f"n{index}", op, tuple(Ref(parent) for parent in parents), shape=(4,), dtype="float32"))
    outputs = draw(st.lists(st.sampled_from([node.id for node in nodes[inputs:]]), min_size=1, max_size=2, unique=True))
    return Graph(nodes, [Ref(output) for output in outputs])


def dominator_chain(graph: Graph) -> list[str]:
    """Nodes that every path from an input to an output passes, by networkx."""
    plain = nx.DiGraph(graph.nx)
    plain.add_edges_from(("source", node) for node in graph.inputs)
    plain.add_edges_from((ref.node, "sink") for ref in graph.outputs)
    above = nx.immediate_dominators(plain, "source")
    chain, node = [], above["sink"]
    while node != "source":
        chain.append(node)
        node = above[node]
    return chain[::-1]


@given(dags())
def test_spine_is_the_chain_of_dominators_of_the_outputs(graph: Graph):
    assert list(Structure(graph).spine) == dominator_chain(graph)


@given(dags())
def test_signal_is_what_lies_between_inputs_and_outputs(graph: Graph):
    outputs = {ref.node for ref in graph.outputs}
    above = outputs.union(*(nx.ancestors(graph.nx, output) for output in outputs))
    assert set(Structure(graph).signal) == above


@given(dags())
def test_ancestors_and_the_nodes_between_are_those_of_networkx(graph: Graph):
    structure = Structure(graph)
    for upper, lower in itertools.combinations(structure.signal, 2):
        between = nx.descendants(graph.nx, upper) & nx.ancestors(graph.nx, lower)
        assert structure.is_ancestor(upper, lower) == (upper in nx.ancestors(graph.nx, lower))
        assert structure.between(upper, lower) == sorted(between, key=graph.position.__getitem__)


@given(dags())
def test_a_residual_sum_parts_at_its_immediate_dominator(graph: Graph):
    structure = Structure(graph)
    plain = nx.DiGraph(graph.nx.subgraph(structure.signal))
    plain.add_edges_from(("source", node) for node in graph.inputs if node in structure.signal_set)
    above = nx.immediate_dominators(plain, "source")
    for found in structure.residual_sums:
        assert found.fork == above[found.node]


def test_skip_hides_the_branch_from_the_spine():
    builder = GraphBuilder()
    builder.linear(builder.blocks(2))
    assert Structure(builder.graph).spine == ("x", "add0", "add1", "linear4")


def test_integer_side_input_does_not_break_the_spine():
    builder = GraphBuilder()
    x, mask = builder.input(8, 64), builder.input(8, 64, name="mask", dtype="bool")
    builder.linear(builder.op("slice", builder.linear(x), mask, shape=(8, 64)))
    assert Structure(builder.graph).spine == ("x", "linear0", "slice0", "linear1")


def test_embedding_is_where_the_signal_of_tokens_starts():
    builder = GraphBuilder()
    ids = builder.input(8, 16, name="ids", dtype="int64")
    builder.linear(builder.op("embedding", ids, weights={"weight": builder.weight(100, 64)}, shape=(8, 16, 64)))
    assert Structure(builder.graph).sources == ("embedding0",)
    assert Structure(builder.graph).spine == ("embedding0", "linear0")


# trunk ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", ["softmax", "sigmoid", "log_softmax"])
def test_trunk_is_taken_before_the_final_squashing(final):
    builder = GraphBuilder()
    logits = builder.linear(builder.stack(2))
    builder.op("reshape", builder.op(final, logits, shape=(8, 64)), shape=(512,))
    assert Structure(builder.graph).trunk == (Ref(logits),)


def test_trunk_of_an_argmax_is_what_it_chooses_from():
    builder = GraphBuilder()
    logits = builder.linear(builder.stack(2))
    builder.op("argmax", logits, shape=(8,), dtype="int64")
    assert Structure(builder.graph).trunk == (Ref(logits),)


def test_head_of_zeros_leaves_the_trunk_before_it():
    builder = GraphBuilder()
    last = builder.stack(2)
    builder.linear(last, gain=0.0)
    assert Structure(builder.graph).trunk == (Ref(last),)


# residual sums ----------------------------------------------------------------------------------------------------------


def test_residual_sum_names_fork_branch_and_skip():
    builder = GraphBuilder()
    x = builder.input(8, 64)
    branch = builder.op("relu", builder.linear(x, name="inner"), name="act", shape=(8, 64))
    shortcut = builder.op("reshape", x, name="skip", shape=(8, 64))
    builder.op("add", branch, shortcut, name="sum", shape=(8, 64))
    assert Structure(builder.graph).residual_sums == (ResidualSum("sum", "x", ("inner", "act"), ("skip",)),)


def test_side_with_more_weight_layers_is_the_branch():
    builder = GraphBuilder()
    x = builder.input(8, 64)
    projection = builder.linear(x, name="projection")
    deep = builder.linear(builder.linear(x, name="first"), name="second")
    builder.op("add", projection, deep, name="sum", shape=(8, 64))
    (found,) = Structure(builder.graph).residual_sums
    assert found.branch == ("first", "second")
    assert found.skip == ("projection",)


def test_sum_of_two_inputs_and_sum_with_a_constant_are_not_residual():
    builder = GraphBuilder()
    x, y = builder.input(8, 64), builder.input(8, 64, name="y")
    builder.op("add", builder.op("add", x, y, shape=(8, 64)), None, constant=1.0, shape=(8, 64))
    assert Structure(builder.graph).residual_sums == ()


@given(dags())
def test_fork_of_every_residual_sum_dominates_it(graph: Graph):
    structure = Structure(graph)
    plain = nx.DiGraph(graph.nx)
    plain.add_edges_from(("source", node) for node in graph.inputs)
    above = nx.immediate_dominators(plain, "source")
    for found in structure.residual_sums:
        assert above[found.node] == found.fork
        assert not set(found.branch) & set(found.skip)


# depth, recurrence, levels, blocks ----------------------------------------------------------------------------------------


def test_depth_counts_weight_layers_on_the_longest_path():
    builder = GraphBuilder()
    x = builder.input(8, 64)
    builder.op("add", builder.linear(x), builder.linear(builder.linear(builder.linear(x))), shape=(8, 64))
    assert Structure(builder.graph).depth == 3


def unrolled(steps: int) -> GraphBuilder:
    builder = GraphBuilder()
    h, weight = builder.input(8, 64), builder.weight(64, 64, name="w_hh")
    for _ in range(steps):
        h = builder.op("tanh", builder.linear(h, weight=weight), shape=(8, 64))
    return builder


def test_weight_used_again_on_its_own_result_is_a_recurrence_and_counts_once_for_depth():
    structure = Structure(unrolled(5).graph)
    assert [(item.weight, item.nodes) for item in structure.recurrences] == [("w_hh", tuple(f"linear{i}" for i in range(5)))]
    assert structure.depth == 1


def test_weight_shared_side_by_side_is_no_recurrence():
    builder = GraphBuilder()
    x, weight = builder.input(8, 64), builder.weight(64, 64, name="shared")
    builder.op("concat", builder.linear(x, weight=weight), builder.linear(x, weight=weight), shape=(8, 128))
    assert Structure(builder.graph).recurrences == ()


def test_levels_hold_every_tensor_that_a_deeper_layer_still_reads():
    builder = GraphBuilder()
    x = builder.input(8, 64)
    first = builder.linear(x)
    second = builder.linear(first)
    builder.op("concat", first, builder.linear(second), shape=(8, 128))
    assert Structure(builder.graph).levels == (("x",), ("linear0",), ("linear0", "linear1"), ("concat0",))


def test_blocks_are_repeated_modules():
    builder = GraphBuilder()
    builder.blocks(3)
    assert set(Structure(builder.graph).blocks) == {"blocks.0", "blocks.1", "blocks.2"}


@pytest.mark.parametrize(
    ("module", "name"), [("encoder.layers.3.fc.0", "encoder.layers.3"), ("0", "0"), ("encoder.fc", ""), ("", "")]
)
def test_block_name_is_the_outermost_prefix_that_ends_in_a_number(module, name):
    assert block_name(module) == name


def test_nodes_that_did_not_run_are_no_part_of_the_signal():
    builder = GraphBuilder()
    x = builder.input(8, 64)
    builder.op("add", builder.linear(x, name="taken"), builder.linear(x, name="other"), name="sum", shape=(8, 64))
    assert Structure(builder.graph, live={"x", "taken", "sum"}).spine == ("x", "taken", "sum")


def factors(builder: GraphBuilder, h: str, uses: int, *, layers: bool = False) -> str:
    """A state that is multiplied by one vector, at every step behind something new, and perhaps through a layer of its own."""
    factor = builder.weight(64, name="r")
    for _ in range(uses):
        h = builder.op("mul", h, None, weights={"scale": factor}, shape=(8, 64))
        h = builder.op("add", builder.linear(h) if layers else h, builder.input(8, 64, name=f"x{len(builder.graph)}"))
    return h


def test_a_factor_of_a_state_is_a_recurrence():
    builder = GraphBuilder()
    factors(builder, builder.input(8, 64), 5)
    (found,) = Structure(builder.graph).recurrences
    assert (found.weight, found.elementwise, found.nodes) == ("r", True, tuple(f"mul{index}" for index in range(5)))


def test_a_scale_that_blocks_share_is_no_recurrence():
    builder = GraphBuilder()
    factors(builder, builder.input(8, 64), 5, layers=True)
    assert Structure(builder.graph).recurrences == ()


def test_two_loops_that_share_a_weight_and_take_turns_are_two_recurrences():
    builder = GraphBuilder()
    weight = builder.weight(64, 64, name="w_hh")
    states = [builder.input(8, 64, name="a"), builder.input(8, 64, name="b")]
    for _ in range(4):
        states = [builder.op("tanh", builder.linear(h, weight=weight), shape=(8, 64)) for h in states]
    builder.op("concat", *states, shape=(8, 128))
    assert [item.nodes for item in Structure(builder.graph).recurrences] == [
        ("linear0", "linear2", "linear4", "linear6"),
        ("linear1", "linear3", "linear5", "linear7"),
    ]


def test_what_depends_on_no_weight_is_neither_on_the_spine_nor_in_cuts_but_for_the_only_input():
    builder = GraphBuilder()
    x = builder.op("mul", builder.op("sub", builder.input(8, 64), None, shape=(8, 64), constant=0.5), None, shape=(8, 64))
    builder.linear(builder.linear(x))
    structure = Structure(builder.graph)
    assert structure.spine == ("x", "linear0", "linear1")
    assert structure.learning == ("linear0", "linear1")
    assert not {"sub0", "mul0"} & {node for cut in structure.levels for node in cut}


def test_a_condition_that_enters_every_layer_does_not_break_the_spine():
    builder = GraphBuilder()
    x, condition = builder.input(8, 64), builder.input(8, 64, name="condition")
    for _ in range(4):
        x = builder.op("mul", builder.linear(x), condition, shape=(8, 64))
    found = Structure(builder.graph)
    assert found.spine == tuple(f"{op}{index}" for index in range(4) for op in ("linear", "mul"))
    assert found.spine_is_representative
