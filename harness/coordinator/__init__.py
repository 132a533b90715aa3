"""The coordinator: cuts the lineage into branches, gives them to gangs, and looks after both."""
