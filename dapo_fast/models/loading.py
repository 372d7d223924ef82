"""Loading models so that they can read packs."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dapo_fast.errors import InputError, blaming
from dapo_fast.models.attention import implementation
from dapo_fast.models.checks import check_plugged_in, check_supported
from dapo_fast.models.files import read_pretrained, stored_tensors, untied_in_files
from dapo_fast.models.padded import choose_padded, reads_padded
from dapo_fast.models.value import ValueModel, architecture_of
from dapo_fast.models.variants import config_of_text
from dapo_fast.snapshots import model_directory
from dapo_fast.sums import check_model

log = logging.getLogger("dapo_fast.models")


def resolve_device(device: str) -> torch.device:
    """``"auto"`` is CUDA where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("model.device: 'cuda' is demanded, but there is no CUDA device")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def device_bytes(device: torch.device) -> int:
    """The whole memory of a GPU, or of the machine: not what is free, so that nothing depends on the moment."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``"auto"`` is bfloat16 on CUDA and float32 elsewhere."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]


def load_config_of(directory: str | Path) -> PreTrainedConfig:
    """The config of a model directory or hub id, checked for attention that trees can honour."""
    directory = model_directory("model", directory, weights=False)
    check_model(directory, weights=False)
    with blaming(directory, "not a readable model directory"):
        config = AutoConfig.from_pretrained(directory)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(
            f"{directory}: its weights are quantised (quantization_config); they cannot be trained or read"
        )
    check_supported(config, str(directory))
    return config_of_text(config)


def load_causal_lm(
    directory: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    attention: str = "auto",
) -> PreTrainedModel:
    """A causal LM from a Hugging Face directory or hub id, ready to read packs.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or a torch device.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or a torch dtype.
        attention: ``"auto"``, or the backend to use and no other (``ModelSettings.attention``).

    Raises:
        InputError: no model there, files that are not the whole of it (``models.files``), or one whose attention a
            tree cannot honour.
    """
    directory = model_directory("model", directory)
    device, dtype, name = _resolved(device, dtype, attention, _config_of_policy(directory))
    model = read_pretrained(AutoModelForCausalLM, directory, dtype=dtype, attn_implementation=name)
    head = model.get_output_embeddings()
    tied = getattr(model.config, "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not model.get_input_embeddings().weight:
        _say_untied(directory, model.config)
    return _ready(model, directory, device)


def _config_of_policy(directory: str | Path) -> PreTrainedConfig:
    config = load_config_of(directory)
    architecture = architecture_of(config, directory)
    if architecture.endswith("Classification"):
        # transformers would load it, with a random lm_head.
        raise InputError(f"{directory}: a {architecture}, not a causal LM; a critic is no policy")
    return config


def _say_untied(directory: str | Path, config: PreTrainedConfig) -> None:
    """Have ``config`` say what the files hold."""
    config.tie_word_embeddings = False
    log.warning("%s: config.json ties lm_head and embedding, but the files hold two; they stay two", directory)


def causal_lm_skeleton(directory: Path, attention: str = "auto") -> PreTrainedModel:
    """The causal LM of a directory for weights that are read later: parameters on the meta device, buffers computed.

    Raises:
        InputError: as ``load_causal_lm``, of what can be said without the weights.
    """
    config = _config_of_policy(directory)
    options = {"dtype": torch.float32, "attn_implementation": _implementation(config, attention)}
    with blaming(directory, f"no causal LM can be built of this {config.model_type} config"), _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config, **options)
        stored = stored_tensors(directory)
        if untied_in_files(model, stored) is not None:
            _say_untied(directory, config)
            model = AutoModelForCausalLM.from_config(config, **options)
    names = untied_in_files(model, stored)
    if names is not None:
        raise InputError(f"{directory}: its files hold {' and '.join(names)}, which are one in {type(model).__name__}")
    return _bare(model, directory)


def value_model_skeleton(directory: Path, attention: str = "auto") -> ValueModel:
    """The value model on the backbone of a directory, as ``causal_lm_skeleton``."""
    config = load_config_of(directory)
    name = _implementation(config, attention)
    with blaming(directory, f"no critic can be built of this {config.model_type} config"), _parameters_on_meta():
        value_model = ValueModel.from_config(config, 0, torch.float32, attn_implementation=name)
    _bare(value_model.model, directory)
    return value_model


def _bare(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    _name_backbone(model)
    check_plugged_in(model, str(directory))
    for parameter in model.parameters():
        parameter.data = parameter.data.float()  # some families make a few of another type whatever is asked for
    return model.eval()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made within have parameters without values. Their buffers have them: nothing else could compute them."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def new_causal_lm(
    config: PreTrainedConfig,
    seed: int,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    attention: str = "auto",
) -> PreTrainedModel:
    """A causal LM with random weights, a function of ``config`` and ``seed`` alone."""
    check_supported(config, "config")
    device, dtype, name = _resolved(device, dtype, attention, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=name)
    return _ready(model, "config", device)


def load_value_model(
    directory: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    attention: str = "auto",
    init: str = "saved",
    seed: int = 0,
) -> ValueModel:
    """A value model, ready to read packs.

    Args:
        directory: A Hugging Face directory or hub id.
        init: ``"saved"``: ``directory`` is a value model that was saved; ``"causal_lm"``: the backbone of a causal LM
            with a head of zeros; ``"scratch"``: the causal LM's config only, random weights from ``seed``.

    Raises:
        InputError: as ``load_causal_lm``; or ``directory`` is not of the kind that ``init`` says.
    """
    directory = model_directory("model", directory, weights=init != "scratch")
    config = load_config_of(directory)
    device, dtype, name = _resolved(device, dtype, attention, config)
    options = {"dtype": dtype, "attn_implementation": name}
    if init == "saved":
        value_model = ValueModel.from_pretrained(directory, **options)
    elif init == "causal_lm":
        value_model = ValueModel.from_causal_lm(directory, **options)
    elif init == "scratch":
        value_model = ValueModel.from_config(config, seed, **options)
    else:
        raise ValueError(f"init: expected saved, causal_lm or scratch, got {init!r}")
    _ready(value_model.model, directory, device)
    return value_model


def _resolved(
    device: str | torch.device, dtype: str | torch.dtype, attention: str, config: PreTrainedConfig
) -> tuple[torch.device, torch.dtype, str | None]:
    device = resolve_device(device) if isinstance(device, str) else device
    return device, resolve_dtype(dtype, device), _implementation(config, attention)


def _implementation(config: PreTrainedConfig, attention: str) -> str | None:
    """``attn_implementation`` of a model that reads packs; None, transformers' choice, of one that reads sequences."""
    if not reads_padded(config):
        return implementation(attention)
    choose_padded(config.model_type, attention)
    return None


def _ready(model: PreTrainedModel, source: str | Path, device: torch.device) -> PreTrainedModel:
    model.eval()  # some have dropout that no setting of ours turns off
    _name_backbone(model)
    check_plugged_in(model, str(source))
    use_liger(model, device)
    return model.to(device)


def _name_backbone(model: PreTrainedModel) -> None:
    # Llama 4's says that it is called "language_model", which it has not: transformers then finds none.
    if model.base_model is model and isinstance(getattr(model, "model", None), PreTrainedModel):
        model.base_model_prefix = "model"


def use_liger(model: PreTrainedModel, device: torch.device) -> None:
    """Liger's RMSNorm, RoPE and SwiGLU in a model that will run on ``device``, where that is CUDA; in place.

    A warning, and the model as it is, where Liger is not installed.
    """
    if device.type != "cuda":
        return
    if importlib.util.find_spec("liger_kernel") is None:
        log.warning("liger_kernel is not installed: %s runs without Liger's kernels, slower", type(model).__name__)
        return
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    # The losses are dapo_kernels'; only what runs in every layer is Liger's.
    _apply_liger_kernel_to_instance(
        model, rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )
    log.info("Liger RMSNorm, RoPE and SwiGLU for %s", type(model).__name__)
