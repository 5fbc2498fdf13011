"""normalcy."""
