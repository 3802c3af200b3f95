"""What was suggested and what was chosen, as Parquet files: what experiments are judged by and models learn from."""
