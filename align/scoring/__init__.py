"""Log-probs of responses."""
