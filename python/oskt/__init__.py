"""One-shot knowledge transfer for person re-identification."""
