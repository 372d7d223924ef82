"""The roofline's counts are those that one makes by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import roofline
from roofline import (
    GPU_SHAPES,
    PEAKS,
    epilogue_passes,
    expected_ratio,
    floor,
    floor_seconds,
    passes,
    peak_of,
    shared_passes,
)


def test_one_chunk_is_fourteen_bytes_a_logit_and_three_products():
    counted = passes((100, 10, 1000), chunk_rows=100)
    assert sum(p.flops for p in counted) == 3 * 2 * 100 * 10 * 1000 == sum(p.flops for p in floor((100, 10, 1000)))
    weights_and_hidden = (2 + 2 + 4 + 6) * 1000 * 10 + 3 * 2 * 100 * 10
    assert sum(p.bytes for p in counted) == 14 * 100 * 1000 + weights_and_hidden
    assert sum(p.bytes for p in floor((100, 10, 1000))) == 6 * 100 * 1000 + 6 * 1000 * 10 + 6 * 100 * 10


def test_every_further_chunk_moves_the_weights_and_their_sum_again():
    one, four = (sum(p.bytes for p in passes((100, 10, 1000), rows)) for rows in (100, 25))
    assert four - one == 3 * (2 + 2 + 4 + 4) * 1000 * 10


def test_shared_rows_are_eighteen_bytes_a_logit():
    alone, shared = (sum(p.bytes for p in counted((100, 10, 1000), 25)) for counted in (passes, shared_passes))
    assert shared - alone == 4 * 100 * 1000
    h200 = PEAKS["H200"]
    ratios = [expected_ratio(GPU_SHAPES[0], h200, counted=counted) for counted in (passes, shared_passes)]
    assert ratios[0] < ratios[1]


def test_the_epilogue_is_six_bytes_a_logit_and_the_blocks_origins():
    today, epilogue = (found((100, 10, 1024), chunk_rows=100) for found in (passes, epilogue_passes))
    saved = sum(p.bytes for p in today) - sum(p.bytes for p in epilogue)
    assert saved == (14 - 6) * 100 * 1024 - 2 * 4 * 100 * 16
    assert sum(p.flops for p in today) == sum(p.flops for p in epilogue)


def test_a_pass_takes_the_longer_of_its_operations_and_its_bytes():
    h100 = peak_of("NVIDIA H100 80GB HBM3")
    wide, narrow = (100_000, 100_000, 100_000), (100_000, 1, 100_000)
    assert floor_seconds(wide, h100) == pytest.approx(6e15 / 989e12)
    assert floor_seconds(narrow, h100) == pytest.approx(6e10 / 3.35e12, rel=1e-3)
    for peak in PEAKS.values():
        ratios = [expected_ratio(shape, peak) for shape in GPU_SHAPES]
        assert all(1 < ratio < 3 for ratio in ratios) and ratios[0] == max(ratios)  # the narrowest model


def test_other_boards_are_not_taken_for_these():
    assert peak_of("NVIDIA H200") is PEAKS["H200"]
    for name in ("H100 PCIe", "H100 NVL", "H200 NVL", "GH200 480GB", "GH200 144G HBM3e"):
        assert peak_of(f"NVIDIA {name}") is None, name
    assert peak_of("AMD EPYC") is None


@pytest.mark.parametrize("words", [(), ("1", "2"), ("1", "2", "x")])
def test_wrong_words_are_bad_input(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["roofline.py", *words])
    assert roofline.main() == 2 and "N H V" in capsys.readouterr().err
