"""How many cores this process has; asked without torch."""

import os
from contextlib import suppress
from pathlib import Path


def cores() -> int:
    """Cores that this process and those it starts may keep busy together, whatever torch uses of them."""
    return max(1, min(scheduled_cores(), cores_of_quota()))


def scheduled_cores() -> int:
    """Cores that the system may run this process on, whatever share of their time it has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_quota() -> int:
    """Whole cores that a control group (version 2 or 1) allows; many when it does not say."""
    with suppress(OSError, ValueError):
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(limit) // int(period)
    with suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text()
        period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text()
        if int(limit) > 0:
            return int(limit) // int(period)
    return 1 << 16
