"""The places that can train: one folder each, a pure compiler apart from the client that talks."""
