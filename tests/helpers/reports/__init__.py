"""Run folders and loss curves as training writes them."""
