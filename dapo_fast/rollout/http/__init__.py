"""Sampling through OpenAI-compatible servers: vLLM, SGLang, `transformers serve`.

``engine`` samples, by requests that ``client`` sends to one of ``servers`` until they are answered, in the ``dialect``
that all of these understand; ``answers`` says what an answer must look like.
"""

from dapo_fast.rollout.http.client import ServerError
from dapo_fast.rollout.http.engine import HttpEngine

__all__ = ["HttpEngine", "ServerError"]
