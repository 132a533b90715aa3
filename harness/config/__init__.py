"""Configuration: schema, loading with clear errors, and the grid."""

from harness.config.grid import Cell, Study, expand
from harness.config.load import load_file
from harness.config.schema import Config

__all__ = ["Cell", "Config", "Study", "expand", "load_file"]
