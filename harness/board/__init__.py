"""The board: entries of tracks, computed from stores and never typed, ranked with what can be told apart."""
