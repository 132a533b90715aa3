"""What a study has in a store and what it still needs: the one answer to "is it done?"."""

from __future__ import annotations

from harness.inventory.states import Inventory, NodeState, lease_holder

__all__ = ["Inventory", "NodeState", "lease_holder"]
