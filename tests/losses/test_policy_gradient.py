"""GRPO's loss against numbers by hand, and against TRL's trainer."""

import copy
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_losses import character_tokenizer, randomize_adapter, tiny_llama
from torch import Tensor

from montessori_pl.batches.collate import collate_completions
from montessori_pl.batches.encoding import EncodedCompletion
from montessori_pl.data.chat_template import Rendered
from montessori_pl.losses import policy_gradient_loss, token_log_probabilities

ALL = torch.ones(1, 1, dtype=torch.bool)


def loss_of(ratio: float, advantage: float, clip: tuple[float, float] = (0.2, 0.3)) -> tuple[float, float, float]:
    """The loss of one token, its derivative by the log-probability, and whether the clip holds it back."""
    policy = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    output = policy_gradient_loss(policy, zero, zero, torch.tensor([advantage]), ALL, clip, kl_weight=0.0)
    output.loss.sum().backward()
    assert policy.grad is not None
    return output.loss.item(), policy.grad.item(), output.clipped.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0.0),
        (1.1, 2.0, -2.2, -2.2, 0.0),
        (1.5, 2.0, -2.6, 0.0, 1.0),  # 1.3 times the advantage, and no reason to go on
        (0.5, 2.0, -1.0, -1.0, 0.0),  # what has become unlikely is pulled back
        (0.5, -2.0, 1.6, 0.0, 1.0),
        (1.5, -2.0, 3.0, 3.0, 0.0),
        (1.5, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_a_token_by_hand(ratio: float, advantage: float, loss: float, slope: float, clipped: float) -> None:
    assert loss_of(ratio, advantage) == pytest.approx((loss, slope, clipped), abs=1e-9)


def test_the_divergence_by_hand() -> None:
    """Probability .25 now and .5 under the reference: 2 - log 2 - 1; it counts only where the token is the policy's."""
    policy, reference = torch.full((1, 2), math.log(0.25)), torch.full((1, 2), math.log(0.5))
    answered = torch.tensor([[True, False]])
    output = policy_gradient_loss(policy, policy, reference, torch.zeros(1), answered, (0.2, 0.2), kl_weight=0.5)
    assert output.divergence.tolist() == [[pytest.approx(1 - math.log(2)), 0.0]]
    assert output.loss.tolist() == [[pytest.approx(0.5 * (1 - math.log(2))), 0.0]]


def test_what_is_not_the_policys_may_be_infinite() -> None:
    policy = torch.tensor([[0.0, -math.inf]], requires_grad=True)
    zero = torch.zeros(1, 2)
    answered = torch.tensor([[True, False]])
    output = policy_gradient_loss(policy, zero, zero, torch.ones(1), answered, (0.2, 0.2), kl_weight=0.1)
    assert output.loss.isfinite().all()
    assert output.clipped.isfinite().all()


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_loss_and_gradients_equal_those_of_trl(tmp_path: Path, kl_weight: float) -> None:
    """On three completions of different lengths, after the policy has moved from where it sampled them."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    base = tiny_llama(len(tokenizer))
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
    trainer = trl.GRPOTrainer(
        model=copy.deepcopy(base),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            beta=kl_weight,
            epsilon=0.1,
            epsilon_high=0.2,
            loss_type="bnpo",  # the mean over the batch's tokens
            num_generations=3,
            per_device_train_batch_size=3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "why?"}]),
        processing_class=tokenizer,
        peft_config=lora,
    )
    randomize_adapter(trainer.model)
    ours = get_peft_model(copy.deepcopy(base), lora)
    trained = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    ours.load_state_dict({name: trainer.model.get_parameter(name) for name in trained}, strict=False)
    pairs = [("what is a cat?", " an animal."), ("why?", " because it is so."), ("name a letter", " b")]
    rows = [Rendered(*_ids(tokenizer(prompt).input_ids, tokenizer(answer).input_ids)) for prompt, answer in pairs]
    generator = torch.Generator().manual_seed(1)

    def near(values: Tensor) -> tuple[float, ...]:
        """What another policy says, which this one has moved away from by a fifth of a nat or so."""
        return tuple((values + 0.2 * torch.randn(values.shape, generator=generator)).tolist())

    plain = collate_completions([EncodedCompletion(row, 0.0) for row in rows], 0)
    with torch.no_grad():
        now = token_log_probabilities(
            ours(input_ids=plain["input_ids"], attention_mask=plain["attention_mask"]).logits, plain["labels"]
        )
    own = plain["labels"][:, 1:] != -100
    items = [
        EncodedCompletion(row, advantage, near(now[place][own[place]]), near(now[place][own[place]]))
        for place, (row, advantage) in enumerate(zip(rows, (1.5, -0.5, -1.0), strict=True))
    ]

    batch = collate_completions(items, 0)
    policy = token_log_probabilities(
        ours(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]
    )
    output = policy_gradient_loss(
        *(policy, batch["sampled"][:, 1:], batch["reference"][:, 1:], batch["advantages"], own, (0.1, 0.2), kl_weight)
    )
    our_loss = output.loss.sum() / own.sum()
    our_loss.backward()

    trainer.current_gradient_accumulation_steps = 1  # which `train` would have set
    trl_loss = trainer._compute_loss(trainer.model, _as_trl_has_it(items, tokenizer.pad_token_id))
    trl_loss.backward()
    assert 0 < output.clipped.sum() < own.sum(), "some tokens must be clipped and some not for this to mean something"
    assert our_loss.item() == pytest.approx(trl_loss.item(), rel=1e-5)
    for name in trained:
        expected = trainer.model.get_parameter(name).grad
        largest = expected.abs().max().item()
        assert largest > 0, name
        torch.testing.assert_close(ours.get_parameter(name).grad, expected, rtol=0, atol=1e-5 * largest, msg=name)


def _ids(prompt: list[int], answer: list[int]) -> tuple[list[int], list[bool]]:
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _as_trl_has_it(items: list[EncodedCompletion], pad_id: int) -> dict[str, Tensor]:
    """Prompts padded on the left and completions on the right."""
    split = [item.rendered.completion_mask.index(True) for item in items]
    prompts = [item.rendered.input_ids[:place] for item, place in zip(items, split, strict=True)]
    answers = [item.rendered.input_ids[place:] for item, place in zip(items, split, strict=True)]

    def padded(rows: list[list[int]], value: float, left: bool = False) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor(
            [[value] * (width - len(row)) + row if left else row + [value] * (width - len(row)) for row in rows]
        )

    return {
        "prompt_ids": padded(prompts, pad_id, left=True),
        "prompt_mask": padded([[1] * len(row) for row in prompts], 0, left=True),
        "completion_ids": padded(answers, pad_id),
        "completion_mask": padded([[1] * len(row) for row in answers], 0),
        "advantages": torch.tensor([item.advantage for item in items]),
        "old_per_token_logps": padded([list(item.sampled or ()) for item in items], 0.0),
        "ref_per_token_logps": padded([list(item.reference or ()) for item in items], 0.0),
    }
