"""The parts of a recipe that name an item of a registry."""

from __future__ import annotations

from sidestep.data.data_config import SHARED_KEYS, DataConfig
from sidestep.data.sources import SOURCES
from sidestep.methods import METHODS
from sidestep.networks.models import MODELS, ModelConfig
from sidestep.runs.schema import Section

METHOD = Section(registry=METHODS)
MODEL = Section(registry=MODELS, config=ModelConfig, common=lambda model: model.common)
DATA = Section(registry=SOURCES, config=DataConfig, common=lambda source: SHARED_KEYS)
