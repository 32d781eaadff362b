"""What the paper names a trained model good for: denoising, inpainting and visualisation (sections 1 and 2.1).

Each of these functions but `corrupt` is a method of `fastvae.VAE`. Recognition and representation are its `transform`.
"""

from fastvae.uses.chains import FILLS
from fastvae.uses.corruption import CORRUPTIONS, corrupt
from fastvae.uses.denoising import Denoised, denoise, psnr, value_range
from fastvae.uses.imputation import Imputed, impute
from fastvae.uses.latent_space import interpolate, manifold, traverse

__all__ = [
    "CORRUPTIONS",
    "FILLS",
    "Denoised",
    "Imputed",
    "corrupt",
    "denoise",
    "impute",
    "interpolate",
    "manifold",
    "psnr",
    "traverse",
    "value_range",
]
