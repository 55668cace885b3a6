"""Autoclave's machine-learning library: train, sanitise and measure LoRA adapters on local folders.

Nothing heavy is imported here, so that `autoclave.spec`, `autoclave.errors` and
`autoclave.data.conversations` can be used where torch is not installed.
"""

__version__ = "0.1.0"
