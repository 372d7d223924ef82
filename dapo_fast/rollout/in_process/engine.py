"""The engine: loads a policy, says in which dtype it samples, and refuses what it cannot keep a cache of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from dapo_fast.errors import InputError
from dapo_fast.models.checks import check_plugged_in, check_supported
from dapo_fast.models.loading import load_causal_lm, load_config_of, resolve_device
from dapo_fast.models.padded import reads_padded
from dapo_fast.models.variants import context_length
from dapo_fast.rollout.engine import Progress, Sample, SamplingParams
from dapo_fast.rollout.in_process.forward import ATTENTION, Prefill, forward
from dapo_fast.rollout.in_process.generation import Generation
from dapo_fast.rollout.in_process.lockstep import decodes_right
from dapo_fast.rollout.loading import end_tokens, load_tokenizer

if TYPE_CHECKING:
    from dapo_fast.config import ModelSettings

log = logging.getLogger("dapo_fast.rollout.in_process")

BF16_PARAMETERS = 10_000_000  # below, a CPU samples in fp32 whatever it can: casts would cost as much as they save


class InProcessEngine:
    """Samples from a Hugging Face causal LM in this process.

    Args:
        model: Any decoder that takes its attention from transformers' attention interface and attends to everything
            before it, or to a window or chunk of it: its attention implementation is replaced. Or one with a recurrent
            state, whose prompts are read by every sample for itself (``lockstep``).
        tokenizer: Decodes samples; its end token ends them, as do those of ``model.generation_config``.
        max_rows: Most samples decoded side by side; less where their keys and values would not fit in memory.

    Raises:
        InputError: a model whose cache this engine cannot keep.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_rows: int = 512) -> None:
        check_supported(model.config, model.config.name_or_path or "model")
        check_plugged_in(model.eval(), model.config.name_or_path or "model")
        self.model = model
        self.apart = reads_padded(model.config)
        self.cached = self.apart and decodes_right(model)
        if not self.apart:
            model.set_attn_implementation(ATTENTION)
            self._check_cache()
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        configured = getattr(model.generation_config, "eos_token_id", None)
        self.end_ids = sorted(end_tokens(configured, tokenizer, model.config.name_or_path or "model"))
        self.context = context_length(model.config.get_text_config())
        self.generated_tokens = 0
        self.prefilled_tokens = 0

    @torch.inference_mode()
    def _check_cache(self) -> None:
        kept = Prefill()
        forward(self.model, torch.zeros((1, 1), dtype=torch.int64, device=self.model.device), None, kept)
        if kept.alike and kept.once:
            return
        name = f"{self.model.config.name_or_path or 'model'}: {type(self.model).__name__}"
        does = (
            "keeps keys and values of different sizes in different layers" if kept.once else "attends twice in a layer"
        )
        raise InputError(f"{name} {does}, which the in-process engine cannot; use engine.kind: http")

    @classmethod
    def load(cls, directory: str | Path, settings: ModelSettings, max_rows: int = 512) -> InProcessEngine:
        """The engine for a Hugging Face directory. ``settings.dtype`` "auto": see ``sampling_dtype``."""
        tokenizer = load_tokenizer(directory)
        model = load_causal_lm(directory, settings.device, sampling_dtype(directory, settings))
        engine = cls(model, tokenizer, max_rows)
        log.info("in-process sampling on %s in %s, up to %d rows", model.device, model.dtype, max_rows)
        return engine

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, progress: Progress | None = None
    ) -> list[list[Sample]]:
        """``params.n`` samples of each prompt; deterministic. See ``SamplingParams``.

        Raises:
            InputError: an empty prompt, a token outside the vocabulary, or a prompt that fills the model's positions.
        """
        if not prompts:
            return []
        return Generation(self, [list(p) for p in prompts], params, progress).run()


def sampling_dtype(directory: str | Path, settings: ModelSettings) -> str:
    """``settings.dtype``; where that is "auto", bfloat16 on a CPU that multiplies it, for models of some size.

    Decoding reads every weight for a token of each row: at 0.5 B parameters bf16 samples 2.7 times as fast on such a
    CPU, while training stays fp32 there. A rule, not a timed probe: a resumed run samples as the killed one did.
    """
    if settings.dtype != "auto" or resolve_device(settings.device).type != "cpu":
        return settings.dtype
    known = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot say
    if not any(known.get(name) for name in ("amx_bf16", "avx512_bf16")):
        return settings.dtype
    config = load_config_of(directory)
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    return "bfloat16" if parameters >= BF16_PARAMETERS else settings.dtype
