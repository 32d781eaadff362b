"""What a model has learned, as pictures and as self-contained pages."""

from fastvae.report.pictures import comparison_grid, encode_png, grid, write_png

__all__ = ["comparison_grid", "encode_png", "grid", "write_png"]
