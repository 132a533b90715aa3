"""A child process: what torch sees, and whether it can be used; prints one JSON line."""

from __future__ import annotations

import json
from typing import Any

from harness.launch.doctor.checks import text_of


def main() -> None:
    """Put a number on each device and read it back.

    A device can be listed and still be out of order, or somebody's own.
    """
    import torch

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": [],
        "error": "",
    }
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception as error:
        count, found["error"] = 0, text_of(error)
    for index in range(count):
        device: dict[str, Any] = {"name": "", "memory": 0, "error": ""}
        try:
            properties = torch.cuda.get_device_properties(index)
            device.update(name=properties.name, memory=properties.total_memory)
            if torch.full((1024,), 2.0, device=f"cuda:{index}").sum().item() != 2048.0:
                device["error"] = "a sum of 1024 twos is not 2048"
        except Exception as error:
            device["error"] = text_of(error)
        found["devices"].append(device)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
