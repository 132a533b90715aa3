"""A distributed benchmark harness for model collapse: recursive training chains from one YAML file."""

__version__ = "0.1.0"
