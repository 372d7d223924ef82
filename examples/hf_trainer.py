"""Direct advantages in a Hugging Face `Trainer`: override compute_loss, nothing else.

A tiny random Qwen2 learns from (state, step, advantage) triples: of two candidate steps per state one has advantage
+0.5, the other −0.5. Runs on a CPU in seconds: ``python examples/hf_trainer.py``.
"""

import tempfile

import torch
from dapo_kernels import hidden_states_and_weight, linear_direct_advantage_loss, linear_step_logprobs
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

BETA, VOCABULARY = 0.1, 64


def make_pairs(states: int = 32) -> list[dict]:
    """Two candidate steps (1 to 5 tokens) for each of `states` random states."""
    generator = torch.Generator().manual_seed(0)

    def tokens(low, high):
        length = int(torch.randint(low, high + 1, (), generator=generator))
        return torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()

    pairs = []
    for _ in range(states):
        state = tokens(4, 10)
        for advantage in (0.5, -0.5):
            pairs.append({"state": state, "step": tokens(1, 5), "advantage": advantage, "ref_logp": 0.0})
    return pairs


def collate(pairs: list[dict]) -> dict[str, torch.Tensor]:
    """Pad to a rectangle, and say which rows of the flattened hidden states predict which token of which step."""
    width = max(len(p["state"]) + len(p["step"]) for p in pairs)
    input_ids = torch.zeros(len(pairs), width, dtype=torch.int64)
    rows, targets, lengths = [], [], []
    for i, pair in enumerate(pairs):
        ids = pair["state"] + pair["step"]
        input_ids[i, : len(ids)] = torch.tensor(ids)
        first = i * width + len(pair["state"]) - 1  # the state's last token predicts the step's first
        rows += range(first, first + len(pair["step"]))
        targets += pair["step"]
        lengths.append(len(pair["step"]))
    return {
        "input_ids": input_ids,
        "rows": torch.tensor(rows),
        "targets": torch.tensor(targets),
        "cu_steps": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "advantages": torch.tensor([p["advantage"] for p in pairs]),
        "ref_logps": torch.tensor([p["ref_logp"] for p in pairs]),
    }


def head_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, dict]:
    # Padding stands to the right, and attention is causal: no mask is needed.
    head = hidden_states_and_weight(model, input_ids=batch["input_ids"])
    return head.hidden.flatten(0, 1), head.weight, {**head.options, "rows": batch["rows"]}


class DirectAdvantageTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        hidden, weight, options = head_of(model, inputs)
        out = linear_direct_advantage_loss(
            hidden,
            weight,
            inputs["targets"],
            inputs["cu_steps"],
            inputs["advantages"],
            inputs["ref_logps"],
            BETA,
            **options,
        )
        return (out.loss, {"step_logps": out.step_logps}) if return_outputs else out.loss


def main(epochs: int = 8) -> tuple[float, float]:
    """Train; return the loss over all pairs before and after."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    pairs = make_pairs()
    with torch.no_grad():  # the reference is the policy before training, read through the same path
        batch = collate(pairs)
        hidden, weight, options = head_of(model, batch)
        references = linear_step_logprobs(hidden, weight, batch["targets"], batch["cu_steps"], **options)
    for pair, reference in zip(pairs, references.tolist()):
        pair["ref_logp"] = reference

    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            directory, num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=3e-3, use_cpu=not
            torch.cuda.is_available(), report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
            remove_unused_columns=False,
        )  # fmt: skip
        trainer = DirectAdvantageTrainer(model, arguments, data_collator=collate, train_dataset=pairs)

        def loss_of_all() -> float:
            with torch.no_grad():
                return trainer.compute_loss(model, trainer._prepare_inputs(collate(pairs))).item()

        before = loss_of_all()
        trainer.train()
        return before, loss_of_all()


if __name__ == "__main__":
    print("loss before {:.3f}, after {:.3f}".format(*main()))
