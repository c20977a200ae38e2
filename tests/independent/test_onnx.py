"""The golden cases of the ONNX operators LinearAttention and Attention, as systems."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import stateform as sf

from .helpers import RECORDED, assert_close, existing_forms

LINEAR = [
    "decode_step", "delta", "explicit_scale", "fp16", "gated", "gated_delta", "gated_delta_beta_scalar",
    "gated_delta_gqa", "gated_delta_mqa", "gated_per_head_decay", "linear", "linear_t1_no_past",
    "no_past_explicit_zeros", "prefill_with_past",
]  # fmt: skip
# All of Attention's 4D cases but those with a soft cap on the logits or with padded keys, which no system expresses.
SOFTMAX = [
    "4d", "4d_attn_mask", "4d_attn_mask_3d", "4d_attn_mask_3d_causal", "4d_attn_mask_4d", "4d_attn_mask_4d_causal",
    "4d_attn_mask_bool", "4d_attn_mask_bool_4d", "4d_causal", "4d_diff_heads_sizes",
    "4d_diff_heads_sizes_attn_mask", "4d_diff_heads_sizes_causal", "4d_diff_heads_sizes_scaled", "4d_fp16",
    "4d_gqa", "4d_gqa_attn_mask", "4d_gqa_causal", "4d_gqa_scaled", "4d_scaled", "4d_with_qk_matmul_softmax",
    "4d_with_qk_matmul", "4d_with_qk_matmul_bias",
]  # fmt: skip
WITH_PAST = [
    "4d_diff_heads_with_past_and_present", "4d_diff_heads_with_past_and_present_mask3d",
    "4d_diff_heads_with_past_and_present_mask4d", "4d_gqa_with_past_and_present",
    "4d_gqa_with_past_and_present_fp16", "4d_with_past_and_present",
    "4d_with_past_and_present_qk_matmul", "4d_with_past_and_present_qk_matmul_bias",
    "4d_with_past_and_present_qk_matmul_bias_3d_mask", "4d_with_past_and_present_qk_matmul_bias_4d_mask",
    "4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
]  # fmt: skip


@cache
def folder() -> Path:
    """Where the golden cases are: beside the other recorded answers, or in the installed onnx package."""
    onnx = pytest.importorskip("onnx")
    root = os.environ.get("STATEFORM_DATA")
    places = [Path(root) / "oracle-onnx"] if root else []
    places.append(Path(onnx.__file__).parent / "backend" / "test" / "data" / "node")
    for place in places:
        if (place / "test_linear_attention_linear").is_dir():
            return place
    pytest.skip("the ONNX golden cases are neither under STATEFORM_DATA nor in the installed onnx package")


def load(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Attributes, inputs and outputs of a case."""
    import onnx
    from onnx import helper, numpy_helper

    place = folder() / f"test_{name}"
    node = onnx.load(place / "model.onnx").graph.node[0]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    tensors = []
    for kind, names in (("input", node.input), ("output", node.output)):
        files = [place / "test_data_set_0" / f"{kind}_{i}.pb" for i in range(len([n for n in names if n]))]
        arrays = [numpy_helper.to_array(onnx.load_tensor(file)) for file in files]
        tensors.append({n: torch.from_numpy(np.array(a)) for n, a in zip((n for n in names if n), arrays, strict=True)})
    return attributes, *tensors


def tolerance(x: Tensor) -> float:
    """float16 answers carry its rounding, 2^-11, of every input and of the output."""
    return 2e-3 if x.dtype == torch.float16 else RECORDED


@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention(name: str) -> None:
    """S <- exp(decay) S, S <- S + k (beta (v - k^T S))^T (the parts that the rule has), y = scale q^T S."""
    attributes, given, expected = load(f"linear_attention_{name}")
    rule = attributes.get("update_rule", b"gated_delta").decode()
    heads = {"query": attributes["q_num_heads"], "key": attributes["kv_num_heads"], "value": attributes["kv_num_heads"]}
    q, k, v = (given[x].unflatten(-1, (n, -1)) for x, n in heads.items())
    scale = attributes.get("scale", q.shape[-1] ** -0.5)
    parts: dict[str, Tensor] = {}
    decay, beta = given.get("decay"), given.get("beta")
    assert (decay is not None) == ("gated" in rule)
    assert (beta is not None) == ("delta" in rule)
    if decay is not None:
        decay = decay if decay.shape[-1] == k.shape[2] else decay.unflatten(-1, (k.shape[2], -1))
        parts["log_decay"] = decay
    if beta is not None:
        # Erase after the decay: (I - beta k k^T) diag(a) = diag(a) - beta k (a k)^T.
        a = 1 if decay is None else torch.exp(decay if decay.ndim == 4 else decay.unsqueeze(-1))
        parts |= {"b": beta, "f": -beta.unsqueeze(-1) * k, "w": a * k}
    system = sf.System(q * scale, k, v, **parts)
    forms = existing_forms(system)
    assert {"recurrent", "chunkwise", "matrix"} <= set(forms)
    past = given.get("past_state")
    for form in forms:
        y, state = sf.run(system, form, initial_state=past, return_state=True)
        assert_close(y.flatten(2), expected["output"], f"output, {form}", tolerance(y))
        assert_close(state["S"], expected["present_state"].float(), f"final state, {form}", tolerance(y))


def encode(given: dict[str, Tensor], scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of a case as [B,T,H,...]. An additive mask becomes key features that the queries pick out: query i has
    the i-th unit vector beside it, key j (past ones included) column j of the mask. Queries are padded to the keys.
    """
    q, v = given["Q"].movedim(1, 2) * scale, given["V"].movedim(1, 2)
    k = torch.cat([x for x in (given.get("past_key"), given["K"]) if x is not None], 2).movedim(1, 2)
    mask = given.get("attn_mask")
    if mask is not None:
        B, count, H = q.shape[:3]
        mask = torch.where(mask, 0.0, -1e4) if mask.dtype == torch.bool else mask
        columns = mask.expand(B, H, count, k.shape[1]).permute(0, 3, 1, 2)
        k = torch.cat([k.repeat_interleave(H // k.shape[2], 2), columns.to(k.dtype)], -1)
        unit = torch.eye(count, dtype=q.dtype)[None, :, None].expand(B, -1, H, -1)
        q = torch.cat([q, unit], -1)
    return q, k, v


@pytest.mark.parametrize("name", SOFTMAX)
def test_attention(name: str) -> None:
    attributes, given, expected = load(f"attention_{name}")
    q, k, v = encode(given, attributes.get("scale", given["Q"].shape[-1] ** -0.5))
    count, causal = q.shape[1], bool(attributes.get("is_causal", 0))
    q = torch.cat([q, q.new_zeros(q.shape[0], k.shape[1] - count, *q.shape[2:])], 1)
    system = sf.System(q, k, v, readout="exp", eta="sum", causal=causal)
    for form in existing_forms(system) if causal else ["matrix"]:
        y = sf.run(system, form)[:, :count].movedim(1, 2)
        assert_close(y, expected["Y"], f"output, {form}", tolerance(y))
    if attributes.get("qk_matmul_output_mode") == 3:
        weights = system.coefficients()[:, :, :count]
        assert_close(weights, expected["qk_matmul_output"], "attention weights", RECORDED)


@pytest.mark.parametrize("name", WITH_PAST)
def test_attention_with_past_and_present(name: str) -> None:
    """The past is the initial state, the present the state after the last token."""
    attributes, given, expected = load(f"attention_{name}")
    q, k, v = encode(given, attributes.get("scale", given["Q"].shape[-1] ** -0.5))
    past, fresh, count = given["past_key"].shape[2], v.shape[1], q.shape[1]
    causal = bool(attributes.get("is_causal", 0))
    old = {"keys": k[:, :past], "values": given["past_value"].movedim(1, 2)}
    start = sf.State({**old, "position": torch.full((len(q),), past)})
    k = k[:, past:]
    if causal:  # query i is at token i
        q = torch.cat([q, q.new_zeros(q.shape[0], fresh - count, *q.shape[2:])], 1)
    else:  # every query sees all keys: each has a row of its own, and asks at its last token
        k, v, start = k.repeat_interleave(count, 0), v.repeat_interleave(count, 0), start.repeat(count)
        q = torch.cat([q.new_zeros(len(k), fresh - 1, *q.shape[2:]), q.flatten(0, 1).unsqueeze(1)], 1)
    system = sf.System(q, k, v, readout="exp", eta="sum")
    for form in existing_forms(system):
        y, state = sf.run(system, form, initial_state=start, return_state=True)
        y = y[:, :count] if causal else y[:, -1].unflatten(0, (-1, count))
        assert_close(y.movedim(1, 2), expected["Y"], f"output, {form}", tolerance(y))
        rows = slice(None) if causal else slice(None, None, count)
        keys = state["keys"][rows, ..., : given["K"].shape[-1]].movedim(1, 2)
        groups = keys.shape[1] // given["K"].shape[1]
        assert_close(keys[:, ::groups], expected["present_key"], f"present keys, {form}", 0)
        assert_close(state["values"][rows].movedim(1, 2), expected["present_value"], f"present values, {form}", 0)
