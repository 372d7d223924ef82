"""One bit of a finished run has flipped: one line says in which file, or what is read is what was written."""

import random
from collections import Counter
from dataclasses import asdict

import pytest
from transformers import AutoConfig

from dapo_fast.data.store import read_trees
from dapo_fast.errors import InputError
from dapo_fast.layout import Layout
from dapo_fast.models.loading import load_causal_lm, load_value_model
from dapo_fast.provenance import read_provenance
from dapo_fast.report.read import read_run
from dapo_fast.report.trees import Scores
from dapo_fast.rollout.loading import load_tokenizer
from dapo_fast.rundir import RunDirectory, read_lines, read_state
from dapo_fast.state import EvaluationClaim, MeasuredProblem
from dapo_fast.train.actor import _read_reference

FLIPS = 200
UNREAD = (".html", ".log", ".lock", ".png", ".pid")  # what is written for people


def model_in(directory):
    """Weights, settings and tokenizer of a model directory, and its fp32 weights where it has them."""
    load = load_value_model if directory.parent.name == "critic" else load_causal_lm
    model = load(directory)
    weights = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    return weights, AutoConfig.from_pretrained(directory).to_dict(), load_tokenizer(directory).get_vocab()


def state_of(run):
    """What the settings, claims, results and figures of a run say."""
    directory = RunDirectory(run, None)
    Layout(directory).check_settings()
    evaluations = [read_state(path, EvaluationClaim) for path in sorted(run.glob("iter*/evaluate/claim.json"))]
    digests = [Layout(directory).upstream(path.parent) for path in sorted(run.rglob("stage.json"))]
    rows = read_state(run / "iter1" / "collect" / "done.json")
    return read_run(run), read_provenance(run), evaluations, digests, rows, directory.config


def look(run, file):
    """What is read from ``file``, by those who read it in earnest."""
    if file.name == "scores.parquet":
        return {name: values.tobytes() for name, values in Scores(file)._rows.items()}
    if file.parent.name == "reference":
        places, logps = _read_reference(file, Layout(RunDirectory(run, None)).upstream(file.parent.parent))
        return places.tobytes(), logps.tobytes()
    if file.suffix == ".parquet":
        return [asdict(tree) for tree in read_trees(file.parent)]
    if "model" in file.parts:
        return model_in(file.parent)
    if file.name in ("greedy.jsonl", "sampled.jsonl"):
        return read_lines(file, MeasuredProblem)
    return state_of(run)


@pytest.fixture(scope="module")
def everything(finished):
    """Every file of the run that is read, and what is read from it."""
    files = sorted(path for path in finished.rglob("*") if path.is_file() and not path.name.endswith(UNREAD))
    return {file: look(finished, file) for file in files}


def test_no_flipped_bit_of_a_run_is_read(finished, everything):
    rng = random.Random(11)
    kinds = Counter()
    for turn in range(FLIPS):
        file = list(everything)[turn % len(everything)]
        whole = file.read_bytes()
        place = rng.randrange(8 * len(whole))
        spoilt = bytearray(whole)
        spoilt[place // 8] ^= 1 << place % 8
        file.write_bytes(spoilt)
        try:
            assert look(finished, file) == everything[file], (file, place)
            kinds["harmless", file.suffix] += 1
        except InputError as error:
            assert str(file.parent) in str(error) and "\n" not in str(error), (file, place, error)
            kinds["refused", file.suffix] += 1
        finally:
            file.write_bytes(whole)
    assert {suffix for _, suffix in kinds} >= {".json", ".jsonl", ".parquet", ".safetensors", ".yaml"}, kinds
    assert sum(count for (kind, _), count in kinds.items() if kind == "refused") > 0.9 * FLIPS, kinds
