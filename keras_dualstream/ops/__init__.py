"""Pure functions on tensors: no weights, no layers."""
