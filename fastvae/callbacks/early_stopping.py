"""The end of a run that no longer gets better."""

from __future__ import annotations

from math import inf, isnan
from typing import TYPE_CHECKING, Any

from fastvae.arguments import choice, integer, non_negative
from fastvae.callbacks.base import Callback, History, say

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["EarlyStopping"]

_DEFAULTS = ("elbo_test", "elbo", "log_px")


class EarlyStopping(Callback):
    """End training when a column of the history has not got better for some epochs.

    Parameters
    ----------
    monitor : str, optional
        The column; by default ``elbo_test`` where there is an `eval_set`, else ``elbo``, else ``log_px``.
    patience : int
        How many epochs without an improvement are put up with.
    min_delta : float
        What counts as an improvement, in the column's unit (nats for a bound): only more than this.
    mode : {"max", "min"}
        Which is better: high values, as of bounds, or low ones.
    restore_best : bool
        Whether the model gets the parameters of its best epoch at the end of training, however it ends but by an error
        or Ctrl-C. A checkpoint is larger by P values then. Those of the last epoch are kept in their place, so that a
        run whose `n_epochs` is raised goes on from there.

    Raises
    ------
    ValueError
        From training, after its first epoch: the history has no such column, or `resume` lacks the `eval_set`.
    """

    def __init__(
        self,
        monitor: str | None = None,
        *,
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "max",
        restore_best: bool = False,
    ) -> None:
        self.monitor, self.restore_best = monitor, restore_best
        self.patience = integer("patience", patience, low=1)
        self.min_delta = non_negative("min_delta", min_delta)
        self.mode = choice("mode", mode, ("max", "min"))

    def before_training(self, model: Model, n_steps: int) -> bool:
        """Begin to count, or go on; say whether it had come to an end already."""
        if self.memory.get("restored_at") not in (None, model.n_steps_):
            self.memory.clear()  # a session without this went on from the best parameters
        if self.memory.get("restored_at") is not None:
            self._exchange(model, restored_at=None)
        compared = [self.monitor, self.mode, self.restore_best]
        if self.memory.get("compared") != compared:
            epochs = model.state_.epochs_closed
            self.memory.clear()  # what another one has found is no best to compare with, or to give back
            self.memory.update(compared=compared, epochs=epochs, best=None, best_epoch=0, waited=0, restored_at=None)
        # Also an epoch that Ctrl-C cut from the look at it.
        self._look(model, model.history_)
        return bool(self.memory["waited"] >= self.patience)

    def after_epoch(self, model: Model, epoch: int, history: History) -> bool:
        """Compare."""
        if self._is_unmeasured(history):
            raise ValueError(f"EarlyStopping monitors {self._column(history)}, which needs the eval_set: give it again")
        self._look(model, history)
        is_over = bool(self.memory["waited"] >= self.patience)
        if is_over and model.verbose:
            name, best = self._column(history), self.memory["best"]
            found = "" if best is None else f", best {best:.3f} in epoch {self.memory['best_epoch']}"
            say(f"stopped after epoch {epoch}: {name} has not got better for {self.patience} epochs{found}")
        return is_over

    def after_training(self, model: Model, error: BaseException | None) -> None:
        """Give the model its best parameters."""
        if error is None and "parameters" in self.memory:
            self._exchange(model, restored_at=model.n_steps_)

    def _column(self, history: History) -> str:
        names = _DEFAULTS if self.monitor is None else (self.monitor,)
        found = next((name for name in names if name in history), None)
        if found is None:
            raise ValueError(
                f"EarlyStopping has no column {' or '.join(names)} to monitor; the history has {', '.join(history)}"
            )
        return found

    def _is_unmeasured(self, history: History) -> bool:
        return self.monitor is None and history[self._column(history)][-1] is None

    def _look(self, model: Model, history: History) -> None:
        """Take the epoch that has just ended into account; those before it, of sessions without this, are left out."""
        n_epochs = model.state_.epochs_closed
        if self.memory["epochs"] == n_epochs:
            return
        found: dict[str, Any] = {"epochs": n_epochs}
        # Else it was such a session's, and its parameters are gone; or it lacked the eval_set.
        if model.state_.epoch_begin == model.n_steps_ and not self._is_unmeasured(history):
            value = history[self._column(history)][-1]
            if self._gain(value) > self.min_delta:
                found |= {"best": value, "best_epoch": n_epochs, "waited": 0}
                if self.restore_best:
                    found["parameters"] = model.params_.copy()
            else:
                found["waited"] = self.memory["waited"] + 1
        self.memory.update(found)  # at once: Ctrl-C comes before or after

    def _gain(self, value: float | None) -> float:
        best = self.memory["best"]
        if value is None or isnan(value):
            return -inf
        return inf if best is None else value - best if self.mode == "max" else best - value

    def _exchange(self, model: Model, *, restored_at: int | None) -> None:
        from fastvae.training.interrupts import gated_interrupts

        with gated_interrupts():
            kept = model.params_.copy()
            model.params_[:] = self.memory["parameters"]
            self.memory.update(parameters=kept, restored_at=restored_at)
