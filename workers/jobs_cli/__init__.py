"""`autoclave jobs`: a thin client of the HTTP API for terminals and scripts (docs/jobs-cli.md).

It imports neither the service nor torch: a laptop with the extra `client` is enough. Everything it shows
comes over the API, with the key and the rights of whoever runs it.
"""
