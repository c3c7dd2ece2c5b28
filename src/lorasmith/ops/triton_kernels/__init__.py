"""Triton kernels behind the functions of `lorasmith.ops`, and the test that Triton works here."""
