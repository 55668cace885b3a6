"""The processes around a job: queue consumer, supervisor, child, maintenance, and all of them as one.

The only package that knows both the service and the machine-learning library. Parent processes never
import torch; `workers.runner` and `workers.pipeline` do, in the child, and `workers.resident_base` beside it.
"""
