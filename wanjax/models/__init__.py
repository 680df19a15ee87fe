"""The networks: diffusion transformer, video codec, text encoder.

Every network is a frozen dataclass around its config with two pure functions, ``init(rng) -> variables`` and
``apply(variables, ...) -> arrays``. Parameters are plain nested dicts; each tensor has one row in
:mod:`wanjax.models.rows`. Nothing here knows files, optimizers or training.
"""
