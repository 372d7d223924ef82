"""The attention backends by themselves, and which models they refuse."""

import itertools
import random

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GemmaConfig,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2VLConfig,
    RwkvConfig,
)

from dapo_fast.data.batches import actor_groups
from dapo_fast.data.pack import Pack, empty_pack
from dapo_fast.data.packing import pack_actor, pack_sequences
from dapo_fast.data.tree import Candidate, State, Tree, Trunk
from dapo_fast.errors import InputError
from dapo_fast.models.attention import Dense, choose_backend, plan_attention
from dapo_fast.models.checks import check_plugged_in, check_supported
from dapo_fast.models.context import shares
from dapo_fast.models.loading import new_causal_lm
from dapo_fast.models.readpath import PolicyReader
from dapo_fast.models.tree_flex import TreeFlex, tree_block_mask
from dapo_fast.models.tree_sdpa import DENSE_TOKENS, TreeSDPA, plan_blocks, windowed
from dapo_fast.models.variants import PLAIN, Variant


def big_tree(seed: int, steps: int = 5, candidates: int = 5, length: int = 40) -> Tree:
    """Runs and groups of branches on both sides of every threshold."""
    rng = random.Random(seed)

    def ids(count):
        return [rng.randrange(1000) for _ in range(count)]

    trunks, states = [], []
    for index in range(2):
        tokens, ends = list(trunks[0].ids[:50]) if index else [], []
        for step in range(steps):
            tokens += ids(rng.randint(1, length))
            ends.append(len(tokens))
            state = State(index, step, [1.0], [], kept=True)
            for _ in range(rng.randint(0, candidates)):
                begin = list(rng.choice(state.candidates).ids[:9]) if state.candidates and rng.random() < 0.4 else []
                state.candidates.append(
                    Candidate(begin + ids(rng.choice([1, 20, 20, 200])), 1, False, 0.0, advantage=0.0)
                )
            states.append(state)
        trunks.append(Trunk(tokens, ends, 1.0, True))
    return Tree("p", "", "", ids(40), trunks, states, 1, 1)


def pack_of(tree: Tree, lengths: list[int] | None = None) -> Pack:
    trees = [tree, big_tree(9, steps=1)]
    (pack,) = pack_actor(trees, actor_groups(trees), 10**6, lengths)
    return pack


def test_blocks_cover_every_visible_pair_once():
    pack = pack_of(big_tree(0))
    count = torch.zeros(pack.length, pack.length)
    for block in plan_blocks(pack, torch.float32):
        area = count[block.q0 : block.q1, block.k0 : block.k1]
        if block.causal:
            area += torch.ones_like(area).tril()
        else:
            area += torch.ones_like(area) if block.mask is None else (block.mask[0, 0] == 0).float()
    assert torch.equal(count, Dense(pack.subtree_end).mask.float())


@pytest.mark.parametrize("variant", [Variant(window=w) for w in (1, 3, 50)] + [Variant(chunk=c) for c in (4, 33)])
def test_windowed_blocks_cover_every_visible_pair_once(variant):
    pack = pack_of(big_tree(0))
    depths = pack.position_ids
    oldest = variant.oldest(depths)
    visible = Dense(pack.subtree_end).mask & (depths[None, :] >= oldest[:, None])
    blocks = windowed(plan_blocks(pack, torch.float32), depths, oldest, torch.float32)
    count = torch.zeros(pack.length, pack.length)
    for block in blocks:
        area = count[block.q0 : block.q1, block.k0 : block.k1]
        if block.causal:
            area += torch.ones_like(area).tril()
        else:
            area += torch.ones_like(area) if block.mask is None else (block.mask[0, 0] == 0).float()
    assert torch.equal(count, visible.float())
    assert sum((b.q1 - b.q0) * (b.k1 - b.k0) for b in blocks) < visible.numel()


def test_blocks_cost_what_is_visible():
    """Trunk² + branches × trunk: the rows and keys of all blocks together, against the visible pairs."""
    trunk = Trunk(list(range(600)), list(range(30, 601, 30)), 1.0, True)
    states = [
        State(0, step, [1.0], [Candidate([1000 + c] * 25, 1, False, 0.0, advantage=0.0) for c in range(10)], kept=True)
        for step in range(20)
    ]
    tree = Tree("p", "", "", [1, 2, 3], [trunk], states, 1, 1)
    (pack,) = pack_actor([tree], actor_groups([tree]), 10**6)
    area = sum((b.q1 - b.q0) * (b.k1 - b.k0) for b in plan_blocks(pack, torch.float32))
    pairs = int((pack.position_ids + 1).sum())
    assert area < 1.7 * pairs < 0.2 * pack.length**2
    assert len(plan_blocks(pack, torch.float32)) < 4 * len(states) + 2


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 8), (6, 2, 5), (3, 1, 16)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tree_sdpa_against_dense(heads, kv_heads, width, dtype):
    pack = pack_of(big_tree(1))
    assert pack.length > 4 * DENSE_TOKENS
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        flat = torch.randn(1, pack.length, count, width, generator=generator, dtype=torch.float64)
        return flat.to(dtype).transpose(1, 2).requires_grad_()

    tensors = draw(heads), draw(kv_heads), draw(kv_heads)
    upstream = torch.randn(1, pack.length, heads, width, generator=generator, dtype=torch.float64)
    out = TreeSDPA(pack)(*tensors, 0.4)
    grads = torch.autograd.grad(out, tensors, upstream.to(dtype))
    exact = [x.detach().double().requires_grad_() for x in tensors]
    expected = Dense(pack.subtree_end)(*exact, 0.4)
    expected_grads = torch.autograd.grad(expected, exact, upstream.to(dtype).double())
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert actual.dtype == dtype
        assert (actual.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("variant", "sinks", "value_width"),
    [
        (Variant(window=30), False, 16),
        (Variant(chunk=25), False, 16),
        (PLAIN, True, 16),
        (Variant(window=7), True, 16),
        (Variant(softcap=1.5), False, 16),
        (Variant(window=9), False, 8),
        (Variant(window=9), True, 24),
    ],
    ids=str,
)
def test_windows_softcaps_sinks_and_other_widths_of_values(variant, sinks, value_width, dtype):
    """TreeSDPA against the definition in fp64, gradients too; FlexAttention forward."""
    pack = pack_of(big_tree(4))
    generator = torch.Generator().manual_seed(1)

    def draw(count, width):
        flat = torch.randn(1, pack.length, count, width, generator=generator, dtype=torch.float64)
        return flat.to(dtype).transpose(1, 2).requires_grad_()

    tensors = [draw(4, 16), draw(2, 16), draw(2, value_width)]
    if sinks:
        tensors.append(torch.randn(4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_())
    upstream = torch.randn(1, pack.length, 4, value_width, generator=generator, dtype=torch.float64)

    def call(attention, given):
        return attention(*given[:3], 0.4, variant, given[3] if sinks else None)

    out = call(TreeSDPA(pack), tensors)
    grads = torch.autograd.grad(out, tensors, upstream.to(dtype))
    exact = [x.detach().double().requires_grad_() for x in tensors]
    expected = call(Dense(pack.subtree_end, pack.position_ids), exact)
    expected_grads = torch.autograd.grad(expected, exact, upstream.to(dtype).double())
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 5e-2}[dtype]
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert actual.dtype == dtype
        assert (actual.double() - wanted).abs().max() <= tolerance * wanted.abs().max()
    if dtype == torch.float32:
        with torch.no_grad():
            flex = call(TreeFlex(pack), [x.detach() for x in tensors])
        assert (flex.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("variant", [Variant(window=20), Variant(chunk=30)])
def test_windowed_block_mask_against_every_pair(block, variant):
    pack = pack_of(big_tree(2))
    depths, length = pack.position_ids, pack.length
    oldest = variant.oldest(depths)
    mask = tree_block_mask(pack.subtree_end, block, depths, oldest)
    dense = Dense(pack.subtree_end).mask & (depths[None, :] >= oldest[:, None])
    found = 0
    for q in range(-(-length // block)):
        partial = set(mask.kv_indices[0, 0, q, : mask.kv_num_blocks[0, 0, q]].tolist())
        full = set(mask.full_kv_indices[0, 0, q, : mask.full_kv_num_blocks[0, 0, q]].tolist())
        found += len(partial | full)
        for k in range(-(-length // block)):
            area = dense[q * block : (q + 1) * block, k * block : (k + 1) * block]
            assert bool(area.all()) or k not in full
            assert not bool(area.any()) or k in partial | full
    plain = tree_block_mask(pack.subtree_end, block)
    assert block == 128 or found < int(plain.kv_num_blocks.sum() + plain.full_kv_num_blocks.sum())
    rows, keys = torch.arange(length)[:, None], torch.arange(length)[None, :]
    assert torch.equal(mask.mask_mod(0, 0, rows, keys), dense)


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("padding", [0, 77])
def test_block_mask_against_every_pair(block, padding):
    pack = pack_of(big_tree(2))
    ends = torch.cat([pack.subtree_end, pack.length + 1 + torch.arange(padding, dtype=torch.int32)])
    length = ends.numel()
    mask = tree_block_mask(ends, block)
    dense = Dense(ends).mask
    blocks = -(-length // block)
    for q in range(blocks):
        partial = set(mask.kv_indices[0, 0, q, : mask.kv_num_blocks[0, 0, q]].tolist())
        full = set(mask.full_kv_indices[0, 0, q, : mask.full_kv_num_blocks[0, 0, q]].tolist())
        for k in range(blocks):
            area = dense[q * block : (q + 1) * block, k * block : (k + 1) * block]
            assert (k in full) == (bool(area.all()) and k != q)  # the diagonal is masked, never full
            assert (k in partial | full) == bool(area.any())
    rows, keys = torch.arange(length)[:, None], torch.arange(length)[None, :]
    assert torch.equal(mask.mask_mod(0, 0, rows, keys), dense)


def test_flex_is_compiled_once_for_a_length():
    """Another tree of the same length is no reason to recompile."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(flex_attention, dynamic=False, backend="eager")
    length = 1024
    query, key = torch.randn(1, 2, length, 16), torch.randn(1, 2, length, 16)
    for seed in (1, 2, 3):
        ends = pack_of(big_tree(seed, steps=2)).subtree_end[:length]
        ends = torch.cat([ends, torch.arange(ends.numel(), length, dtype=torch.int32) + 1]).clamp(max=length)
        with torch.no_grad():
            out = compiled(query, key, key, block_mask=tree_block_mask(ends))
        torch.testing.assert_close(out.transpose(1, 2), Dense(ends)(query, key, key, 16**-0.5))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("size", [2, 3])
def test_shares_of_a_pack_see_what_their_rows_see(size):
    """FlexAttention's forward, and the dense mask, from a share's rows; whole blocks of a mask are skipped."""
    pack = pack_of(big_tree(1), lengths=[size * 128])
    query, key, value = (torch.randn(1, heads, pack.length, 8) for heads in (4, 2, 2))
    wanted = Dense(pack.subtree_end)(query, key, value, 0.3)
    seen = 0
    for share in shares(pack, size, 128):
        rows = share.split.rows
        plan = TreeFlex(share)
        for attend in (plan, plan_attention(share, "auto")):
            torch.testing.assert_close(attend(query[:, :, rows], key, value, 0.3), wanted[:, rows])
        (mask,) = plan.masks.values()
        seen += int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    whole = tree_block_mask(pack.subtree_end)
    assert seen == int(whole.kv_num_blocks.sum() + whole.full_kv_num_blocks.sum())


def test_flat_packs_are_recognised():
    flat = pack_sequences([([1], [2, 3]), ([4, 5], [6])], 100)[0]
    assert flat.is_flat
    assert not pack_of(big_tree(0)).is_flat
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_backend("auto", cpu, flat=True) == choose_backend("auto", cpu, flat=False) == "tree_sdpa"
    assert choose_backend("auto", cuda, flat=True) == "varlen"
    assert choose_backend("auto", cuda, flat=False) == "flex"
    for flat in (True, False):
        assert choose_backend("auto", cpu, flat, shared=True) == "dense"
        assert choose_backend("auto", cuda, flat, shared=True) == "flex"


def test_varlen_on_a_cpu_is_sdpa_by_sequence():
    flat = pack_sequences([([1], [2, 3]), ([4, 5], [6, 7, 8, 9]), ([1], [2])], 100)[0]
    query, key = torch.randn(1, 4, flat.length, 8), torch.randn(1, 2, flat.length, 8)
    out = plan_attention(flat, "varlen")(query, key, key, 0.3)
    torch.testing.assert_close(out, Dense(flat.subtree_end)(query, key, key, 0.3))


def test_a_demanded_backend_is_used_or_refused():
    with pytest.raises(InputError, match="'varlen' reads flat packs only"):
        plan_attention(pack_of(big_tree(0)), "varlen")
    with pytest.raises(InputError, match="CPU only"):
        choose_backend("tree_sdpa", torch.device("cuda"), flat=False)
    query = torch.randn(1, 2, 128, 8, requires_grad=True)
    with pytest.raises(InputError, match="'flex' has no backward on a CPU"):
        plan_attention(empty_pack([128]), "flex")(query, query, query, 0.3)
    with pytest.raises(InputError, match="'best' is unknown"):
        new_causal_lm(LlamaConfig(), 0, attention="best")
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    plain = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="'sdpa', which cannot read packs"):
        PolicyReader(plain)(empty_pack())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (RwkvConfig(), "its weights change"),
        (LlamaConfig(attention_dropout=0.1), "attention dropout"),
        (Qwen2VLConfig(), "transformers has no causal LM of its kind"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_unsupported_configs(config, reason):
    with pytest.raises(InputError, match=f"somewhere: a {config.model_type} model .*{reason}"):
        check_supported(config, "somewhere")


SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2), "attention interface"),
        (RwkvConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1), "its weights change"),
        (
            FalconConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
            "attention interface",
        ),
    ],
    ids=["bloom", "rwkv", "falcon"],
)
def test_unsupported_classes(config, reason):
    with pytest.raises(InputError, match=reason):
        new_causal_lm(config, 0)


@pytest.mark.parametrize(
    ("made", "trouble"),
    [(lambda out: 2 * out, "log-probabilities differ by"), (lambda out: out[..., :36], "there are 36, and 40 rows")],
    ids=["scaled", "cut"],
)
def test_logits_of_another_kind_are_refused(made, trouble):
    model = new_causal_lm(Olmo2Config(**SMALL, pad_token_id=0), 0)
    model.lm_head.register_forward_hook(lambda module, inputs, out: made(out))
    with pytest.raises(InputError, match=f"^somewhere: the logits of Olmo2ForCausalLM are not .*{trouble}"):
        check_plugged_in(model, "somewhere")


@pytest.mark.parametrize(
    "config",
    [
        Olmo2Config(**SMALL, pad_token_id=0),
        Phi3Config(**SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, sliding_window=4),
        GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=8),
    ],
    ids=lambda config: config.model_type,
)
def test_other_families_are_tried_and_pass(config, caplog):
    with caplog.at_level("INFO", logger="dapo_fast.attention"):
        model = new_causal_lm(config, 0)
    assert "a small pack differs from its sequences by" in caplog.text
    assert model.config._attn_implementation == "dapo_auto"


def test_without_a_pack_the_model_is_an_ordinary_one():
    """Left-padded batches and generation go through transformers' own SDPA and masks."""
    config = LlamaConfig(**SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    ours = new_causal_lm(config, 0)
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(ours.state_dict())
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 3]])
    present = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"attention_mask": present, "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(ours.generate(ids, **options), plain.eval().generate(ids, **options))


def test_autocast():
    """Mixed dtypes, as RoPE leaves them under autocast, are brought to autocast's."""
    pack = pack_of(big_tree(3, steps=3, length=6))
    model = new_causal_lm(LlamaConfig(**(SMALL | {"vocab_size": 1000}), pad_token_id=0), 0)
    exact = PolicyReader(model).step_logps(pack)
    with torch.autocast("cpu", torch.bfloat16):
        out = PolicyReader(model)(pack, objective="cross_entropy")
    out.loss.backward()
    torch.testing.assert_close(out.step_logps, exact, rtol=1e-2, atol=1e-2)


def test_gradient_checkpointing():
    """Recomputed layers see the same plan."""
    tree = big_tree(3, steps=3, length=6)
    pack = pack_of(tree)
    config = LlamaConfig(**(SMALL | {"vocab_size": 1000}), pad_token_id=0)
    found = []
    for checkpointing in (False, True):
        model = new_causal_lm(config, 0).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        PolicyReader(model)(pack, objective="cross_entropy").loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for a, b in itertools.zip_longest(*found):
        torch.testing.assert_close(a, b)
