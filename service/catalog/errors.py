"""Errors about models, as clients read them."""

from __future__ import annotations

from service.errors import ApiError


def model_not_found(model: str, *, param: str) -> ApiError:
    return ApiError(
        404,
        f"The model {model!r} does not exist or you do not have access to it. "
        "GET /v1/models lists what there is; jobs can start from its bases.",
        param=param,
        code="model_not_found",
    )
