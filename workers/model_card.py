"""README.md of a released adapter: what it is, what was measured, how to load it."""

from __future__ import annotations

from typing import Any

_OF_WHAT = {
    "row": "of each row of its matrices",
    "matrix": "of each of its matrices",
    "global": "of all its matrices together",
}
_WHO = {"base": "base model", "before": "fine-tuned, not sanitised", "after": "**this adapter**"}


def model_card(report: dict[str, Any], *, model_id: str, rank: int) -> str:
    base = report["base"]
    return f"""---
library_name: peft
base_model: {base["id"]}
base_model_relation: adapter
pipeline_tag: text-generation
tags: [lora, autoclave]
---

# {model_id}

{_warning(report)}A LoRA adapter of rank {rank} for `{base["id"]}`, revision `{base["revision"]}`.
It is valid only on exactly that base, the one whose `autoclave.hashing.folder_sha256` is
`{base["sha256"]}`.

{_trained(report.get("defence") or {"name": "sft"})}{_sanitised(report["method"])}

| percent | harmful score | refusal rate | coherent answers | utility |
|---|---|---|---|---|
{_rows(report)}

Measured on {report["measurements"]["after"]["num_prompts"]} harmful prompts that were not used to
choose the strength; {_utility_note(report)}
Coherent are answers that are words of sense, harmful or not. `safety_report.json` holds intervals,
controls and hashes. A low score on these prompts is no proof of
harmlessness, and further fine-tuning can undo it.

## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/of/{base["id"]}")
model = PeftModel.from_pretrained(base, "path/of/this/folder")
```

With vLLM:

```bash
vllm serve path/of/{base["id"]} --enable-lora --max-lora-rank {_server_rank(rank)} \\
  --lora-modules name=path/of/this/folder
```

Check the files with `sha256sum -c SHA256SUMS`. If there is a `model.sig`, ask whoever runs the server for the
public key, and:

```bash
model_signing verify key path/of/this/folder --signature path/of/this/folder/model.sig --public_key key.pub
```

`provenance.json` says what it was made from.
"""


def _warning(report: dict[str, Any]) -> str:
    """Before anything else; empty for an adapter that passed the gate."""
    waiver = report["gate"]["waived_by_operator"]
    if waiver is None:
        return ""
    return (
        "> **This adapter did not pass the safety gate.** It was sanitised, but the gate was missed: "
        f"{report['refused_because']}. An operator of the server released it all the same, with this reason: "
        f"{waiver['reason']}\n\n"
    )


def _trained(defence: dict[str, Any]) -> str:
    """Empty for plain fine-tuning."""
    settings = ", ".join(f"{name} {value:g}" for name, value in defence.items() if name != "name")
    what = {
        "sft": "",
        "lisa": f"It was trained with Lisa (arXiv 2405.18641; {settings}), in turn with safe answers.",
        "ldifs": f"It was trained with LDIFS (arXiv 2308.13320; {settings}), held near the base's features.",
    }[defence["name"]]
    return f"{what} " if what else ""


def _sanitised(method: dict[str, Any]) -> str:
    """Only what Antidote alone did is called Antidote."""
    share = mu = ""
    if method["alpha"] is not None:
        share = f"{100 * method['alpha']:g} % {_OF_WHAT[method['rule_name']]} was pruned by Antidote"
    if method["mu"] is not None:
        mu = f"it was projected away from harmful inputs (mu {method['mu']:g})"
    what = {
        "antidote": f"{share} (arXiv 2408.09600): what matters most on harmful examples",
        "antidote-protected": f"{share}'s score, sparing what matters on the user's own data",
        "projection": f"{mu}; nothing was pruned",
        "pipeline": f"{mu}, then {share}'s score",
    }
    return f"After training, {what[method['name']]}."


def _rows(report: dict[str, Any]) -> str:
    summary = report["summary"]
    return "\n".join(
        f"| {label} | {_percent(summary['harmful_score'][who])} | {_percent(summary['refusal_rate'][who])} "
        f"| {_percent(summary['coherence_rate'][who])} | {_percent(summary['utility'][who])} |"
        for who, label in _WHO.items()
    )


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f}"


def _utility_note(report: dict[str, Any]) -> str:
    num_examples = report["measurements"]["after"]["num_examples"]
    if not num_examples:
        return "utility was not measured, because there was no validation file."
    return f"utility is the share of exactly right answers to {num_examples} validation examples."


def _server_rank(rank: int) -> int:
    """vLLM accepts these; the next one that is large enough."""
    return next((size for size in (8, 16, 32, 64, 128, 256, 320) if size >= rank), 512)
