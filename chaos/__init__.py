"""The fault suite: a whole deployment on loopback, users, and faults from a fixed seed; then an audit.

    make chaos        or        python -m chaos --jobs 200 --seed 1

docs/faults.md says what is injected and what is checked. Nothing of the service imports this.
"""
