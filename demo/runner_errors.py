"""What can go wrong in a run, each told in one paragraph."""

from __future__ import annotations

import errno

from ..scripts._process import EXIT_HOST, Failure


class HostFailed(Failure):
    """The host did not come up, or went down; another host may work."""

    def __init__(self, message: str):
        super().__init__(message, EXIT_HOST)


class ServerGone(Failure):
    """The server stopped answering while it worked for us."""


class WorkflowError(Failure):
    """The workflow is wrong: unknown node, wrong value, missing input."""


class ExecutionFailed(Failure):
    """A node raised an error while it ran."""

    def __init__(self, message: str, node_id: str = "", node_type: str = "", traceback: str = ""):
        super().__init__(message)
        self.node_id, self.node_type, self.traceback = node_id, node_type, traceback


class TimedOut(Failure):
    """It took longer than the caller allowed."""


def disk(e: OSError, where) -> Failure:
    """Why a file could not be written."""
    if e.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1)):
        return Failure(f"No disk space left to write {where}. Free some, or choose another folder with --out.")
    return Failure(f"{where} cannot be written: {e.strerror or e}. Choose another folder with --out.")
