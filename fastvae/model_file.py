"""A fitted model as a checkpoint, and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastvae import __version__, backends, settings
from fastvae.checkpoint import Checkpoint, load_latest, read
from fastvae.errors import CheckpointError
from fastvae.model import Model
from fastvae.network import Network
from fastvae.optimizer import Optimizer
from fastvae.training.algorithm import algorithm_class
from fastvae.training.state import State

__all__ = ["checkpoint_folder", "from_checkpoint", "read_model", "to_checkpoint"]

M = TypeVar("M", bound=Model)


def to_checkpoint(model: Model, **extra: Any) -> Checkpoint:
    """Return the whole state of a fitted model: parameters, optimizer, counters, history, what they belong to.

    Parameters
    ----------
    model : Model
    **extra
        Further metadata.
    """
    engine = backends.load(model.backend)
    metadata = {
        "fastvae": __version__,
        "estimator": settings.to_json(model),
        "network": model.network_.to_dict(),
        "optimizer": model.optimizer_.to_dict(),
        "algorithm": {"name": model.algorithm_, "estimator": model.estimator_},
        "seed": model.seed_,
        "data": {
            "scale": model.scale_,
            "integer": model.integer_data_,
            "feature_names": [*getattr(model, "feature_names_in_", ())],
            "image_shape": None if model.image_shape_ is None else list(model.image_shape_),
            "fingerprint": model.fingerprint_,
            "n_samples_seen": model.n_samples_seen_,
        },
        "engine": {
            "backend": engine.NAME,
            "isa": backends.isa_level(engine),
            "precision": model.precision,
            "n_threads": model.n_threads or backends.default_threads(),
            "processor": backends.processor(),
        },
        "state": model.state_.to_metadata(),
        **extra,
    }
    return Checkpoint(model.state_.to_tensors(), metadata)


def from_checkpoint(checkpoint: Checkpoint, kind: type[M]) -> M:
    """Build a fitted model of a class from `to_checkpoint`'s result.

    Raises
    ------
    CheckpointError
        Something in it is missing or does not fit together.
    """
    metadata = checkpoint.metadata
    try:
        model = kind(**settings.from_json(metadata["estimator"]))
        model.network_ = Network.from_dict(metadata["network"])
        model.optimizer_ = Optimizer.from_dict(metadata["optimizer"])
        # Files of versions that had one algorithm do not name it.
        algorithm = metadata.get("algorithm", {"name": "aevb", "estimator": "sgvb-b"})
        model.algorithm_, model.estimator_ = str(algorithm["name"]), str(algorithm["estimator"])
        model.seed_ = model.random_state = settings.seed(metadata["seed"])
        model.n_features_in_ = model.network_.data_dim
        data = metadata["data"]
        model.scale_, model.integer_data_ = float(data["scale"]), bool(data["integer"])
        if names := data.get("feature_names"):
            model.feature_names_in_ = np.array(names, dtype=object)
        model.image_shape_ = None if data["image_shape"] is None else tuple(data["image_shape"])
        model.fingerprint_, model.n_samples_seen_ = data["fingerprint"], int(data["n_samples_seen"])
        model.state_ = State.from_checkpoint(
            checkpoint,
            size=model.network_.layout.size,
            n_slots=model.optimizer_.n_slots,
            dtype=settings.dtype(model),
            n_statistics=len(algorithm_class(model.algorithm_, model.estimator_).statistics),
            extra_shapes=settings.extra_shapes(model, model.network_, model.optimizer_, model.n_samples_seen_),
        )
        settings.check_unchanged(model)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"its metadata do not describe a VAE of this version ({error!r})") from error
    return model


def checkpoint_folder(folder: Path) -> Path:
    """Return where the checkpoints of a folder are: in that of a run of the command line they have one of their own."""
    own = folder / "checkpoints"
    return own if own.is_dir() else folder


def read_model(
    path: str | os.PathLike[str], on_damaged: Callable[[Path, CheckpointError], None], kind: type[M]
) -> tuple[Path, Checkpoint, M]:
    """Read a checkpoint: a file, or the newest of a folder of checkpoints or of a run.

    Parameters
    ----------
    path : path-like
    on_damaged : callable
        Called with path and error for every newer file of a folder that is damaged.
    kind : type
        `Model`, or a class of these such as `fastvae.VAE`.

    Returns
    -------
    path, checkpoint, model
        The file taken, its content, and the model in it.

    Raises
    ------
    CheckpointError
        There is none that is whole and holds a VAE.
    """
    path = Path(path)
    if path.is_dir():
        path, checkpoint = load_latest(checkpoint_folder(path), on_damaged)
    else:
        checkpoint = read(path)
    try:
        return path, checkpoint, from_checkpoint(checkpoint, kind)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
