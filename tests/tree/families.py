"""Every family of docs/models.md: how it is read and sampled, and which tests hold it to that.

``python benchmarks/readme.py`` makes the page's tables of it. The tests take from it what they expect of a family, and
every family that they are run on is in it.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCKS, FLEX = "blocks of flash attention", "FlexAttention"
CACHED, LOCKSTEP, WHOLE, SERVER = "yes", "in lockstep", "each token reads its sequence", "no: use a server"
NO_SHARDING = "refused"
_TREES, _ROWS, _TWO = "`test_families`", "`test_recurrent`", "`test_two_processes`"


@dataclass(frozen=True)
class Row:
    """Families that are alike: a row of a table.

    Attributes:
        layers: What mixes tokens in them.
        cpu, gpu: How a tree is read there; None: padded rows are.
        sampled: By the in-process engine.
        processes: Whether two processes train it.
        tested: In which files of ``tests/tree``.
    """

    families: tuple[str, ...]
    layers: str
    cpu: str | None = None
    gpu: str | None = None
    sampled: str = CACHED
    processes: str = "yes"
    tested: str = f"{_TREES}, {_TWO}"


def _tree(families: str, layers: str, cpu: str, gpu: str, **others: str) -> Row:
    return Row(tuple(families.split()), layers, cpu, gpu, **others)


def _rows(families: str, layers: str, sampled: str, **others: str) -> Row:
    return Row(tuple(families.split()), layers, sampled=sampled, tested=f"{_ROWS}, {_TWO}", **others)


def _more(families: str, layers: str, sampled: str, cpu: str | None = BLOCKS) -> Row:
    return Row(tuple(families.split()), layers, cpu, FLEX if cpu else None, sampled, "", "`test_more_families`")


_MIXED = ("the same, each kind planned once a pack", "the same")
TREES = (
    _tree("llama qwen3", "full", BLOCKS, FLEX, tested="`test_equality`, tests of training"),
    _tree("arcee gemma glm4 granite smollm3 seed_oss", "full", BLOCKS, FLEX),
    _tree("mistral ministral phi3 qwen2", "full or sliding window", "blocks, cut at the window", "block mask"),
    _tree("olmo3 cohere2 exaone4 granite_swa gemma3_text gemma3n_text", "sliding window and full layers", *_MIXED),
    _tree("gemma4_text", "the same, head sizes differ", "the same", "the same", sampled=SERVER),
    _tree("gemma2", "the same, softcapped scores", "dense, T²", "score function"),
    _tree(
        "gpt_oss",
        "sliding window and full layers, sinks; experts",
        "blocks, the sink merged by log-sum-exp",
        "log-sum-exp",
    ),
    _tree(
        "deepseek_v2 deepseek_v3 glm4_moe_lite minicpm3",
        "latent (values narrower than queries); experts",
        "values padded",
        FLEX,
    ),
    _tree("mixtral qwen3_moe olmoe glm4_moe", "full or sliding window; experts", "blocks", FLEX),
)
ROWS = (
    _rows("mamba mamba2 falcon_mamba", "state space", LOCKSTEP),
    _rows("falcon_h1 granitemoehybrid jamba nemotron_h", "state space and attention, experts", LOCKSTEP),
    _rows("bamba", "state space and attention", WHOLE),
    _rows("zamba zamba2", "the same, blocks share weights", LOCKSTEP, processes=NO_SHARDING),
    _rows("qwen3_next qwen3_5_text qwen3_5_moe_text olmo_hybrid", "gated delta net and attention", LOCKSTEP),
    _rows("minimax", "lightning attention and attention, experts", WHOLE),
    _rows("lfm2 lfm2_moe", "short convolution and attention", LOCKSTEP),
    _rows("llama4_text", "chunks and full layers, whose queries grow with the row; experts", LOCKSTEP),
    _rows("recurrent_gemma", "gated linear recurrence and windows", WHOLE),
)
MORE = (
    _more(
        "apertus bitnet cohere ctrl ernie4_5 glm gpt2 gpt_bigcode gpt_neox helium hunyuan_v1_dense hyperclovax "
        "internlm3 iquestcoder jais2 nanochat olmo olmo2 opt persimmon phi starcoder2",
        "full or sliding window",
        CACHED,
    ),
    _more(
        "beam cohere_compass_text cwm flint kolibri1 ministral3 vaultgemma", "sliding window and full layers", CACHED
    ),
    _more(
        "aria_text dbrx dots1 ernie4_5_moe flex_olmo granitemoe granitemoeshared hunyuan_v1_moe hy_v3 jetmoe "
        "minimax_m2 phimoe qwen2_moe solar_open",
        "full or sliding window; experts",
        CACHED,
    ),
    _more(
        "afmoe cohere2_moe exaone_moe granitemoe_swa laguna mellum", "sliding window and full layers; experts", CACHED
    ),
    _more("axk1 youtu", "latent; experts", CACHED, "values padded"),
    _more("diffllama hrm_text", "full, twice in a layer", SERVER),
    _more("gemma4_unified_text", "sliding window and full layers, head sizes differ", SERVER),
    _more("mimo_v2_flash", "the same; experts", SERVER),
    _more("deepseek_v32 glm_moe_dsa hy_v4 axk2", "latent, of keys that an indexer chooses; experts", LOCKSTEP, None),
    _more("minimax_m3_vl_text", "blocks that an indexer chooses, and full layers; experts", LOCKSTEP, None),
    _more("deepseek_v4", "windows, and what is compressed of the rest; experts", LOCKSTEP, None),
    _more("inkling_text inkling2_text lfm3", "short convolution and attention", LOCKSTEP, None),
    _more("kimi_linear bailing_hybrid", "linear and latent attention; experts", LOCKSTEP, None),
    _more("zaya", "convolution and attention; experts", LOCKSTEP, None),
    _more("xlstm", "matrix memory", WHOLE, None),
)


def of(family: str) -> Row:
    """The row that ``family`` stands in."""
    return next(row for row in (*TREES, *ROWS, *MORE) if family in row.families)


def names(*tables: tuple[Row, ...]) -> set[str]:
    """All families of ``tables``."""
    return {family for rows in tables for row in rows for family in row.families}
