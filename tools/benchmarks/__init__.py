"""What `tools.benchmark_pipeline` measures, a module for each stage."""
