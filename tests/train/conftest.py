"""What tests of training start from, where they do not make it otherwise."""

import pytest
import train_cases as cases


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    cases.write_model(directory / "policy")
    cases.write_trees(directory / "trees")
    return directory
