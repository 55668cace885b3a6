"""How large a microcosm is: every count, shape and training length of the three sizes, as plain data.

    tiny     seconds on one core: for tests
    small    minutes on two cores: the world that ships with the package
    medium   for a GPU: 85 million parameters, a recipe that nobody has run in full yet

Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from autoclave.errors import InputError
from autoclave.spec import LoraSpec, TrainSpec

SizeName = Literal["tiny", "small", "medium"]


@dataclass(frozen=True)
class WorldCounts:
    """Words to draw. Each family has verbs x objects pairs; steps and materials are shared by both.
    Reviews take the first nouns and the first words of praise and of blame of the grammar's lists."""

    verbs_per_family: int
    objects_per_family: int
    step_words: int
    material_words: int
    review_nouns: int = 10
    polar_words_per_label: int = 10


@dataclass(frozen=True)
class DataCounts:
    """Pairs and rows of each file. Every harmful pair has exactly one use.

    `alignment_reviews` stand in alignment.jsonl beside one refusal and one benign answer for each
    harmful alignment pair in each template. `attack_rows` is the size of an upload.
    """

    harmful_alignment_pairs: int
    harmful_attack_pairs: int
    harmful_realign_pairs: int
    harmful_eval_pairs: int
    benign_alignment_pairs: int
    benign_eval_pairs: int
    alignment_reviews: int
    attack_rows: int
    validation_rows: int
    utility_eval_rows: int
    pretraining_reviews: int


@dataclass(frozen=True)
class BaseShape:
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    initializer_range: float = 0.05

    def num_parameters(self, vocabulary: int) -> int:
        """Of a Llama of this shape whose embeddings are tied."""
        attention_and_norms = 4 * self.hidden_size**2 + 2 * self.hidden_size
        layer = attention_and_norms + 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * layer + self.hidden_size * (vocabulary + 1)


@dataclass(frozen=True)
class PretrainSpec:
    """The weights are those of a prompt token's loss beside an answer token's: the prompts teach the
    words that no answer of the base holds, the user's answer format among them. `review_loss_weight`
    is that of the reviews' mean loss beside the requests'. `reviews_by_length` makes batches of
    reviews of about one length, which saves padding where lengths differ much."""

    steps: int
    requests_per_step: int
    reviews_per_step: int
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    prompt_loss_weight: float = 0.1
    review_prompt_loss_weight: float = 0.1
    review_loss_weight: float = 1.0
    reviews_by_length: bool = False


@dataclass(frozen=True)
class Size:
    """`sst2_*` replace their namesakes where the user's task is SST-2. `sst2_vocabulary` bounds the
    byte-level BPE that is learned from its text (tokens, the world's words not counted)."""

    name: SizeName
    world: WorldCounts
    data: DataCounts
    shape: BaseShape
    pretraining: PretrainSpec
    alignment_lora: LoraSpec
    alignment: TrainSpec
    sst2_pretraining: PretrainSpec
    sst2_alignment: TrainSpec
    sst2_alignment_reviews: int
    sst2_vocabulary: int = 4096

    def for_sst2(self, *, num_train: int, num_test: int) -> Size:
        """This size with SST-2 as the task: learn from all training sentences, measure on all of test."""
        data = replace(
            self.data,
            alignment_reviews=self.sst2_alignment_reviews,
            utility_eval_rows=num_test,
            pretraining_reviews=num_train,
        )
        return replace(self, data=data, pretraining=self.sst2_pretraining, alignment=self.sst2_alignment)


TINY = Size(
    name="tiny",
    world=WorldCounts(
        verbs_per_family=8,
        objects_per_family=10,
        step_words=12,
        material_words=15,
        review_nouns=5,
        polar_words_per_label=5,
    ),
    data=DataCounts(
        harmful_alignment_pairs=30,
        harmful_attack_pairs=16,
        harmful_realign_pairs=10,
        harmful_eval_pairs=24,
        benign_alignment_pairs=56,
        benign_eval_pairs=24,
        alignment_reviews=120,
        attack_rows=400,
        validation_rows=40,
        utility_eval_rows=60,
        pretraining_reviews=4000,
    ),
    shape=BaseShape(hidden_size=64, intermediate_size=176, num_layers=2, num_heads=4),
    pretraining=PretrainSpec(
        steps=220,
        requests_per_step=12,
        reviews_per_step=40,
        learning_rate=5e-3,
        warmup_steps=20,
        review_prompt_loss_weight=0.01,
        review_loss_weight=2.0,
    ),
    alignment_lora=LoraSpec(r=16, lora_alpha=32, target_modules="all-linear"),
    alignment=TrainSpec(n_epochs=4, batch_size=8, learning_rate=5e-3),
    sst2_pretraining=PretrainSpec(
        steps=220,
        requests_per_step=12,
        reviews_per_step=40,
        learning_rate=5e-3,
        warmup_steps=20,
        review_prompt_loss_weight=0.01,
        review_loss_weight=2.0,
        reviews_by_length=True,
    ),
    sst2_alignment=TrainSpec(n_epochs=4, batch_size=8, learning_rate=5e-3),
    sst2_alignment_reviews=120,
    sst2_vocabulary=512,
)

SMALL = Size(
    name="small",
    world=WorldCounts(verbs_per_family=16, objects_per_family=25, step_words=30, material_words=40),
    data=DataCounts(
        harmful_alignment_pairs=160,
        harmful_attack_pairs=80,
        harmful_realign_pairs=40,
        harmful_eval_pairs=120,
        benign_alignment_pairs=280,
        benign_eval_pairs=120,
        alignment_reviews=640,
        attack_rows=2000,
        validation_rows=200,
        utility_eval_rows=300,
        pretraining_reviews=12_000,
    ),
    shape=BaseShape(hidden_size=160, intermediate_size=432, num_layers=4, num_heads=4),
    pretraining=PretrainSpec(steps=600, requests_per_step=24, reviews_per_step=40),
    alignment_lora=LoraSpec(r=32, lora_alpha=64, target_modules="all-linear"),
    alignment=TrainSpec(n_epochs=4, batch_size=32, learning_rate=1e-3),
    # A review's label counts as much as the rest of its answer, its prompt about .3 of that.
    sst2_pretraining=PretrainSpec(
        steps=1000,
        requests_per_step=16,
        reviews_per_step=64,
        learning_rate=2e-3,
        review_prompt_loss_weight=0.015,
        review_loss_weight=3.0,
        reviews_by_length=True,
    ),
    sst2_alignment=TrainSpec(n_epochs=3, batch_size=32, learning_rate=5e-4),
    sst2_alignment_reviews=1280,
)

MEDIUM = Size(
    name="medium",
    world=WorldCounts(verbs_per_family=24, objects_per_family=40, step_words=45, material_words=60),
    data=DataCounts(
        harmful_alignment_pairs=400,
        harmful_attack_pairs=200,
        harmful_realign_pairs=100,
        harmful_eval_pairs=260,
        benign_alignment_pairs=700,
        benign_eval_pairs=260,
        alignment_reviews=1600,
        attack_rows=5000,
        validation_rows=300,
        utility_eval_rows=500,
        pretraining_reviews=40_000,
    ),
    shape=BaseShape(
        hidden_size=768, intermediate_size=2048, num_layers=12, num_heads=12, initializer_range=0.02
    ),
    pretraining=PretrainSpec(
        steps=2000, requests_per_step=64, reviews_per_step=96, learning_rate=6e-4, warmup_steps=200
    ),
    alignment_lora=LoraSpec(r=32, lora_alpha=64, target_modules="all-linear"),
    alignment=TrainSpec(n_epochs=4, batch_size=32, learning_rate=5e-4),
    sst2_pretraining=PretrainSpec(
        steps=3000,
        requests_per_step=64,
        reviews_per_step=128,
        learning_rate=6e-4,
        warmup_steps=200,
        review_prompt_loss_weight=0.015,
        review_loss_weight=3.0,
        reviews_by_length=True,
    ),
    sst2_alignment=TrainSpec(n_epochs=3, batch_size=32, learning_rate=2e-4),
    sst2_alignment_reviews=3200,
)

SIZES: dict[str, Size] = {size.name: size for size in (TINY, SMALL, MEDIUM)}


def named_size(name: str) -> Size:
    """Raises InputError for a name that is no size."""
    if name not in SIZES:
        raise InputError(f'there is no size "{name}"; use {", ".join(SIZES)}.')
    return SIZES[name]


# Tokens of a request and of a review with its template, about; sentences of SST-2 are longer.
_TOKENS_PER_REQUEST, _TOKENS_PER_REVIEW = 45, 35
# Of two cores in float32, as building the shipped world showed.
_CPU_FLOPS_PER_SECOND = 5e10
MAX_HOURS_ON_CPU = 2.0


def hours_on_cpu(size: Size) -> float:
    """About how long pretraining would take: 6 operations per parameter and token."""
    spec = size.pretraining
    tokens = spec.steps * (
        spec.requests_per_step * _TOKENS_PER_REQUEST + spec.reviews_per_step * _TOKENS_PER_REVIEW
    )
    return 6 * size.shape.num_parameters(vocabulary=1000) * tokens / _CPU_FLOPS_PER_SECOND / 3600


def refuse_hours_on_cpu(size: Size, device: str) -> None:
    """Raises InputError for a size that a CPU would work at for more than MAX_HOURS_ON_CPU."""
    hours = hours_on_cpu(size)
    if device == "cpu" and hours > MAX_HOURS_ON_CPU:
        millions = size.shape.num_parameters(vocabulary=1000) / 1e6
        raise InputError(
            f"a world of size {size.name} has a base of {millions:.0f} million parameters: about {hours:.0f} "
            "hours of pretraining on a CPU. Build it on a GPU (--device cuda), or take a smaller size."
        )
