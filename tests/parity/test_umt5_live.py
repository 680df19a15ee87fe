"""The text encoder against transformers, live: features, the recording, files that transformers opens."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
import torch
import transformers
from safetensors.numpy import load_file

from tests.parity import umt5_case, umt5_record
from wanjax import hub
from wanjax.models import rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.umt5 import UMT5Encoder, relative_position_buckets


def test_features_are_transformers():
    variables = {"params": rows.import_tensors(umt5_rows(umt5_case.CONFIG), umt5_case.foreign_params())}
    features = jax.jit(UMT5Encoder(umt5_case.CONFIG).apply)(variables, *umt5_case.inputs())
    expected = umt5_record.outputs()
    np.testing.assert_allclose(features, expected, atol=2e-5, rtol=0)
    # the recording is of this case, up to PyTorch's own rounding, which differs between processors (2e-6 seen)
    np.testing.assert_allclose(load_file(umt5_case.RECORDED)["features"], expected[:, ::9], atol=5e-6, rtol=0)


def test_buckets_are_transformers():
    attention = umt5_record.reference().encoder.block[0].layer[0].SelfAttention
    offset = torch.arange(512)[None, :] - torch.arange(512)[:, None]
    np.testing.assert_array_equal(
        attention._relative_position_bucket(offset).numpy(), relative_position_buckets(512, 32, 128)
    )


def test_each_opens_what_the_other_wrote(tmp_path):
    ids, mask = umt5_case.inputs()
    umt5_record.reference().save_pretrained(tmp_path / "theirs")
    encoder, params = hub.load_text_encoder(tmp_path / "theirs")
    assert encoder.config == umt5_case.CONFIG
    features = np.asarray(encoder.apply({"params": params}, ids, mask))
    np.testing.assert_allclose(features, umt5_record.outputs(), atol=2e-5, rtol=0)
    hub.save_text_encoder(tmp_path / "ours", encoder, params, max_shard_bytes=40_000)
    model, report = transformers.UMT5EncoderModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        again = model.eval()(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))).last_hidden_state.numpy()
    np.testing.assert_allclose(again * mask[..., None], features, atol=2e-5, rtol=0)
