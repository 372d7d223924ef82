"""Compile every Triton kernel, at the block sizes it ships with, for four GPUs; print registers and spills.

Run it as a program, in a process without TRITON_INTERPRET. Needs no GPU. Exits 1 if a kernel is not listed here, does
not compile, spills on sm_90, or reads its large operands in scalars there.
"""

import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from dapo_kernels import ops
from dapo_kernels.ops import (
    direct_advantage,
    dlogits,
    exponentials,
    final_logits,
    gemm_exponentials,
    logprob,
    segment_sum,
    value,
)
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
F32, I32, I64 = "*fp32", "*i32", "*i64"
HEAD = {"V": "i32", "softcap": "fp32", "inverse_temperature": "fp32", "ignore_index": "i32"}
ENTRIES = {"bias_ptr": F32, "targets_ptr": I64, "order_ptr": I64, "starts_ptr": I32}
LOGPROB = {"logits_ptr": F32, "row_stride": "i32", "logps_ptr": F32, "picked_ptr": F32, "lse_ptr": F32}
LOGPROB |= {"entropy_ptr": F32}
DLOGITS = {"logits_ptr": F32, "row_stride": "i32", "out_stride": "i32", "gradient_ptr": F32} | {
    "softmax_ptr": F32,
    "picked_ptr": F32,
    "lse_ptr": F32,
}
ALL = {"HAS_BIAS": True, "HAS_SOFTCAP": True, "HAS_ORDER": True, "ALIGN": final_logits.ALIGN}
PLAIN = ALL | {"HAS_BIAS": False, "HAS_SOFTCAP": False, "HAS_ORDER": False}
# Sizes that the kernels may be specialised on are multiples of 16; a gate named "odd" compiles the other form.
SIZES = ("V", "H")


def logprob_gate(flags, entropy):
    constants = {**flags, "HAS_ENTROPY": entropy, "BLOCK": logprob.BLOCK}
    return logprob.logprob_kernel, {**LOGPROB, **ENTRIES, **HEAD}, constants, logprob.WARPS


def dlogits_gate(dtype, flags):
    constants = {**flags, "NARROW": dtype != "fp32", "BLOCK": dlogits.BLOCK}
    return dlogits.dlogits_kernel, {**DLOGITS, **ENTRIES, **HEAD, "dlogits_ptr": f"*{dtype}"}, constants, dlogits.WARPS


def exponentials_gate(dtype, flags, entropy):
    kernel, types = exponentials.exponentials_kernel, {**LOGPROB, **ENTRIES, **HEAD, "sums_ptr": F32}
    types |= {"values_ptr": f"*{dtype}", "out_stride": "i32"}
    flags = {name: flag for name, flag in flags.items() if name != "HAS_ORDER"}
    constants = {**flags, "HAS_ENTROPY": entropy, "HEADROOM": exponentials.HEADROOM, "BLOCK": exponentials.BLOCK}
    return kernel, types, constants, exponentials.WARPS


def gemm_exponentials_gate(flags, values):
    kernel = gemm_exponentials.gemm_exponentials_kernel
    types = {"x_ptr": "*bf16", "weight_ptr": "*bf16", "bias_ptr": F32, "targets_ptr": I64, "values_ptr": "*bf16"}
    types |= {
        "blocks_ptr": F32,
        "origins_ptr": F32,
        "totals_ptr": F32,
        "picked_ptr": F32,
        "x_stride": "i32",
        "weight_stride": "i32",
    }
    types |= {"out_stride": "i32", "U": "i32", "V": "i32", "H": "i32", "words": "i32"}
    types |= {"softcap": "fp32", "inverse_temperature": "fp32"}
    constants = {name: flag for name, flag in flags.items() if name != "HAS_ORDER"}
    constants |= {"HAS_VALUES": values, "HEADROOM": gemm_exponentials.HEADROOM}
    constants |= {name: getattr(gemm_exponentials, name) for name in ("BLOCK_ROWS", "BLOCK_WORDS", "BLOCK_WIDTH")}
    return kernel, types, constants, gemm_exponentials.WARPS


def value_gate(dtype, bce, weights):
    kernel = value.value_kernel
    pointers = {"hidden_ptr": f"*{dtype}", "weight_ptr": f"*{dtype}", "bias_ptr": f"*{dtype}", "rows_ptr": I64}
    pointers |= {"order_ptr": I64, "run_ends_ptr": I64, "targets_ptr": F32, "weights_ptr": F32, "normalizer_ptr": F32}
    pointers |= {"logits_ptr": F32, "losses_ptr": F32, "slopes_ptr": F32, "d_hidden_ptr": f"*{dtype}"}
    numbers = {"hidden_stride": "i32", "H": "i32", "T": "i32"}
    constants = {"HAS_BIAS": True, "HAS_WEIGHTS": weights, "HAS_D_HIDDEN": True, "BCE": bce}
    constants["BLOCK_WIDTH"] = value.BLOCK_WIDTH
    return kernel, pointers | numbers, constants, value.WARPS


# name → (kernel, argument types, constants, warps): every way a kernel is launched that makes different code.
GATES = {
    "logprob plain": logprob_gate(PLAIN, False),
    "logprob bias softcap rows": logprob_gate(ALL, False),
    "logprob plain entropy": logprob_gate(PLAIN, True),
    "logprob bias softcap rows entropy": logprob_gate(ALL, True),
    **{f"exponentials {dtype} plain": exponentials_gate(dtype, PLAIN, False) for dtype in ("bf16", "fp32")},
    **{f"exponentials {d} bias softcap": exponentials_gate(d, ALL, False) for d in ("bf16", "fp32")},
    "exponentials bf16 plain entropy": exponentials_gate("bf16", PLAIN, True),
    **{f"dlogits {dtype} plain": dlogits_gate(dtype, PLAIN) for dtype in ("bf16", "fp16", "fp32")},
    **{f"dlogits {dtype} bias softcap rows": dlogits_gate(dtype, ALL) for dtype in ("bf16", "fp16", "fp32")},
    "gemm_exponentials plain": gemm_exponentials_gate(PLAIN, True),
    "gemm_exponentials plain forward": gemm_exponentials_gate(PLAIN, False),
    "gemm_exponentials bias softcap": gemm_exponentials_gate(ALL, True),
    "late_origins": (
        gemm_exponentials.late_origins_kernel,
        {"values_ptr": "*bf16", "blocks_ptr": F32, "origins_ptr": F32, "out_stride": "i32", "U": "i32"}
        | {"blocks_of_split": "i32"},
        {"BLOCK_ROWS": gemm_exponentials.BLOCK_ROWS, "BLOCK_WORDS": gemm_exponentials.BLOCK_WORDS},
        gemm_exponentials.WARPS,
    ),
    "segment_sum": (
        segment_sum.segment_sum_kernel,
        {"tokens_ptr": F32, "offsets_ptr": I32, "sums_ptr": F32, "n": "i32", "k": "i32"},
        {"BLOCK_SEGMENTS": segment_sum.BLOCK_SEGMENTS, "BLOCK_TOKENS": segment_sum.BLOCK_TOKENS},
        segment_sum.WARPS,
    ),
    **{
        f"direct_advantage {'training' if training else 'forward'}": (
            direct_advantage.direct_advantage_kernel,
            {"tokens_ptr": F32, "offsets_ptr": I32, "advantages_ptr": F32, "ref_ptr": F32, "normalizer_ptr": F32}
            | {"steps_ptr": F32, "loss_ptr": F32, "gradient_ptr": F32, "n": "i32", "k": "i32", "beta": "fp32"},
            {
                "HAS_GRADIENT": training,
                "BLOCK_STEPS": direct_advantage.BLOCK_STEPS,
                "BLOCK_TOKENS": direct_advantage.BLOCK_TOKENS,
            },
            direct_advantage.WARPS,
        )
        for training in (True, False)
    },
    **{f"value {dtype} bce": value_gate(dtype, True, False) for dtype in ("bf16", "fp32")},
    "value bf16 mse": value_gate("bf16", False, False),
    "value bf16 bce odd": value_gate("bf16", True, False),
    **{f"value bf16 {k} weights": value_gate("bf16", k == "bce", True) for k in ("bce", "mse")},
    "value_d_weight": (
        value.value_d_weight_kernel,
        {"hidden_ptr": "*bf16", "hidden_stride": "i32", "rows_ptr": I64, "slopes_ptr": F32, "partial_ptr": F32}
        | {"M": "i32", "H": "i32", "T": "i32"},
        {"SPLIT_ROWS": value.SPLIT_ROWS, "SPLIT_WIDTH": value.SPLIT_WIDTH},
        value.WARPS,
    ),
}


def shipped_kernels():
    """Every @triton.jit function of dapo_kernels.ops that is launched (a leading underscore: called by kernels)."""
    found = {}
    for module in pkgutil.iter_modules(ops.__path__):
        for name, thing in vars(importlib.import_module(f"{ops.__name__}.{module.name}")).items():
            if isinstance(thing, JITFunction) and not name.startswith("_"):
                found[name] = thing
    return found


def compile_for(target, kernel, types, constants, warps, odd=False):
    """The compiled kernel: pointers, strides and sizes are multiples of 16 where the launch would be specialised so."""
    types = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    indexes = {name: (kernel.arg_names.index(name),) for name in types}
    specialised = {param.name for param in kernel.params if not param.do_not_specialize}
    multiples = {n for n, t in types.items() if t.startswith("*") or (not odd and ("stride" in n or n in SIZES))}
    aligned = {indexes[n]: [["tt.divisibility", 16]] for n in multiples & specialised}
    source = ASTSource(kernel, types, {indexes[name]: v for name, v in constants.items()}, aligned)
    return triton.compile(source, target=target, options={"num_warps": warps})


def resources(compiled):
    """(registers, bytes spilled per thread) from the machine code."""
    if "cubin" not in compiled.asm:
        amd = compiled.asm["amdgcn"]
        spills = sum(int(n) for n in re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", amd))
        return int(re.search(r"\.vgpr_count:\s+(\d+)", amd).group(1)), spills
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        shown = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True)
    text = shown.stdout + shown.stderr
    # Spilled registers live on the stack; local memory is what a kernel asks for itself (none of these does).
    stack, local = (int(re.search(rf"{word}:(\d+)", text).group(1)) for word in ("STACK", "LOCAL"))
    return int(re.search(r"REG:(\d+)", text).group(1)), stack + local


def vectors(compiled):
    """How many loads and stores of 16 bytes a thread makes to global memory, in the text of the PTX."""
    return len(re.findall(r"(?:ld|st)\.global[.\w:]*\.v(?:4\.[bfu]32|2\.[bfu]64)", compiled.asm["ptx"]))


# name → accesses of 16 bytes in its PTX: the logits (and bias) read in blocks of 16 a thread, whatever V is.
VECTORS = {
    "logprob plain": 4,
    "logprob plain entropy": 4,
    "logprob bias softcap rows": 8,
    "exponentials bf16 plain": 10,
    "exponentials fp32 plain": 16,
    "dlogits bf16 plain": 6,
    "dlogits fp32 plain": 8,
}
VECTORS |= {"value bf16 bce": 4}  # of a hidden size that is a multiple of 16


def main():
    listed = {kernel for kernel, *_ in GATES.values()}
    missing = [name for name, kernel in shipped_kernels().items() if kernel not in listed]
    failed = [f"{name}: not in the compile gate's table" for name in missing]
    print(f"{'kernel':<40}" + "".join(f"{target:>20}" for target in TARGETS))
    for name, gate in GATES.items():
        cells = []
        for target_name, target in TARGETS.items():
            compiled = compile_for(target, *gate, odd=name.endswith("odd"))
            registers, spilled = resources(compiled)
            if target_name == "sm_90" and vectors(compiled) < VECTORS.get(name, 0):
                failed.append(f"{name}: {vectors(compiled)} vector accesses on sm_90, not {VECTORS[name]}")
            cells.append(f"{registers} reg {spilled} spill")
            if spilled and target_name == "sm_90":
                failed.append(f"{name}: spills {spilled} bytes on sm_90")
        print(f"{name:<40}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    print("\n".join(failed) or f"all {len(shipped_kernels())} kernels compile for {', '.join(TARGETS)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
