"""The engine against TRL's SFTTrainer, its defaults and its packed mode: useful tokens per second.

    pip install --no-deps --target /tmp/trl/site-packages trl datasets pyarrow pandas dill multiprocess xxhash
    pip install --no-deps --target /tmp/trl/site-packages python-dateutil six pytz tzdata
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=ACTIVE PYTHONPATH=.:/tmp/trl/site-packages \
        python benchmarks/trl_sft.py --data FOLDER --out benchmarks/results

TRL lives outside the environment, so that it decides no version of it; the folder must be called
site-packages, or dill takes its modules for the user's own and pickles them. FOLDER has `sst2/train.tsv` and
`gsm8k/train.jsonl`. A random Llama (hidden 256, 4 layers, vocabulary 4,096, a byte-pair tokenizer trained on
the data), loss on answers alone, LoRA r=16 on all linear layers, the same chats for all. Ways, in turn:

- `ours`: 16 chats a step, packed, as many tokens at once as is the engine's default (all of a step).
- `trl defaults`: SFTTrainer with its defaults but 16 chats a batch, as ours, and answers alone (its prompt
  and completion format).
- `trl packed`: also packing=True and max_length 512 (rows of at most 512 tokens; 2 rows a step, about as
  many tokens as 16 chats).

Useful tokens are those of chats, without padding; time is that of the training loop, processor time beside
it. Every run has a process of its own. Ours runs before and after each run of TRL's, which is compared with
the mean of the two; ratios are medians over the rounds. Preparation is timed apart: ours from chats to token
arrays and rows, TRL's from a dataset to a trainer. Writes `trl_sft.json`.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from machine import folder_for, machine
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from autoclave.data.messages import Conversation, Message
from autoclave.data.tokens import Encoded, encode
from autoclave.modelling.adapters import attach
from autoclave.modelling.packing import pack_rows
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.loop import finetune

BATCH, ROW, SEED = 16, 512, 0
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Chats = list[tuple[str, str]]
Times = tuple[float, float]
"""Wall and processor seconds."""
Way = tuple[Any, tuple[Any, ...], tuple[Any, ...]]
"""What is run, the arguments of a small run before, and those of the run that is timed."""


def main() -> int:
    parser = argparse.ArgumentParser(description="The engine against TRL's SFTTrainer.")
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2/ and gsm8k/")
    parser.add_argument("--chats", type=int, default=256)
    parser.add_argument("--prepare-chats", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=folder_for, help="folder for trl_sft.json")
    arguments = parser.parse_args()
    chats = mixed(arguments.data, max(arguments.chats, arguments.prepare_chats))
    tokenizer = trained_tokenizer(chats)
    few = chats[: arguments.chats]
    encoded = encoded_chats(tokenizer, few)
    useful = sum(len(example) for example in encoded.examples)
    trained = sum(int((example.labels[1:] >= 0).sum()) for example in encoded.examples)
    few_encoded = encoded_chats(tokenizer, chats[:BATCH])
    train = {
        "ours": (train_ours, (few_encoded,), (encoded,)),
        "trl defaults": (train_trl, (tokenizer, chats[:BATCH], False), (tokenizer, few, False)),
        "trl packed": (train_trl, (tokenizer, chats[:BATCH], True), (tokenizer, few, True)),
    }
    many = chats[: arguments.prepare_chats]
    prepare = {
        "ours": (prepare_ours, (tokenizer, chats[:BATCH]), (tokenizer, many)),
        "trl defaults": (prepare_trl, (tokenizer, chats[:BATCH], False), (tokenizer, many, False)),
        "trl packed": (prepare_trl, (tokenizer, chats[:BATCH], True), (tokenizer, many, True)),
    }
    training, preparation = in_turn(train, arguments.repeats), in_turn(prepare, arguments.repeats)
    seconds = training["seconds"]
    threads = torch.get_num_threads()
    result = {
        "command": f"OMP_NUM_THREADS={threads} OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')} "
        f"python benchmarks/trl_sft.py --data {arguments.data} --chats {arguments.chats} --prepare-chats "
        f"{arguments.prepare_chats} --repeats {arguments.repeats} --out {arguments.out}",
        "chats": len(few),
        "useful_tokens": useful,
        "trained_tokens": trained,
        "longest": max(len(example) for example in encoded.examples),
        "median_length": statistics.median(len(example) for example in encoded.examples),
        "training": training
        | {"useful_tokens_per_second": {way: round(useful / value) for way, value in seconds.items()}},
        "preparation": preparation | {"chats": arguments.prepare_chats},
        "machine": {
            "threads": threads,
            **machine("torch", "transformers", "peft", "accelerate", "tokenizers"),
            **{name: version(name) for name in ("trl", "datasets")},
        },
    }
    if arguments.out:
        (arguments.out / "trl_sft.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


def quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    import datasets

    datasets.disable_progress_bars()


def mixed(folder: Path, count: int) -> Chats:
    """Half short, half long."""
    with (folder / "sst2" / "train.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[: count // 2]
    short = [(row["sentence"].strip(), "positive" if row["label"] == "1" else "negative") for row in rows]
    lines = (folder / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[: count - len(short)]
    long = [(row["question"], row["answer"]) for row in map(json.loads, lines)]
    return [chat for pair in zip(short, long, strict=True) for chat in pair]


def trained_tokenizer(chats: Chats) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((text for chat in chats for text in chat), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[1])
    fast.chat_template = TEMPLATE
    return fast


def base() -> Any:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def encoded_chats(tokenizer: Any, chats: Chats) -> Encoded:
    conversations = [
        Conversation(messages=[Message(role="user", content=q), Message(role="assistant", content=a)])
        for q, a in chats
    ]
    return encode(tokenizer, conversations, max_seq_length=1024)


def train_ours(encoded: Encoded) -> Times:
    model = attach(base().requires_grad_(False), LoraSpec(target_modules="all-linear"), seed=SEED)
    spec = TrainSpec(n_epochs=1, batch_size=BATCH, packing=True, seed=SEED)
    processor, began = time.process_time(), time.perf_counter()
    finetune(model, encoded.examples, spec, device="cpu")
    return time.perf_counter() - began, time.process_time() - processor


class Clock(TrainerCallback):  # type: ignore[misc]
    """From the beginning of the loop to its end."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter(), time.process_time()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.times = time.perf_counter() - self.began[0], time.process_time() - self.began[1]


def trainer_of(tokenizer: Any, chats: Chats, folder: str, *, packed: bool) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": q}],
                "completion": [{"role": "assistant", "content": a}],
            }
            for q, a in chats
        ]
    )
    config = SFTConfig(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=2 if packed else BATCH,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10,
        seed=SEED,
        **({"packing": True, "max_length": ROW} if packed else {}),
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(
        model=base(), args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora
    )


def train_trl(tokenizer: Any, chats: Chats, packed: bool) -> Times:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(tokenizer, chats, folder, packed=packed)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    return clock.times


def prepare_ours(tokenizer: Any, chats: Chats) -> Times:
    processor, began = time.process_time(), time.perf_counter()
    encoded = encoded_chats(tokenizer, chats)
    pack_rows([len(example) - 1 for example in encoded.examples], ROW)
    return time.perf_counter() - began, time.process_time() - processor


def prepare_trl(tokenizer: Any, chats: Chats, packed: bool) -> Times:
    """What the trainer does to a dataset; the model is made before."""
    from trl import SFTTrainer

    prepare = SFTTrainer._prepare_dataset
    times: list[Times] = []

    def timed(*arguments: Any, **more: Any) -> Any:
        processor, began = time.process_time(), time.perf_counter()
        prepared = prepare(*arguments, **more)
        times.append((time.perf_counter() - began, time.process_time() - processor))
        return prepared

    SFTTrainer._prepare_dataset = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer_of(tokenizer, chats, folder, packed=packed)
    finally:
        SFTTrainer._prepare_dataset = prepare
    assert len(times) == 1, times
    return times[0]


def in_turn(ways: dict[str, Way], repeats: int) -> dict[str, Any]:
    """Ours before and after every other way: a machine that is shared is faster and slower within minutes, so
    each way is compared with the mean of the two beside it."""
    others = [way for way in ways if way != "ours"]
    found: dict[str, list[Times]] = {"ours": [alone(*ways["ours"])], **{way: [] for way in others}}
    ratios: dict[str, list[Times]] = {way: [] for way in others}
    for _ in range(repeats):
        for way in others:
            found[way].append(alone(*ways[way]))
            found["ours"].append(alone(*ways["ours"]))
            before, after = found["ours"][-2:]
            wall, processor = (2 * found[way][-1][kind] / (before[kind] + after[kind]) for kind in (0, 1))
            ratios[way].append((wall, processor))
    return {
        "seconds": medians(found, 0, 3),
        "processor_seconds": medians(found, 1, 3),
        "times_faster": medians(ratios, 0, 2),
        "lowest_and_highest": {
            way: [round(choose(wall for wall, _ in all_), 2) for choose in (min, max)]
            for way, all_ in ratios.items()
        },
        "times_less_processor": medians(ratios, 1, 2),
    }


def alone(run: Any, first: tuple[Any, ...], arguments: tuple[Any, ...]) -> Times:
    """In a process of its own, as a user runs it: after a run of TRL the same memory is given back and asked
    for anew in every step, which made ours a fifth slower in the same process. `first` is a small run, which
    is not timed: first calls are slower."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        times: Times = pool.submit(second_of_two, run, first, arguments).result()
    return times


def second_of_two(run: Any, first: tuple[Any, ...], arguments: tuple[Any, ...]) -> Times:
    quiet()
    run(*first)
    gc.collect()
    times: Times = run(*arguments)
    return times


def medians(found: dict[str, list[Times]], kind: int, digits: int) -> dict[str, float]:
    return {
        way: round(statistics.median(times[kind] for times in all_), digits) for way, all_ in found.items()
    }


if __name__ == "__main__":
    sys.exit(main())
