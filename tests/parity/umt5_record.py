"""The text encoder against transformers' UMT5EncoderModel on CPU PyTorch, float32.

``python -m tests.parity.umt5_record`` writes the recorded outputs that ``make test`` compares with; the same functions
serve the live comparison.
"""

from __future__ import annotations

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from tests.parity.umt5_case import CONFIG, RECORDED, foreign_params, inputs
from wanjax.models.umt5 import UMT5Config


def reference(config: UMT5Config = CONFIG) -> transformers.UMT5EncoderModel:
    """transformers' encoder with the case's parameters."""
    fields = {name: value for name, value in vars(config).items() if name not in ("dtype", "param_dtype")}
    model = transformers.UMT5EncoderModel(transformers.UMT5Config(**fields, dropout_rate=0.0))
    state = {name: torch.from_numpy(array) for name, array in foreign_params(config).items()}
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()


def outputs(config: UMT5Config = CONFIG) -> np.ndarray:
    """Features ``[B, L, E]`` of the case's inputs, rows of padding zeroed as Wan does after the encoder."""
    ids, mask = inputs(config)
    with torch.no_grad():
        features = reference(config)(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))).last_hidden_state
    return features.numpy() * mask[..., None]


if __name__ == "__main__":
    RECORDED.parent.mkdir(exist_ok=True)
    # Every ninth token is enough to see any mistake and keeps the file small.
    save_file({"features": np.ascontiguousarray(outputs()[:, ::9])}, RECORDED)
    print(f"{RECORDED}: {RECORDED.stat().st_size} bytes")
