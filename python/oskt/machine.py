"""What the machine is called that a number comes from."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """The model of a GPU, or of the processor: only Linux says the latter, others its kind."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    found = re.search(r"model name\s*:[ \t]*(\S.*)", text)
    return found[1].strip() if found else platform.processor() or platform.machine()
