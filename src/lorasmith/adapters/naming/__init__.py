"""Names of layers and blocks across kohya, diffusers and sgm."""
