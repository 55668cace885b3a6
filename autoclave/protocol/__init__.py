"""The paper's protocol from one file: align, attack, fine-tune, sanitise, measure (docs/protocol.md)."""
