"""`provenance.json` in a package: which builder made it from what, in the terms of SLSA v1.

An in-toto Statement v1 with the predicate https://slsa.dev/provenance/v1. Its subjects are the files of the
package that say what the adapter is; `model.sig` signs it with the rest. Hashes, names and numbers only: no
prompt, no path and nothing about the machine. docs/api.md describes the fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoclave import __version__
from autoclave.hashing import file_sha256
from workers.order import FileOrder, Order

STATEMENT_FILE = "provenance.json"
BUILDER_ID = "urn:autoclave:worker"
BUILD_TYPE = "urn:autoclave:sanitised-fine-tuning:1"


def provenance(order: Order, package: Path, report: dict[str, Any]) -> dict[str, Any]:
    """About the files that are in `package` now. `report` is the safety report, which is one of them."""
    versions = report["versions"] or {}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": path.name, "digest": {"sha256": file_sha256(path)}} for path in sorted(package.iterdir())
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "model": order.base.id,
                    "spec": order.spec,
                    "training_file": order.training_file.id,
                    "validation_file": order.validation_file and order.validation_file.id,
                },
                "internalParameters": {
                    "safety_profile_version": report["safety_profile_version"],
                    "safety_profile_sha256": report["data"]["safety_profile_sha256"],
                    "gate": report["gate"],
                    "method": report["method"],
                },
                "resolvedDependencies": [
                    {
                        "name": order.base.id,
                        "digest": {"sha256": order.base.sha256},
                        "annotations": {
                            "kind": "base",
                            "revision": order.base.revision,
                            "alignment_method": order.base.alignment_method,
                            "digest_of": "the lines of sha256sum over the files that decide its behaviour",
                        },
                    },
                    *_alignment_data(report),
                    *_file(order.training_file, "training_file"),
                    *_file(order.validation_file, "validation_file"),
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER_ID, "version": {"autoclave": __version__, **versions}},
                "metadata": {"invocationId": order.job_id},
                "byproducts": [
                    {
                        "name": "safety_report.json",
                        "digest": {"sha256": file_sha256(package / "safety_report.json")},
                        "annotations": {"result": report["result"]},
                    }
                ],
            },
        },
    }


def _alignment_data(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The operator's safe answers, of a job that was trained on them."""
    sha256 = report["data"]["safety_profile_sha256"].get("alignment")
    if sha256 is None:
        return []
    kind = {"kind": "alignment_data"}
    return [{"name": "alignment data", "digest": {"sha256": sha256}, "annotations": kind}]


def _file(file: FileOrder | None, kind: str) -> list[dict[str, Any]]:
    if file is None:
        return []
    return [{"name": file.id, "digest": {"sha256": file.sha256}, "annotations": {"kind": kind}}]
