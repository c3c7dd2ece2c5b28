"""Kinds of adapters that LoRA files hold, one module each, behind one interface.

`lorasmith.registries.ADAPTER_KINDS` lists them; `lorasmith.adapters.kinds.base.AdapterLayer` is the
interface of a kind.
"""
