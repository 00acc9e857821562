"""The TRL side of grpo_step.py: `python _grpo_trl.py FOLDER MODE MICRO_BATCH`; a negative MICRO_BATCH generates by continuous batching.
One `GRPOTrainer.train()`, held at every step's beginning until the parent asks for it."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _grpo_shared import CAP, GROUP, LEARNING_RATE, PROBE, PROMPTS, prompts, say
from datasets import Dataset
from grpo_bench_reward import digit_share
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class OnDemand(TrainerCallback):  # type: ignore[misc]
    """A step begins when the parent asks for it and is timed from there to after the optimizer's update."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.scored = 0.0

    def reward(self, completions: list[str], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        """TRL's reward function."""
        del kwargs
        began = time.perf_counter()
        self.lengths += [len(ids) for ids in completion_ids]
        values = [digit_share(text) for text in completions]
        self.scored += time.perf_counter() - began
        return values

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the parent; end training when there are no more steps to make."""
        del args, state, kwargs
        if not sys.stdin.readline():
            control.should_training_stop = True
            raise SystemExit(0)
        self.lengths, self.scored = [], 0.0
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step."""
        del args, state, control, kwargs
        say({"seconds": time.perf_counter() - self.began, "tokens": sum(self.lengths), "longest": max(self.lengths), "samples": len(self.lengths)})


def main(folder: Path, mode: str, micro_batch: int) -> None:
    logging.disable(logging.WARNING)
    model = Qwen3ForCausalLM.from_pretrained(folder / mode)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<eos>", pad_token="<pad>", padding_side="left")
    continuous, micro_batch = micro_batch < 0, abs(micro_batch)
    accumulate = PROMPTS * GROUP // micro_batch
    config = GRPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulate, steps_per_generation=accumulate, num_generations=GROUP, num_iterations=1, beta=0.0, loss_type="grpo",
        max_completion_length=CAP[mode], temperature=1.0, top_p=1.0, top_k=0, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
        max_grad_norm=1.0, max_steps=100_000, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
        dataloader_num_workers=0, shuffle_dataset=False, use_transformers_continuous_batching=continuous)
    demand = OnDemand()
    trainer = GRPOTrainer(model=model, reward_funcs=demand.reward, args=config, train_dataset=Dataset.from_list([{"prompt": text} for text in prompts()]),
                          processing_class=tokenizer, callbacks=[demand])
    with torch.no_grad():
        logprobs = model(torch.tensor([PROBE])).logits[0].log_softmax(-1)
    probe = logprobs[:-1].gather(-1, torch.tensor(PROBE[1:])[:, None])[:, 0].tolist()
    say({"probe": probe, "threads": torch.get_num_threads()})
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
