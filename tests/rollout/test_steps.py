"""Steps are whole tokens and add up to the response, id for id and byte for byte."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_cases import TEXT, byte_level_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dapo_fast.errors import InputError
from dapo_fast.rollout.in_process.prefixes import Job
from dapo_fast.rollout.in_process.slots import Slots
from dapo_fast.rollout.in_process.stopping import Stopping
from dapo_fast.rollout.steps import Splitter, split_steps
from dapo_fast.tasks import get_task

TOKENIZER = byte_level_tokenizer()
EOS = TOKENIZER.eos_token_id
SPLITTERS = ["line", "blank_line", "sentence", r"regex:[aeiou]", r"regex:\d+", r"regex:(?=x)", r"regex:é|学"]

text = st.lists(st.sampled_from([*"ab x3.\n\n\n \t", "é", "数学", "🙂", "\n\n", "1.5", "! ", "</s>"]), max_size=40)


def encode(value):
    return TOKENIZER(value, add_special_tokens=False)["input_ids"]


def decode(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def steps_of(value, splitter="line", end=False, tokenizer=TOKENIZER):
    ids = tokenizer(value, add_special_tokens=False)["input_ids"] + ([tokenizer.eos_token_id] if end else [])
    ends = split_steps(ids, tokenizer, splitter)
    return [tokenizer.decode(ids[a:b]) for a, b in zip([0, *ends], ends)]


def by_byte(value):
    """One token for each byte, so that characters are spread over tokens."""
    return [encode(chr(b))[0] if b < 128 else _byte_token(b) for b in value.encode()]


def _byte_token(byte):
    # ByteLevel maps bytes 0xA1-0xAC, 0xAE-0xFF to themselves as characters and the rest to 256 and up, in order.
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [b for b in range(256) if b not in kept]
    character = chr(byte) if byte in kept else chr(256 + shifted.index(byte))
    return TOKENIZER.convert_tokens_to_ids(character)


def check(ids, splitter):
    cutter = Splitter(TOKENIZER, splitter)
    ends = cutter.split(ids)
    assert ends == sorted(set(ends)) and (ends[-1] if ends else 0) == len(ids)
    steps = [ids[a:b] for a, b in zip([0, *ends], ends)]
    assert [token for step in steps for token in step] == list(ids)
    assert "".join(map(decode, steps)) == decode(ids)
    assert 0 <= cutter.moved <= cutter.boundaries
    assert all(decode(step).strip() for step in steps[:-1])
    return steps


@settings(max_examples=150, deadline=None)
@given(text, st.sampled_from(SPLITTERS), st.booleans(), st.booleans())
def test_steps_add_up(pieces, splitter, end, bytewise):
    value = "".join(pieces)
    ids = (by_byte(value) if bytewise else encode(value)) + ([EOS] if end else [])
    assert decode(ids) == value
    check(ids, splitter)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30), st.sampled_from(SPLITTERS))
def test_any_tokens_are_cut_into_whole_tokens(ids, splitter):
    ends = split_steps(ids, TOKENIZER, splitter)
    assert ends == sorted(set(ends)) and (ends[-1] if ends else 0) == len(ids)


def cut_at(stopping, ids):
    """After how many tokens a sample that draws ``ids`` is cut, and to what length; None: never."""
    rows = Slots(1, len(ids), logprobs=False)
    rows.take(Job(0, 0, 0), [0], len(ids))
    for count, token in enumerate(ids, 1):
        rows.last[0] = rows.tokens[0, count - 1] = token
        rows.drawn[0] = count
        if stopping.cut(rows, np.array([count == len(ids)]))[0]:
            return count, int(rows.drawn[0])
    return None


@settings(max_examples=150, deadline=None)
@given(text, st.sampled_from(SPLITTERS), st.booleans())
def test_a_growing_sample_is_cut_at_the_token_after_its_first_step(pieces, splitter, bytewise):
    value = "".join(pieces)
    ids = by_byte(value) if bytewise else encode(value)
    cutter = Splitter(TOKENIZER, splitter)
    wanted = None
    for count in range(1, len(ids) + 1):
        first = cutter.split(ids[:count])[0]
        if first < count and (count == len(ids) or decode(ids[first:count]).strip()):
            wanted = count, first
            break
    found = cut_at(Stopping(Splitter(TOKENIZER, splitter)), ids)
    assert found == wanted or (wanted is None and found == (len(ids), len(ids)))  # which drops nothing


def test_a_growing_sample_is_not_cut_into_steps_at_every_token(monkeypatch):
    splits = []
    split = Splitter.split
    monkeypatch.setattr(Splitter, "split", lambda self, ids: splits.append(len(ids)) or split(self, ids))
    ids = encode("\n\n" + "x + 3 is so " * 20 + "\n\nThen")
    _, first = cut_at(Stopping(Splitter(TOKENIZER)), ids)
    assert decode(ids[:first]).endswith("so \n\n") and len(splits) <= 4 < first


@settings(max_examples=100, deadline=None)
@given(text)
def test_a_line_is_a_line(pieces):
    value = "".join(pieces)
    for step in check(by_byte(value), "line")[:-1]:
        line = decode(step)
        assert line.endswith("\n") and "\n" not in line.strip().replace("\r", "")


def test_the_end_token_belongs_to_the_last_step():
    assert steps_of("a\nb", end=True) == ["a\n", "b<eos>"]
    assert steps_of("a\nb\n", end=True) == ["a\n", "b\n", "<eos>"]
    assert steps_of("", end=True) == ["<eos>"]
    assert split_steps([], TOKENIZER) == []


def test_blank_lines_belong_to_the_step_before():
    assert steps_of("a\n\n \nb\n") == ["a\n\n \n", "b\n"]
    assert steps_of("\n\na\nb") == ["\n\na\n", "b"]
    assert steps_of("a\nb\n\nc", "blank_line") == ["a\nb\n\n", "c"]


def test_sentences_and_patterns():
    ids = by_byte("It is 3.5 m. Right? Yes.\nSo")
    ends = split_steps(ids, TOKENIZER, "sentence")
    assert [decode(ids[a:b]) for a, b in zip([0, *ends], ends)] == ["It is 3.5 m. ", "Right? ", "Yes.\n", "So"]
    ids = by_byte("a;b;c")
    assert split_steps(ids, TOKENIZER, "regex:;") == [2, 4, 5]


def test_a_boundary_inside_a_token_moves_to_its_end_and_is_counted():
    ids = encode(TEXT[0])
    long = next(i for i, t in enumerate(ids) if len(decode([t])) > 1 and decode([t]).isalpha())
    word = decode(ids[long : long + 1])
    splitter = Splitter(TOKENIZER, f"regex:{word[0]}(?={word[1]})")
    ends = splitter.split(ids)
    assert splitter.moved >= 1
    assert long + 1 in ends


def words(kind):
    """A tokenizer whose tokens are whole words with the blank before them, as byte-level BPE or as SentencePiece."""
    text = ["It is so. That is why? Yes.\nThen we see: it is so.\n\nNow that is it. Yes."] * 8
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind == "sentencepiece", unk_token="<unk>"))
    if kind == "sentencepiece":
        # SentencePiece's own models keep a line break as a byte of its own.
        lines = pre_tokenizers.Split("\n", "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="never")])
        tokenizer.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback()])
        alphabet = []
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<unk>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_a_token_that_begins_with_the_blank_before_its_word_begins_the_next_step(kind):
    tokenizer = words(kind)
    value = "It is so. That is why? Yes.\nThen we see: it is so.\n\nNow that is it. Yes."
    ids = tokenizer(value, add_special_tokens=False)["input_ids"]
    assert any(tokenizer.decode([token]) not in ("That", "T") and "That" in tokenizer.decode([token]) for token in ids)
    splitter = Splitter(tokenizer, "sentence")
    ends = splitter.split(ids)
    steps = [tokenizer.decode(ids[:b])[len(tokenizer.decode(ids[:a])) :] for a, b in zip([0, *ends], ends)]
    assert [step.strip() for step in steps] == re.split(r"(?<=[.?])\s+", value)
    assert splitter.moved == 0 and splitter.boundaries == len(ends) - 1
    # A sample that is stopped at its first step sees a token more than the step has.
    assert [splitter.first(ids[:length]) for length in range(ends[0] + 1, len(ids))] == [ends[0]] * (
        len(ids) - ends[0] - 1
    )


def test_a_boundary_inside_a_character_moves_to_its_end():
    value = "a\u00e9\nb"  # the two bytes of the accented letter are two tokens
    ids = by_byte(value)
    assert [decode(ids[a:b]) for a, b in zip([0, 3], [3, 5])] == ["aé", "\nb"]
    assert split_steps(ids, TOKENIZER, "regex:a") == [1, 5]
    assert split_steps(ids, TOKENIZER, "regex:é") == [3, 5]


def test_long_responses_with_part_characters_are_cut_in_reasonable_time():
    ids = by_byte("数学は楽しい🙂\n" * 200)
    assert len(split_steps(ids, TOKENIZER)) == 200


def test_the_built_in_task():
    tokenizer = get_task("arithmetic").tokenizer()
    ids = tokenizer("6*3=4-6\n4-6=5", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ends = split_steps(ids, tokenizer)
    assert [tokenizer.decode(ids[a:b]) for a, b in zip([0, *ends], ends)] == ["6*3=4-6\n", "4-6=5<eos>"]


@pytest.mark.parametrize("splitter", ["lines", "regex:", "regex:(", "", "line:x"])
def test_unknown_splitters_are_refused(splitter):
    with pytest.raises(InputError, match="splitter"):
        Splitter(TOKENIZER, splitter)
