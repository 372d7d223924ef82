"""Vocabularies that several processes share out."""

from test_integration import program


def test_processes_that_share_the_vocabulary_agree_with_one():
    done = program("sharded_case.py", 2, 4)
    assert done.returncode == 0 and done.stdout.count("agree") == 2, done.stderr
