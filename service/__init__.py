"""The service: job state, storage, settings and the OpenAI-compatible API. Imports no torch."""
