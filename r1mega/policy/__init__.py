"""The Megatron-Core backbone: the only package that imports megatron. `architecture` and `layout` are free of torch."""
