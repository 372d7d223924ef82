"""Shared test settings: one thread, so that tests give the same bits on every machine and can run side by side."""

import torch

torch.set_num_threads(1)
