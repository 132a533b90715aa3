"""The harness measured beside plain programs and as shares of a limit; `scripts/bench` is the command."""
