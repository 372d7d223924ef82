"""Every setting of a run: one YAML file, checked whole before anything is loaded.

Defaults are the paper's (arXiv 2412.18279, section 4) where it names a value, but for what the study found better: Q is
shrunk towards outcomes, trunks' steps are candidates, β and the log-partition go by rule, responses serve as the
prompt's completions, and states without a right outcome are left out. The preset ``paper`` is the paper to the letter.
A stage takes its own section.
"""

from dapo_fast.config.loading import load_config, preset_names, preset_values
from dapo_fast.config.run import FIRST_BETA, Config, merge, wrong_keys
from dapo_fast.config.sampling import CollectSettings, EngineSettings, EvaluateSettings
from dapo_fast.config.section import Section
from dapo_fast.config.sources import DataSettings, ModelSettings, Source
from dapo_fast.config.training import (
    ActorSettings,
    AdvantageSettings,
    CriticSettings,
    OptimSettings,
    ParallelSettings,
    SftSettings,
)

__all__ = [
    "FIRST_BETA",
    "ActorSettings",
    "AdvantageSettings",
    "CollectSettings",
    "Config",
    "CriticSettings",
    "DataSettings",
    "EngineSettings",
    "EvaluateSettings",
    "ModelSettings",
    "OptimSettings",
    "ParallelSettings",
    "Section",
    "SftSettings",
    "Source",
    "load_config",
    "merge",
    "preset_names",
    "preset_values",
    "wrong_keys",
]
