"""Local systems: factored and solved in torch, in compiled loops on a CPU, in one launch on a GPU."""
