"""wanjax: text-to-video diffusion of the Wan2.2 family in JAX, with light that stays consistent over time.

The alphabet of every shape in this library:

====  =======================================  ====  ================================================
B     clips                                    h, w  latent height and width
T     frames                                   C     latent channels (16)
H, W  pixels                                   N     tokens
F     latent frames = 1 + (T - 1) / 4          D     width of the transformer
L     text tokens                              K     heads
E     text width
====  =======================================  ====  ================================================

Arrays are channels-last. Video is ``[B, T, H, W, 3]`` in [-1, 1], latents ``[B, F, h, w, C]`` are normalised
by the codec's mean and standard deviation. ``timestep`` runs in [0, 1000] as in Wan's checkpoints, ``sigma``
= timestep / 1000 is the noise level: ``x_sigma = (1 - sigma) x0 + sigma noise``, ``velocity = noise - x0``.
"""

__version__ = "0.1.0"
