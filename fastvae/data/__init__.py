"""Data: arrays in memory, files, and the named datasets digits, mnist and freyface."""

from fastvae.data.dataset import Dataset, as_dataset
from fastvae.data.fetch import fetch
from fastvae.data.loading import Split, load
from fastvae.data.registry import DatasetState, data_folder, list_datasets
from fastvae.data.values import check_values

__all__ = [
    "Dataset",
    "DatasetState",
    "Split",
    "as_dataset",
    "check_values",
    "data_folder",
    "fetch",
    "list_datasets",
    "load",
]
