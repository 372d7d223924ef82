"""Inside other people's training: autocast, checkpointing, torch.compile, FSDP2, memory."""

import subprocess
import sys
from pathlib import Path

import dapo_kernels as dk
import pytest
import torch
from dapo_kernels import reference
from kernel_cases import error, make_case
from torch.utils.checkpoint import checkpoint

HERE = Path(__file__).parent


def loss_of(case, hidden, weight, backend, **options):
    arguments = (hidden, weight, case.targets, case.cu, case.advantages, case.ref_logps, 0.3)
    return dk.linear_direct_advantage_loss(*arguments, chunk_rows=6, backend=backend, **options)


def test_autocast(path):
    """fp32 master weights, bf16 products: the arithmetic of bf16 inputs, gradients in the masters' dtype."""
    case = make_case([4, 6, 2], 301, 48, device=path[1])
    hidden, weight = case.leaves()
    with torch.autocast(path[1], dtype=torch.bfloat16):
        out = loss_of(case, hidden, weight, path[0])
    out.loss.backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32
    rounded = [t.detach().bfloat16().double().requires_grad_() for t in (hidden, weight)]
    steps = reference.step_logprobs(reference.token_logprobs(*rounded, case.targets), case.cu)
    assert (out.step_logps - steps).abs().max() < 1e-3
    reference.direct_advantage_loss(steps, case.advantages, case.ref_logps, 0.3, 3).backward()
    assert error(hidden.grad, rounded[0].grad) < 1e-2 and error(weight.grad, rounded[1].grad) < 1e-2


def test_autocast_with_mixed_dtypes(path):
    """What a model under autocast hands over: bf16 hidden states and an fp32 weight."""
    case = make_case([4, 6, 2], device=path[1])
    hidden = case.hidden.bfloat16().requires_grad_()
    weight = case.weight.requires_grad_()
    with torch.autocast(path[1], dtype=torch.bfloat16):
        loss_of(case, hidden, weight, path[0]).loss.backward()
    assert hidden.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    with pytest.raises(ValueError, match=r"^weight: is torch.float32"):
        loss_of(case, hidden, weight, path[0])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant, path):
    case = make_case([4, 6, 2], device=path[1])
    plain, checkpointed = case.leaves(), case.leaves()

    def block(hidden, weight):
        return loss_of(case, torch.tanh(hidden), weight, path[0]).loss

    block(*plain).backward()
    (2 * checkpoint(block, *checkpointed, use_reentrant=use_reentrant)).backward()
    for a, b in zip(plain, checkpointed):
        torch.testing.assert_close(2 * a.grad, b.grad)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_surroundings(compiler, path):
    case = make_case([4, 6, 2], device=path[1])
    plain, compiled = case.leaves(), case.leaves()

    def model(hidden, weight):
        out = loss_of(case, torch.tanh(hidden) * 2, weight * 1.5, path[0])
        tokens = dk.linear_step_logprobs(torch.sin(hidden), weight, case.targets, case.cu, backend=path[0])
        own = dk.linear_segment_loss(
            hidden, weight, case.targets, case.cu, lambda steps, tokens, a, b: steps.sum(), backend=path[0]
        )
        return 3 * out.loss + tokens.sum() + own.loss, out.step_logps

    loss, steps = model(*plain)
    loss.backward()
    torch._dynamo.reset()
    again, steps_again = torch.compile(model, backend=compiler)(*compiled)
    again.backward()
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(steps_again, steps)
    for a, b in zip(plain, compiled):
        torch.testing.assert_close(a.grad, b.grad)


def program(name, *arguments):
    return subprocess.run(
        [sys.executable, str(HERE / name), *map(str, arguments)], capture_output=True, text=True, timeout=600
    )


def test_fsdp2_root_forward():
    """Gradients of two processes' shards equal one model's; a DTensor weight is refused."""
    done = program("fsdp_case.py")
    assert done.returncode == 0 and "FSDP2 agrees" in done.stdout, done.stderr


def test_logits_are_never_held():
    """N = 8192, V = 50,000: everything made, gradients included, is less than a quarter of the fp32 logits."""
    done = program("memory_case.py", 8192, 50_000, 32)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8192 * 50_000 * 4 / 4


def test_importing_needs_torch_alone():
    code = (
        "import sys, dapo_kernels; print([m for m in ('triton', 'transformers', 'torch._dynamo', 'dapo_fast') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
