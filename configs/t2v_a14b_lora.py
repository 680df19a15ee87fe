"""A LoRA of one expert of Wan2.2-T2V-A14B on one GPU of 80 GB: 832×480×81 frames, a clip at a time.

    python -m experiments.train --config configs/t2v_a14b_lora.py --workdir runs/lora_low
    python -m experiments.convert --src runs/lora_low --dst lora_low --only lora --layout comfyui

As ``t2v_a14b``, whose expert of low noise stays frozen, in bfloat16, beside factors of rank 32 of every matrix of its
blocks, 153 million numbers in float32; ``--config.train.expert=high`` is for the other one. Four clips make a step. The
planner says what it needs (docs/scaling.md). It has not been trained at full size here; cut down by overrides it takes
a real step in the tests.
"""
import ml_collections

from configs import t2v_a14b


def get_config() -> ml_collections.ConfigDict:
    config = t2v_a14b.get_config()
    config.name = "t2v_a14b_lora"
    config.lora.rank = 32
    config.lora.alpha = 32.0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 100
    config.data.batch = 4
    config.train.accumulate = 4
    config.train.expert = "low"
    config.train.steps_high = config.train.steps_low = 2000
    return config
