"""The live view of a training: DVCLive files in the work dir, for `dvc plots` and editors while it runs. Out: nothing that is hashed.

The published curves come from the trainer's own state; here every fault is told once and the training goes on.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvclive import Live


class Tracker:
    """Logs optimiser steps; a step that an interrupted run logged already is passed over."""

    def __init__(self, folder: Path | None) -> None:
        """Opens the log in `folder`, where an earlier process of the same run may have left one; None logs nothing."""
        self._live: Live | None = None
        self._logged = -1
        if folder is None:
            return
        try:
            import dvclive

            had = (folder / "metrics.json").is_file()
            # its defaults would edit dvc.yaml and make a DVC experiment of its own
            self._live = dvclive.Live(dir=str(folder), resume=True, dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False)
            self._logged = self._live.step - 1 if had else -1
        except Exception as error:
            self._lost(error)

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Logs the metrics of a step that were measured."""
        if self._live is None or step <= self._logged:
            return
        try:
            self._live.step = step
            for name, value in metrics.items():
                if value is not None:
                    self._live.log_metric(name, value)
            self._live.make_summary()
        except Exception as error:
            self._lost(error)

    def log_validation(self, step: int, loss: float) -> None:
        """Logs the validation loss after a step."""
        self.log(step, {"validation_loss": loss})

    def _lost(self, error: Exception) -> None:
        self._live = None
        sys.stderr.write(f"train: the live log stopped ({type(error).__name__}: {error}); the training goes on\n")
