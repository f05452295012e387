"""Where a run can be computed, and how much memory is free there."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Device:
    """A choice: the value for a config, and how it is shown."""

    name: str
    text: str


def devices() -> tuple[Device, ...]:
    """Return what a run can be computed on, the best first."""
    free, threads = free_memory(), torch.get_num_threads()
    told = f"CPU, {threads} thread{'' if threads == 1 else 's'}"
    cpu = Device("cpu", told + (f", {free / 2**30:.1f} GB free" if free else ""))
    if not torch.cuda.is_available():
        return (cpu,)
    unused, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return Device("cuda", f"{name}, {unused / 2**30:.1f} of {total / 2**30:.0f} GB free"), cpu


def free_memory() -> int:
    """Return the bytes of memory that programs may still take; 0 where the system does not say."""
    if sys.platform == "linux":
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
