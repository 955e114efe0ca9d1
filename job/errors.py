"""Every error this job raises on purpose, and the exit code each one ends the process with.

    JobError
    ├── ConfigError       78  the request is wrong or does not fit the run; a retry repeats it
    ├── DataError         65  a corpus or weights file was read and rejected
    ├── NotFoundError     66  something named is not there, or no record of a run is valid
    ├── StorageError      69  storage did not answer; a retry may succeed
    │   └── UnreachableError  69  processes that are to train together have not met
    ├── DivergedError     70  the loss stopped being finite
    ├── FencedError       73  a newer attempt owns this run
    ├── Interrupted       75  asked to stop; start again to continue
    └── AccessError       77  credentials are missing or were refused

The numbers are those of sysexits.h, so that a pod failure policy can tell them apart.
"""

import os


class JobError(Exception):
    """A deliberate end of the job; the class carries the exit code."""

    exit_code = 1


class ConfigError(JobError):
    """The configuration is wrong; holds every problem that was found, not only the first.

    Args:
        problems: One sentence each, naming the setting, the value and what was expected.
    """

    exit_code = os.EX_CONFIG

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(JobError):
    """A corpus, token file or weights file is damaged, too small or not what was promised."""

    exit_code = os.EX_DATAERR


class NotFoundError(JobError):
    """A named thing does not exist, or a run has records and none of them is valid."""

    exit_code = os.EX_NOINPUT


class StorageError(JobError):
    """Storage could not be reached, or refused for a reason that may pass."""

    exit_code = os.EX_UNAVAILABLE


class UnreachableError(StorageError):
    """Processes that are to train together have not met: as with storage, a retry may succeed."""


class DivergedError(JobError):
    """Loss or gradients were not finite for longer than the configuration allows."""

    exit_code = os.EX_SOFTWARE


class FencedError(JobError):
    """A newer attempt has taken this run over; this one must not write any more."""

    exit_code = os.EX_CANTCREAT


class Interrupted(JobError):
    """A stop signal arrived; what the message calls saved is saved."""

    exit_code = os.EX_TEMPFAIL


class AccessError(JobError):
    """Credentials are missing, wrong or not allowed to do this."""

    exit_code = os.EX_NOPERM
