"""The Triton kernels on any machine: their interpreter's results, and the compilers' of four GPUs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
# The tests that run once more on the Triton kernels.
THROUGH_TRITON = (
    "epilogue",
    "segment_loss",
    "objectives",
    "gradients",
    "logprobs",
    "statistics",
    "value",
    "nonfinite",
    "passes",
    "penalty",
    "triton",
)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def clean_process(*command, **environment):
    """Triton decides at import whether it interprets: so each of these has a process to itself."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, timeout=600)


if not INTERPRETED:

    def test_kernels_agree_with_fp64_in_the_interpreter(capsys):
        done = clean_process(
            *(
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                *(str(HERE / f"test_{name}.py") for name in THROUGH_TRITON),
            ),
            TRITON_INTERPRET="1",
        )
        assert done.returncode == 0, done.stdout[-8000:]
        assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout, done.stdout[-2000:]

    def test_kernels_compile_for_every_gpu_without_spills(capsys):
        done = clean_process(str(HERE / "compile_gate.py"))
        with capsys.disabled():
            print("\n" + done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_one_form_of_each_kernel_is_compiled():
        """What varies from chunk to chunk (lengths, offsets' alignment) compiles nothing in the midst of training."""
        done = clean_process(str(HERE / "variants_case.py"))
        assert done.returncode == 0, done.stderr
        forms = json.loads(done.stdout)
        assert forms.pop("logprob_kernel") == 2  # of chunks whose entries share rows, and of those where none do
        assert len(forms) == 6 and set(forms.values()) == {1}, forms

    def test_the_gate_sees_spills_scalars_and_forgotten_kernels():
        code = (
            "import compile_gate as g\n"
            "kernel, types, constants, _ = g.GATES['dlogits fp32 bias softcap rows']\n"
            "big = g.compile_for(g.TARGETS['sm_90'], kernel, types, constants, 1)\n"
            "assert g.resources(big)[1] > 0\n"
            "odd = g.compile_for(g.TARGETS['sm_90'], *g.GATES['value bf16 bce odd'], odd=True)\n"
            "assert g.vectors(odd) < g.VECTORS['value bf16 bce']\n"
            "g.TARGETS = {}\n"
            "g.GATES.pop('value_d_weight')\n"
            "assert g.main() == 1\n"
        )
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = clean_process("-c", code, PYTHONPATH=os.pathsep.join(paths))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "value_d_weight_kernel: not in the compile gate's table" in done.stdout

else:

    def test_offsets_beyond_31_bits():
        """Rows 2^30 elements apart: the third starts where 32 bits end. Untouched memory is never made real."""
        from dapo_kernels.ops.dlogits import dlogits
        from dapo_kernels.ops.exponentials import exponentials
        from dapo_kernels.ops.logprob import logprob

        stride, rows, vocabulary = 1 << 30, 3, 50
        store = torch.empty(rows * stride, dtype=torch.float32)
        logits = store.view(rows, stride)[:, :vocabulary]
        values = torch.randn(rows, vocabulary)
        logits.copy_(values)
        targets = torch.tensor([3, 49, 7])
        logps, picked, lse, _ = logprob(logits, None, targets, None, None, None, 1.0, -100, False)
        exact = values.double().log_softmax(1)
        torch.testing.assert_close(logps.double(), exact[range(3), targets], atol=1e-5, rtol=0)
        gradient = torch.tensor([1.0, -2.0, 0.5])
        out = store.view(torch.bfloat16).view(rows, 2 * stride)[:, :vocabulary]
        dlogits(logits, out, None, targets, None, None, gradient, gradient, picked, lse, None, 1.0, -100)
        wanted = -exact.exp()
        wanted[range(3), targets] += 1
        torch.testing.assert_close(out.double(), wanted * gradient[:, None], atol=2e-2, rtol=1e-2)
        logits.copy_(values)
        logps, sums, _, _ = exponentials(logits, out, None, targets, None, 1.0, -100, False)
        torch.testing.assert_close(logps.double(), exact[range(3), targets], atol=1e-5, rtol=0)
        torch.testing.assert_close(out.double() / -sums[:, None], wanted, atol=2e-2, rtol=1e-2)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("step", [2000, -2000, 25, 35, 0])
    def test_an_origin_that_moves(step, dtype):
        """Blocks far above or below the first: what was written is scaled once more, and nothing overflows."""
        from dapo_kernels.ops.exponentials import BLOCK, exponentials

        vocabulary = 2 * BLOCK + 50
        memory = torch.empty(3, vocabulary + 14)
        logits = memory[:, :vocabulary]
        logits.copy_(torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(0)))
        logits += torch.arange(vocabulary) // BLOCK * step
        logits[2, :BLOCK] = float("-inf")
        exact = logits.double()
        targets, out = torch.tensor([3, vocabulary - 1, -100]), memory.view(dtype)[:, :vocabulary]
        logps, sums, lse, entropies = exponentials(logits, out, None, targets, None, 1.0, -100, True)
        wanted = exact.softmax(1)
        assert torch.allclose(entropies.double(), torch.special.entr(wanted).sum(1), rtol=1e-5, atol=1e-4)
        assert torch.allclose(lse.double(), exact.logsumexp(1), rtol=1e-6)
        assert torch.allclose(logps[:2].double(), exact.log_softmax(1)[[0, 1], targets[:2]], rtol=1e-5, atol=1e-5)
        wanted[[0, 1], targets[:2]] -= 1
        tolerance = 1e-5 if dtype == torch.float32 else 8e-3
        assert ((out.double() / sums[:, None] - wanted).abs() <= tolerance * wanted.abs() + 1e-9).all()

    def test_tokens_outside_all_steps_have_no_gradient(monkeypatch):
        """On a GPU offsets need not be looked at: where they leave tokens out, no memory shows through."""
        from dapo_kernels.ops import direct_advantage as of_steps

        empty_like = torch.empty_like
        monkeypatch.setattr(torch, "empty_like", lambda t: empty_like(t).fill_(float("nan")))
        offsets, data = torch.tensor([1, 3, 4]), torch.ones(2)
        loss = torch.zeros(())
        _, gradient = of_steps.direct_advantage(-torch.rand(6), offsets, data, data, 0.5, 2.0, loss, True)
        assert gradient[[0, 4, 5]].tolist() == [0, 0, 0] and gradient[1:4].all()

    @pytest.mark.parametrize("wrong", [-1, -(10**12), 50, 10**12])
    def test_wrong_targets_stay_in_bounds(wrong):
        """On a GPU targets are not looked at: a wrong one gives a wrong number, not a wrong address."""
        from dapo_kernels.ops.dlogits import dlogits
        from dapo_kernels.ops.exponentials import exponentials
        from dapo_kernels.ops.logprob import logprob

        guarded = torch.full((4, 64), float("nan"))
        logits = guarded[1:3, :50]  # its rows own the columns up to 64
        logits.copy_(torch.randn(2, 50))
        targets = torch.tensor([wrong, 3])
        logps, picked, lse, _ = logprob(logits, None, targets, None, None, None, 1.0, -100, False)
        assert torch.isfinite(logps).all()
        dlogits(logits, logits, None, targets, None, None, torch.ones(2), torch.ones(2), picked, lse, None, 1.0, -100)
        assert torch.isfinite(logits).all() and guarded[[0, 3]].isnan().all()
        logps, *_ = exponentials(logits, logits, None, targets, None, 1.0, -100, False)
        assert torch.isfinite(logps).all() and torch.isfinite(logits).all() and guarded[[0, 3]].isnan().all()
