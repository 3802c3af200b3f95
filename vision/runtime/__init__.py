"""What every process of the project needs: command line, CPU count, files."""
