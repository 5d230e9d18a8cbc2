"""The folder that `optrace record` puts first on PYTHONPATH; Python imports `sitecustomize` from it at start-up."""
