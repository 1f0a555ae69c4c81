"""Sends the cluster's messages about dead workers to a log: replaces a private function of Ray.

Ray prints them on the driver's stdout, whatever `log_to_driver` is, and has no setting for it.
"""

from __future__ import annotations

import logging

import ray
from ray._private import worker as ray_worker

PRINT_FUNCTION = "print_to_stdstream"  # called with {"pid": …, "lines": […], "is_err": …}


def log_cluster_messages(log: logging.Logger) -> None:
    """The messages go to `log`. In a Ray without the function they are still printed."""
    if not hasattr(ray_worker, PRINT_FUNCTION):
        logging.getLogger(__name__).warning(
            "Ray %s has no %s: its messages about dead workers are printed, not logged",
            ray.__version__,
            PRINT_FUNCTION,
        )
        return

    def write(data: dict, ignore_prefix: bool) -> None:
        log.warning("%s: %s", data["pid"], "\n".join(data["lines"]))

    setattr(ray_worker, PRINT_FUNCTION, write)
