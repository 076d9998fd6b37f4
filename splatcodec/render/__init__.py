"""Renderers and cameras: projection, rasterization and blending statistics of Gaussians."""
