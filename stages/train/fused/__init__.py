"""Training's fast path: forward and backward of whole decoder layers, written by hand over plain PEFT modules. See `model.py`."""
