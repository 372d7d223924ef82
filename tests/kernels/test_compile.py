"""One graph around the fused functions: compiled results are eager's bits, and the operators keep their promises."""

import dapo_kernels as dk
import pytest
import torch
from kernel_cases import make_case
from torch.library import opcheck

LOSSES = [
    "direct_advantage",
    "cross_entropy",
    "mean_cross_entropy",
    "clipped",
    "dpo",
    "tokens",
    "statistics",
    "steps",
    "value",
]


def loss_of(name, case, hidden, weight, bias, backend, **changes):
    """(loss, detached metric) by the name of a loss, as a model's forward would call it."""
    options = case.options | {"bias": bias, "chunk_rows": 6, "backend": backend} | changes
    arguments = (hidden, weight, case.targets)
    if name == "direct_advantage":
        data = (case.cu, case.advantages, case.ref_logps, 0.3)
        out = dk.linear_direct_advantage_loss(*arguments, *data, **options, statistics=True)
        return out.loss, torch.cat([out.step_logps, out.entropies, out.lses])
    if name == "mean_cross_entropy":
        return dk.linear_cross_entropy(*arguments, **options), None
    if name == "tokens":
        return dk.linear_token_logprobs(*arguments, **options).square().sum(), None
    if name == "statistics":
        out = dk.linear_token_statistics(*arguments, **options)
        return out.logps.square().sum(), torch.stack([out.entropies, out.lses])
    if name == "steps":
        return dk.linear_step_logprobs(*arguments, case.cu, **options).square().sum(), None
    if name == "value":
        rows = case.targets.clamp(0, len(hidden) - 1)
        labels, weights = case.targets / 100, case.targets % 3
        out = dk.linear_value_loss(hidden, weight[:1], bias[:1], rows, labels, weights=weights.float(), backend=backend)
        return out.loss, out.values
    objective = {
        "cross_entropy": dk.CrossEntropy(7),
        "clipped": dk.ClippedPolicyGradient(case.targets / 40 - 0.5, -case.targets / 9, 0.2, 0.3, torch.tensor(5.0)),
        "dpo": dk.DPO(case.ref_logps, 0.2),
    }[name]
    out = dk.linear_segment_loss(*arguments, case.cu if name == "dpo" else None, objective, **options)
    return out.loss, out.token_logps


def small(path, dtype=torch.float32, **options):
    return make_case([4, 6, 0, 2], dtype=dtype, bias=True, device=path[1], **options)


def both(name, case, path, compiler="aot_eager", **changes):
    """(eager, compiled) results and gradients."""
    found = []
    torch._dynamo.reset()

    def model(hidden, weight, bias):
        loss, metric = loss_of(name, case, torch.tanh(hidden) * 2, weight * 1.5, bias, path[0], **changes)
        return 3 * loss, metric

    for function in (model, torch.compile(model, fullgraph=True, backend=compiler)):
        leaves = case.leaves()
        loss, metric = function(*leaves)
        assert metric is None or not metric.requires_grad
        loss.backward()
        found.append([loss.detach(), *([] if metric is None else [metric]), *(leaf.grad for leaf in leaves)])
    return found


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_graph_and_the_same_bits(name, dtype, path):
    shared = dtype == torch.bfloat16 and name not in ("value",)
    case = small(path, dtype, shared_rows=shared, softcap=3.0 if shared else None)
    for eager, compiled in zip(*both(name, case, path), strict=True):
        assert eager.dtype == compiled.dtype and torch.equal(eager, compiled)


def test_autocast_within_the_graph(path):
    case = small(path)
    with torch.autocast(path[1], dtype=torch.bfloat16):
        for eager, compiled in zip(*both("direct_advantage", case, path), strict=True):
            assert torch.equal(eager, compiled)


def test_frozen_head_and_no_gradients(path):
    case = small(path)
    hidden, weight, bias = case.leaves()
    weight.requires_grad_(False)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def model(hidden, weight, bias):
        return loss_of("direct_advantage", case, hidden, weight, bias, path[0])

    model(hidden, weight, bias)[0].backward()
    assert weight.grad is None and hidden.grad.any() and bias.grad.any()
    with torch.no_grad():
        assert not model(hidden, weight, bias)[0].requires_grad


def test_lengths_are_dynamic(path):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=counting, dynamic=True)
    def model(hidden, weight, targets, cu, advantages, ref):
        return dk.linear_direct_advantage_loss(hidden, weight, targets, cu, advantages, ref, 0.3, 5, backend=path[0])

    for lengths in ([4, 6, 3], [2, 9, 5, 1], [8, 7]):
        case = make_case(lengths, device=path[1])
        arguments = (case.hidden, case.weight, case.targets, case.cu, case.advantages, case.ref_logps)
        wanted = dk.linear_direct_advantage_loss(*arguments, 0.3, 5, backend=path[0])
        assert torch.equal(model(*arguments).step_logps, wanted.step_logps)
    assert len(graphs) == 1


def test_an_objective_of_ones_own_breaks_the_graph_and_says_so(path):
    case = small(path)

    def model(hidden, weight):
        return dk.linear_segment_loss(
            hidden, weight, case.targets, case.cu, lambda steps, tokens, a, b: steps.sum(), backend=path[0]
        ).loss

    with pytest.raises(torch._dynamo.exc.Unsupported, match="the objective is a Python function"):
        torch.compile(model, fullgraph=True, backend="eager")(case.hidden, case.weight)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="eager")(case.hidden, case.weight), model(case.hidden, case.weight))


def test_values_are_checked_when_the_graph_runs(path):
    case = small(path)
    case.targets[5] = 99
    model = torch.compile(lambda h, w, b: loss_of("direct_advantage", case, h, w, b, path[0]), backend="aot_eager")
    if path[1] == "cpu":
        with pytest.raises(ValueError, match=r"^targets: entry 5 is 99"):
            model(*case.leaves())


def test_operators_keep_their_promises(path):
    """Schema, fake results, autograd and dynamic shapes, as torch.library checks them."""
    operators = torch.ops.dapo_kernels
    case = make_case([4, 0, 2], 13, 5, bias=True, shared_rows=True, ignore=True, device=path[1])
    leaves, backend = case.leaves(), path[0]
    head = (torch.float32, None, 0.7, -100)
    for cu, rows in ((case.cu, case.rows), (None, case.rows)):
        objective = ("DirectAdvantage/ttnn", case.advantages, case.ref_logps, None, [0.3, 3.0])
        if cu is None:
            objective = ("CrossEntropy/n", None, None, None, [3.0])
        options = (1, *head, 3, backend, "cu", cu is None, [True, True, True])
        opcheck(operators.objective_loss, (*leaves, case.targets, cu, rows, *objective, *options))
    for statistics in (False, True):
        opcheck(operators.token_logprobs, (*leaves, case.targets, case.rows, *head, 3, backend, statistics))
    upstream = torch.ones(6, device=path[1])
    arguments = (upstream, *leaves, case.targets, case.rows, *head, 3, backend, [True, False, True])
    opcheck(operators.token_logprobs_backward, arguments, test_utils=("test_schema", "test_faketensor"))
    opcheck(operators.segment_sums, (torch.randn(6, device=path[1], requires_grad=True), case.cu, backend))
    hidden, weight, bias = leaves[0], leaves[1][:1].detach().requires_grad_(), leaves[2][:1].detach().requires_grad_()
    labels = torch.rand(6, device=path[1])
    normalizer = torch.tensor(3.0, device=path[1])
    arguments = (hidden, weight, bias, case.rows, labels, labels, normalizer, "bce", backend, [True, True, True])
    opcheck(operators.value_loss, arguments)


def test_export(path):
    case = small(path)

    class Model(torch.nn.Module):
        def forward(self, hidden, weight, bias):
            return loss_of("direct_advantage", case, hidden, weight, bias, path[0])

    leaves = [leaf.detach() for leaf in case.leaves()]
    exported = torch.export.export(Model(), tuple(leaves)).module()
    for found, wanted in zip(exported(*leaves), Model()(*leaves), strict=True):
        assert torch.equal(found, wanted)
