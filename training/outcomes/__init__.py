"""What sellers chose: tables, the next manifest, the experiment report."""
