"""What samples, what is sampled to learn from, and what is sampled to measure."""

from __future__ import annotations

import shlex
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from dapo_fast.config.section import LATER, Section, Temperature
from dapo_fast.names import check_name
from dapo_fast.rollout.steps import compile_splitter

ENGINES = ("in_process", "http")


class EngineSettings(Section):
    """Who samples."""

    kind: str = "in_process"  # or "http", an OpenAI-compatible server; or module:function of a policy's directory
    urls: list[str] = Field(default_factory=list)  # http: base URLs of OpenAI-compatible servers
    model_name: str | None = None  # http: the name the server serves the model under
    command: str | None = None  # http: starts the server for the policy at hand, {model} being its directory
    start_timeout_s: float = Field(1800.0, gt=0)  # http with a command: until the server answers
    seed: bool | Literal["auto"] = "auto"  # http: whether requests carry a seed; auto: where the server stands one
    concurrency: int = Field(64, ge=1)  # http: requests in flight per server
    timeout_s: float = Field(600.0, gt=0)  # http: of one request
    retries: int = Field(8, ge=0)  # http: of one request
    max_rows: int = Field(512, ge=1)  # in_process: sequences decoded side by side

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        check_name(value, ENGINES)
        return value

    @model_validator(mode="after")
    def _urls_for_http(self) -> EngineSettings:
        if self.kind == "http" and not self.urls:
            raise ValueError("urls: kind 'http' needs at least one base URL")
        for url in self.urls:
            _check_url(url)
        if self.command is not None:
            if "{model}" not in self.command:
                raise ValueError("command: needs {model} where the policy's directory goes")
            try:
                shlex.split(self.command)
            except ValueError as error:
                raise ValueError(f"command: {self.command!r} is no command line ({error})") from error
        return self


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"urls: {url!r} does not begin with http:// or https://")
    try:
        parts = urlsplit(url)
        named = (parts.hostname or "").encode("idna") and parts.port != 0
    except ValueError as error:  # a port that is no number or above 65535, brackets that do not match, a long host
        raise ValueError(f"urls: {url!r}: {error}") from error
    if not named or any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError(f"urls: {url!r} is not a URL with a host, and a port that is not 0")


class CollectSettings(Section):
    """A.1 generation and A.2 completion."""

    samples: int = Field(32, ge=1)  # responses sampled for each problem
    kept: int = Field(6, ge=1)  # of which kept as trunks, correct and wrong balanced
    completions: int = Field(16, ge=0)  # from every state; 0: none, and every response is a trunk and its own evidence
    first_steps: int = Field(0, ge=0)  # candidate steps sampled alone from every state, without an outcome
    temperature: Temperature = 1.0  # of the sampled responses
    top_p: float = Field(1.0, gt=0, le=1)  # nucleus; 1: all tokens
    max_tokens: int = Field(2048, ge=1)  # of a response, its end token included
    splitter: str = "line"  # "line", "blank_line", "sentence" or "regex:…"
    shard_problems: int = Field(16, ge=1)  # problems in a shard: the unit that a kill can cost
    every_state: int = Field(1, ge=1)  # complete every k-th state
    reuse_samples: bool = True  # the generator's samples serve as completions of s_0
    gold_starts: bool = Field(False, **LATER)  # complete from within the gold solution where every response was wrong
    skip_solved: bool = False  # no completions for problems whose every response was right
    skip_decided: bool = False  # stop completing a state once its verdict is sure beyond decided_error
    decided_error: float = Field(0.01, gt=0, lt=1)  # chance of a wrong verdict that skip_decided accepts

    @field_validator("splitter")
    @classmethod
    def _known_splitter(cls, value: str) -> str:
        compile_splitter(value)
        return value

    @model_validator(mode="after")
    def _kept_of_samples(self) -> CollectSettings:
        if self.kept > self.samples:
            raise ValueError(f"kept: cannot keep {self.kept} of {self.samples} samples")
        return self


class EvaluateSettings(Section):
    """Greedy and sampled accuracy; the paper's settings are greedy, zero-shot, 2048 new tokens."""

    max_tokens: int = Field(2048, ge=1)  # of a response, its end token included
    samples: int = Field(0, ge=0)  # sampled responses a problem; 0: greedy only
    temperature: Temperature = 1.0  # of the sampled responses
    top_p: float = Field(1.0, gt=0, le=1)  # nucleus; 1: all tokens
    batch_problems: int = Field(256, ge=1)  # problems between two saves
