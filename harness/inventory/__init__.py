"""What a study has in a store and what it still needs: the one answer to "is it done?"."""

from __future__ import annotations

from harness.inventory.states import Inventory, NodeState, lease_holder
from harness.inventory.stored import Stored, StoredChains

__all__ = ["Inventory", "NodeState", "Stored", "StoredChains", "lease_holder"]
