"""Which job a worker gets next: docs/decisions/0022."""
