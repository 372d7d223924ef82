"""The learning study: training signals compared from the same rollouts, in equal updates (``study.yaml``)."""
