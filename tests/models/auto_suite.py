"""Not a test of its own: transformers' ModelTesterMixin and GenerationTesterMixin on our AutoModel class.

`test_auto_suite.py` copies this file to where transformers' package `tests` can be imported, and runs it there.
"""

from __future__ import annotations

import random
import unittest
from typing import Any

import torch

import stateform as sf
import tests.test_modeling_common as common
from stateform.models.auto import StateCache, StateformConfig, StateformForCausalLM
from stateform.models.blocks import Block
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin, ids_tensor

common.GradientCheckpointingLayer = Block  # which keeps that class's contract, but knows nothing of transformers


class Small:
    """The model that the mixins ask for, and its inputs."""

    batch_size, seq_length, is_training = 3, 7, True
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 32, 2, 4, 99

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> StateformConfig:
        return StateformConfig(
            pattern="gated_deltanet softmax", d_model=self.hidden_size, n_layers=self.num_hidden_layers,
            vocab_size=self.vocab_size, options={"n_heads": self.num_attention_heads}, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self) -> tuple[StateformConfig, dict[str, Any]]:
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        mask = torch.ones_like(ids)
        mask[1, :2] = 0  # transformers' own masks have holes, which these models refuse
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


class TestAuto(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (StateformForCausalLM,)
    pipeline_model_mapping: dict[str, type] = {}  # noqa: RUF012
    has_attentions = False

    def setUp(self) -> None:
        torch.manual_seed(0)
        random.seed(0)
        self.model_tester = Small(self)

    def _prepare_for_class(self, inputs: dict[str, Any], model_class: type, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs, model_class)
        return {**inputs, "labels": inputs["input_ids"]} if return_labels else inputs

    def _check_past_key_values_for_generate(
        self, batch_size: int, past_key_values: Any, seq_length: int, config: Any
    ) -> None:
        """What the mixins ask a cache of another kind to be checked by."""
        assert isinstance(past_key_values, StateCache)
        assert (past_key_values.batch_size, past_key_values.get_seq_length()) == (batch_size, seq_length)

    def test_all_tensors_are_parameter_or_buffer(self) -> None:
        with sf.validate(False):  # it runs the model on memory that nobody wrote to
            super().test_all_tensors_are_parameter_or_buffer()
