"""Networks that look at images: convolutional and transformer encoders."""
