"""What the library costs, beside its neighbours and the bare work, in one run."""
