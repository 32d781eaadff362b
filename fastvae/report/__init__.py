"""Pictures of what a model has learned."""

from fastvae.report.pictures import comparison_grid, grid, write_png

__all__ = ["comparison_grid", "grid", "write_png"]
