"""tuneport."""
