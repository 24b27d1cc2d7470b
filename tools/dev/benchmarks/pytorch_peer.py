"""Forward pass and training step in PyTorch with `transformers`, for comparison."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers

from data_specs import records
from pipeline.base import compute_dtype
from pipeline.runners import local

_CLIP_NORM = 1.0


def tensors(batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns the arrays of a batch as tensors: integers as int64, the others as float32."""
    return {
        name: torch.from_numpy(np.asarray(value)).to(
            torch.int64 if np.issubdtype(np.asarray(value).dtype, np.integer) else torch.float32
        )
        for name, value in batch.items()
    }


def _states(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the last hidden states at the masked positions, [B, P, D]."""
    states = model.bert(
        batch[records.INPUT_IDS],
        attention_mask=batch[records.INPUT_MASK],
        token_type_ids=batch[records.SEGMENT_IDS],
    ).last_hidden_state
    positions = batch[records.MASKED_LM_POSITIONS].unsqueeze(-1)
    return states.gather(1, positions.expand(-1, -1, states.shape[-1]))


class Teacher:
    """A `BertForMaskedLM` for inference.

    Args:
        directory: a Hugging Face directory.
        dtype: `float32` or `mixed_bfloat16`; the latter uses bfloat16 for everything.
    """

    def __init__(self, directory: str | os.PathLike[str], dtype: str) -> None:
        torch_dtype = torch.bfloat16 if dtype == compute_dtype.BFLOAT16 else torch.float32
        model = transformers.BertForMaskedLM.from_pretrained(directory)
        torch.set_num_threads(local.num_cpus())
        self._model = model.to(torch_dtype).eval()

    @torch.inference_mode()
    def all_positions(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the logits at all positions, [B, L, V], as the model's own call does."""
        return self._model(
            batch[records.INPUT_IDS],
            attention_mask=batch[records.INPUT_MASK],
            token_type_ids=batch[records.SEGMENT_IDS],
        ).logits

    @torch.inference_mode()
    def masked_positions(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the logits at the masked positions, [B, P, V]."""
        return self._model.cls(_states(self._model, batch))


class Student:
    """A student that is trained with cross-entropy and cosine over a teacher's top-k.

    Logits are computed only at masked positions. The optimizer is AdamW with clipped gradients.

    Args:
        config: arguments of `transformers.BertConfig`.
        dtype: `float32` or `mixed_bfloat16`; the latter uses autocast.
    """

    def __init__(self, config: Mapping[str, Any], dtype: str) -> None:
        config = transformers.BertConfig(**config)
        torch.set_num_threads(local.num_cpus())
        self._model = transformers.BertForMaskedLM(config).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=5e-5, weight_decay=0.01)
        self._autocast = dtype == compute_dtype.BFLOAT16

    def step(self, batch: Mapping[str, torch.Tensor]) -> float:
        """Makes an update and returns the loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            logits = self._model.cls(_states(self._model, batch)).float()
        loss = _loss(logits, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), _CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()


def _loss(logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the mean sum of both losses over real masked positions; the tail is dropped."""
    tail = torch.exp(batch[records.LOG_TAIL_MASSES][..., :1])
    teacher = torch.softmax(batch[records.TOPK_LOGITS], dim=-1) * (1.0 - tail)
    student = torch.log_softmax(logits, dim=-1).gather(-1, batch[records.TOPK_IDS])
    cross_entropy = -(teacher * student).sum(-1)
    cosine = 1.0 - torch.nn.functional.cosine_similarity(teacher, student.exp(), dim=-1)
    weights = batch[records.MASKED_LM_WEIGHTS]
    return ((cross_entropy + cosine) * weights).sum() / weights.sum()
