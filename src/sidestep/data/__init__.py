"""Images by name, hub id or folder, in batches that follow from a seed."""

from sidestep.data.data_config import DataConfig
from sidestep.data.histogram import HistogramConfig, Statistics, color_histogram
from sidestep.data.image_set import ImageSet, Shard
from sidestep.data.load import Data, load_data
from sidestep.data.memory_set import MemorySet
from sidestep.data.stream_set import StreamSet

__all__ = [
    "Data",
    "DataConfig",
    "HistogramConfig",
    "ImageSet",
    "MemorySet",
    "Shard",
    "Statistics",
    "StreamSet",
    "color_histogram",
    "load_data",
]
