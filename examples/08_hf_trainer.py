"""Prune a transformer and fine-tune it with Hugging Face's `Trainer`.

pip install -e '.[examples]' && python examples/08_hf_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import subprune_fx

WORDS, LENGTH, CLASSES = 60, 12, 3


def sentences(count: int, seed: int) -> list[dict[str, Tensor]]:
    """A toy task: which of the words 1, 2 and 3 does a sentence hold?"""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(CLASSES + 1, WORDS, (count, LENGTH), generator=random)
    labels = torch.randint(CLASSES, (count,), generator=random)
    ids[torch.arange(count), torch.randint(LENGTH, (count,), generator=random)] = labels + 1
    mask = torch.ones(LENGTH, dtype=torch.long)
    return [{"input_ids": i, "attention_mask": mask, "labels": y} for i, y in zip(ids, labels, strict=True)]


def loss_of(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
    """Of the whole model and of the pruned one, which knows no labels."""
    return nn.functional.cross_entropy(outputs["logits"], labels)


def train(model: nn.Module, steps: int) -> float:
    """Train with `Trainer`; accuracy on other sentences afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=64, learning_rate=2e-3, save_strategy="no",
            report_to="none", remove_unused_columns=False, use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = Trainer(model, settings, train_dataset=sentences(2048, 0), compute_loss_func=loss_of)
        trainer.train()
    return accuracy(model, sentences(500, 1))


def accuracy(model: nn.Module, data: list[dict[str, Tensor]]) -> float:
    """Share of sentences whose class is right."""
    columns = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    labels = columns.pop("labels")
    with torch.no_grad():
        return float((model.eval()(**columns)["logits"].argmax(1) == labels).float().mean())


def main() -> None:
    """Train a small BERT, prune it to a twentieth, train on."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(vocab_size=WORDS, num_labels=CLASSES, max_position_embeddings=LENGTH, **shape)
    model = BertForSequenceClassification(config)
    print(f"whole: accuracy {train(model, 60):.1%}")

    rows = sentences(256, 2)
    calibration = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
    small, _, report = subprune_fx.prune(model.eval(), calibration, ratio=20)
    print(f"pruned, {report.achieved:.1f} times fewer parameters: accuracy {accuracy(small, sentences(500, 1)):.1%}")

    print(f"fine-tuned: accuracy {train(small, 30):.1%}")


if __name__ == "__main__":
    main()
