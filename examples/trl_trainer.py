"""A fused objective in a TRL trainer: DPO whose log-probabilities never become logits. Needs ``dapo-fast[trl]``.

Only compute_loss is overridden: TRL tokenizes, batches and optimizes. Segments are whole completions, and a pair is
two adjacent segments. Runs on a CPU in seconds: ``python examples/trl_trainer.py``.
"""

import tempfile

import torch
from dapo_kernels import DPO, hidden_states_and_weight, linear_segment_loss, linear_step_logprobs
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import DPOConfig, DPOTrainer

WORDS = ["<pad>", "<eos>", "one", "two", "three", "four", "five", "six", "plus", "is"]


class FusedDPOTrainer(DPOTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # TRL stacks all chosen completions over all rejected ones; make pairs adjacent.
        pairs = len(inputs["input_ids"]) // 2
        order = torch.arange(2 * pairs).view(2, pairs).t().flatten()
        ids, mask = inputs["input_ids"][order], inputs["attention_mask"][order]
        completion = inputs["completion_mask"][order].bool()
        completion[:, 0] = False  # nothing predicts a first token
        rows = completion.flatten().nonzero()[:, 0] - 1  # the token before predicts
        targets = ids[completion]
        cu = torch.zeros(len(ids) + 1, dtype=torch.int32, device=ids.device)
        cu[1:] = completion.sum(1).cumsum(0)

        with torch.no_grad():
            head = hidden_states_and_weight(self.ref_model, input_ids=ids, attention_mask=mask)
            ref_logps = linear_step_logprobs(
                head.hidden.flatten(0, 1), head.weight, targets, cu, rows=rows, **head.options
            )
        head = hidden_states_and_weight(model, input_ids=ids, attention_mask=mask)
        objective = DPO(ref_logps, beta=self.args.beta, normalizer=pairs)
        hidden = head.hidden.flatten(0, 1)
        out = linear_segment_loss(hidden, head.weight, targets, cu, objective, rows=rows, **head.options)
        return (out.loss, {"logps": out.segment_logps}) if return_outputs else out.loss


def main(epochs: int = 6) -> tuple[float, float]:
    """Train on sums; return the first and the last logged loss (log 2 before anything is learnt)."""
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    numbers = WORDS[2:8]
    sums = [(a, b) for a in range(1, 4) for b in range(1, 4)]
    data = Dataset.from_list(
        [
            {
                "prompt": f"{numbers[a - 1]} plus {numbers[b - 1]} is",
                "chosen": f" {numbers[a + b - 1]}",
                "rejected": f" {numbers[(a + b) % 6]}",
            }
            for a, b in sums
        ]
    )
    config = Qwen2Config(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model, reference = Qwen2ForCausalLM(config), Qwen2ForCausalLM(config)
    reference.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as directory:
        arguments = DPOConfig(
            directory, num_train_epochs=epochs, per_device_train_batch_size=9, learning_rate=1e-2, beta=0.5,
            use_cpu=not torch.cuda.is_available(), bf16=False, report_to=[], disable_tqdm=True, save_strategy="no",
            logging_steps=1, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = FusedDPOTrainer(model, reference, arguments, train_dataset=data, processing_class=tokenizer)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(losses[0]), float(losses[-1])


if __name__ == "__main__":
    print("first loss {:.3f}, last {:.3f}".format(*main()))
