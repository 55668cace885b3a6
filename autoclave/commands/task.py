"""autoclave task"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from autoclave.commands.reporting import print_result, quiet_libraries
from autoclave.evaluation.tasks.chat_endpoint import ChatEndpointSpec
from autoclave.progress_bar import progress_bar
from autoclave.spec import EvaluateSpec

app = typer.Typer(
    no_args_is_help=True, help="Tasks beyond the answer rules of `evaluate`: what else is a model worth?"
)

Base = Annotated[Path, typer.Option(help="Folder of the base model.")]
Adapter = Annotated[Path | None, typer.Option(help="PEFT folder. Without it the base alone.")]
Data = Annotated[Path, typer.Option(help="Chat JSONL; each last message is the reference answer.")]
MaxRows = Annotated[int, typer.Option(min=1, help="Rows used of the file.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. [default: cuda if there is one]")]


@app.command()
def pairwise(
    *,
    base: Base,
    adapter: Adapter = None,
    data: Data,
    url: Annotated[str, typer.Option(help="OpenAI-compatible .../v1/chat/completions of the judge.")],
    judge_model: Annotated[str, typer.Option(help="The endpoint's name of the judge.")],
    out: Annotated[Path, typer.Option(help="Folder for answers and verdicts; run again to go on.")],
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key. [default: none]")
    ] = None,
    timeout_seconds: Annotated[float, typer.Option(help="Of each wait for the server.")] = 120.0,
    max_attempts: Annotated[int, typer.Option(help="Per comparison, before the run stops.")] = 8,
    judge_max_tokens: Annotated[int, typer.Option(help="Longest verdict with its reasons.")] = 1024,
    parallel: Annotated[int, typer.Option(help="Requests at once.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 512,
    max_prompts: MaxRows = 1000,
    device: Device = None,
) -> None:
    """Win rate of the model's answers against the references, by a judge who sees each pair in both orders.

    JSON on standard output, a table on standard error; also OUT/result.json. Instructions and answers leave
    this machine.
    """
    endpoint = ChatEndpointSpec.model_validate(
        {
            "url": url,
            "model": judge_model,
            "key_env": key_env,
            "timeout_seconds": timeout_seconds,
            "max_attempts": max_attempts,
            "max_tokens": judge_max_tokens,
            "parallel": parallel,
        }
    )
    spec = EvaluateSpec.model_validate({"max_new_tokens": max_new_tokens, "max_prompts": max_prompts})
    from autoclave.evaluation.tasks.measured_folder import pairwise_folder

    quiet_libraries()
    with progress_bar() as on_progress:
        result = pairwise_folder(
            base, adapter, data, out, endpoint=endpoint, spec=spec, device=device, on_progress=on_progress
        )
    low, high = result["win_rate_interval"]
    balanced = result["length_balanced_win_rate"]
    table = Table("win rate", "length-balanced", "won", "tied", "lost", "by place", "characters", "reference")
    table.add_row(
        f"{result['win_rate']:.1f} ({low:.1f} to {high:.1f})",
        "" if balanced is None else f"{balanced:.1f}",
        *(str(result[f"num_{name}"]) for name in ("wins", "ties", "losses", "inconsistent")),
        f"{result['mean_length']:.0f}",
        f"{result['mean_reference_length']:.0f}",
    )
    Console(stderr=True).print(table)
    print_result(result)


@app.command()
def loss(
    *,
    base: Base,
    adapter: Adapter = None,
    data: Data,
    max_examples: MaxRows = 1000,
    max_seq_length: Annotated[int, typer.Option(min=8, help="Longer examples are cut, in tokens.")] = 2048,
    device: Device = None,
) -> None:
    """Held-out loss of the reference answers in nats per token, and perplexity. Prints JSON."""
    from autoclave.evaluation.tasks.measured_folder import loss_folder

    quiet_libraries()
    print_result(
        loss_folder(
            base, adapter, data, max_examples=max_examples, max_seq_length=max_seq_length, device=device
        )
    )


@app.command("lm-eval")
def lm_eval(
    *,
    base: Base,
    adapter: Adapter = None,
    tasks: Annotated[str, typer.Option(help="Comma-separated names of lm-eval, e.g. arc_easy,hellaswag.")],
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="[default: the task's]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task. [default: all]")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per pass.")] = 8,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask in the base's chat template.")
    ] = False,
    include_path: Annotated[
        Path | None, typer.Option(help="Folder of task files (YAML) of your own. [default: none]")
    ] = None,
    device: Device = None,
) -> None:
    """Tasks of the package lm-eval (pip install 'autoclave[lm-eval]'). Prints JSON.

    The package fetches its data sets from a hub, unless they are in the local cache.
    """
    from autoclave.evaluation.tasks.measured_folder import lm_eval_folder

    quiet_libraries()
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    print_result(
        lm_eval_folder(
            base,
            adapter,
            names,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=batch_size,
            chat_template=chat_template,
            include_path=include_path,
            device=device,
        )
    )
