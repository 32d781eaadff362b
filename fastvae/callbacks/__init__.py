"""Callbacks of a training run: the hooks, and the controls that come with fastvae.

They go into ``VAE(callbacks=[...])`` and change nothing that they do not say: with a logger or a progress bar a run has
the bits that it has without.
"""

from __future__ import annotations

from fastvae.callbacks.base import Callback, EpochMetrics, say
from fastvae.callbacks.checkpoint import Checkpoint
from fastvae.callbacks.early_stopping import EarlyStopping
from fastvae.callbacks.loggers import CSVLogger, JSONLogger, TensorBoard, history_csv
from fastvae.callbacks.progress import Progress
from fastvae.callbacks.rollback import Rollback, TerminateOnNaN
from fastvae.callbacks.schedules import KLAnneal, LearningRateSchedule

__all__ = [
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "EpochMetrics",
    "JSONLogger",
    "KLAnneal",
    "LearningRateSchedule",
    "Progress",
    "Rollback",
    "TensorBoard",
    "TerminateOnNaN",
    "history_csv",
    "say",
]
