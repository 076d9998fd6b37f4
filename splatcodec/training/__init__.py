"""Training: from photographs with camera poses, or from a finished scene, to Gaussians. Needs torch (extra `train`)."""
