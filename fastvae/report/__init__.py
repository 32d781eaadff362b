"""Pictures of what a model has learned."""

from fastvae.report.pictures import grid, reconstruction_grid, write_png

__all__ = ["grid", "reconstruction_grid", "write_png"]
