"""Scattering features in real numbers: Fourier transforms as products with matrices of cosines and sines.

What writes ONNX knows no complex numbers, and a transform of a fixed size is a fixed matrix. Slower than the fast
transform that training uses, and the same but for rounding.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from common.models.scatter import Bank

Parts = tuple[Tensor, Tensor]  # real and imaginary part


class RealScatter(nn.Module):
    """Features as `common.models.scatter.scattering` gives them, of images of one size."""

    def __init__(self, image_size: tuple[int, int], cells: tuple[int, int], *, second: bool) -> None:
        super().__init__()
        bank = Bank(*image_size, cells, torch.float32, torch.device("cpu"))
        self.second, self.cells = second, cells
        fixed = {"rows": bank.rows, "columns": bank.columns, "fine": bank.wavelets[0], "coarse": bank.wavelets[1]}
        for axis, side in zip(("down", "right"), bank.padded, strict=True):
            for step in (1, 2):
                angle = 2 * math.pi / side * step * torch.outer(*[torch.arange(side, dtype=torch.float64)] * 2)
                fixed[f"{axis}_cos_{step}"] = torch.cos(angle)[:, : side // step].float()
                fixed[f"{axis}_sin_{step}"] = torch.sin(angle)[:, : side // step].float()
        for number, (down, right) in enumerate(bank.averages):
            fixed |= {f"mean_down_{number}": down, f"mean_right_{number}": right}
        for name, value in fixed.items():
            self.register_buffer(name, value, persistent=False)
        self.pixels = bank.padded[0] * bank.padded[1]

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = self.get_buffer("rows"), self.get_buffer("columns")
        whole = images[:, :, rows][..., columns]  # [B, C, H, W] with its mirror image around it
        spectrum = self._spectrum(whole[:, :, None])
        fine = self._moduli(spectrum, "fine", 1)
        coarse = self._mean(self._moduli(spectrum, "coarse", 2), 1)[:, :, :, None]
        if self.second:
            again = self._moduli(self._spectrum(fine[:, :, :, None]), "coarse", 2)
            coarse = torch.cat([coarse, self._mean(again, 1)], dim=3)
        parts = [self._mean(whole[:, :, None], 0), self._mean(fine, 0), coarse.flatten(2, 3)]
        return torch.cat(parts, dim=2).flatten(1, 2)

    def _spectrum(self, maps: Tensor) -> Parts:
        """The Fourier transform [..., H, W] of real maps."""
        down, right = self._matrices("down", 1), self._matrices("right", 1)
        across = maps @ right[0], -(maps @ right[1])
        return down[0] @ across[0] + down[1] @ across[1], down[0] @ across[1] - down[1] @ across[0]

    def _moduli(self, spectrum: Parts, wavelets: str, step: int) -> Tensor:
        """Moduli of the maps that wavelets with real spectra make, at every `step`-th pixel."""
        filters = getattr(self, wavelets)
        real, imaginary = spectrum[0] * filters, spectrum[1] * filters
        down, right = self._matrices("down", step), self._matrices("right", step)
        # The inverse has the other sign; of its columns and rows those are left out that would be dropped.
        across = real @ right[0] - imaginary @ right[1], real @ right[1] + imaginary @ right[0]
        cos, sin = down[0].t(), down[1].t()
        found = cos @ across[0] - sin @ across[1], sin @ across[0] + cos @ across[1]
        return torch.sqrt(found[0] ** 2 + found[1] ** 2) / self.pixels

    def _matrices(self, axis: str, step: int) -> Parts:
        """Cosines and sines [side, side / step]."""
        return getattr(self, f"{axis}_cos_{step}"), getattr(self, f"{axis}_sin_{step}")

    def _mean(self, maps: Tensor, number: int) -> Tensor:
        down: Any = getattr(self, f"mean_down_{number}")
        right: Any = getattr(self, f"mean_right_{number}")
        means: Tensor = down @ (maps @ right.t())
        return means
