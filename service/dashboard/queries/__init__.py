"""What pages read and nothing else does."""
